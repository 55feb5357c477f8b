"""The command `serve`: start, announce, run until a signal, drain, close."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

from aiohttp import web

from server.app import WORKERS, build_app
from server.commands.migrate import bring_up_to_date
from server.config import Config
from server.errors import ConfigurationError
from server.protocol.port import Port
from server.protocol.runner import Runner, server_logger
from server.runtime import signals
from server.runtime.garbage import keep_gc_tuned, tune_gc
from server.telemetry import logs
from server.web import keys
from server.web.replies import standalone_page

# How long a request that is under way may take when the port is closed; twice that if it doesn't heed its end.
LAST_REQUESTS_SECONDS: Final = 0.8
# A drain that isn't over so long after its time leaves the rest to the closing of the connections.
_DRAIN_PATIENCE_SECONDS: Final = 10.0


async def serve(config: Config, dsn: str, where: str) -> int:
    """Bring the schema up to date and serve until SIGINT, SIGTERM or SIGHUP."""
    await bring_up_to_date(config, dsn)
    app = build_app(config, dsn)
    async with running(app, config) as port:
        with signals.told_to_stop(logs.stopping) as told:
            _announce(config, port, where, app)
            await told.wait()
            await _drain(app, config.server.drain_seconds)
    logs.log.info(logs.SERVER_STOPPED)
    return 0


def make_runner(app: web.Application) -> web.AppRunner:
    """Return the runner of the application; its caller provides the sockets."""
    server = app[keys.CONFIG].server
    return Runner(
        app,
        app[keys.PARKING],
        partial(standalone_page, app),
        head_seconds=server.receive_seconds,
        handler_cancellation=True,  # without it a handler goes on holding for a client that has left
        access_log=None,
        logger=server_logger(app[keys.METRICS]),
        keepalive_timeout=server.keepalive_seconds,
        shutdown_timeout=LAST_REQUESTS_SECONDS,
    )


@contextlib.asynccontextmanager
async def running(app: web.Application, config: Config) -> AsyncIterator[int]:
    """Serve while the block runs; gives the port.

    Raises:
        ConfigurationError: the address can't be used, or the certificate.
    """
    runner, port = make_runner(app), Port(app, config.server, tls_context(config))
    try:
        await runner.setup()
        assert runner.server is not None, "set up"
        # The port last: connections to the database must not get descriptors behind those of 10,000 clients.
        number = await port.open(runner.server)
        tune_gc()
        app[keys.BACKGROUND].start("collector", partial(keep_gc_tuned, app[keys.WAITERS].__len__))
        try:
            yield number
        finally:
            app[keys.DATABASE].begin_shutdown()
            await port.close()
    finally:
        await runner.cleanup()


def tls_context(config: Config) -> ssl.SSLContext | None:
    """Return the TLS context, or None for plain http.

    Raises:
        ConfigurationError: the certificate or its key can't be used.
    """
    if not config.server.tls_certificate:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # some Pythons leave that to the system
    try:
        context.load_cert_chain(config.server.tls_certificate, config.server.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"server.tls_certificate or tls_key can't be used: {error}") from error
    return context


def _announce(config: Config, port: int, where: str, app: web.Application) -> None:
    scheme = "https" if config.server.tls_certificate else "http"
    host = f"[{config.server.host}]" if ":" in config.server.host else config.server.host
    address = f"unix:{config.server.unix_socket}" if config.server.unix_socket else f"{scheme}://{host}:{port}"
    site = f" ({config.server.public_url})" if config.server.is_https and config.server.public_url else ""
    workers = len(app[WORKERS])
    print(
        f"Listening on {address}{site} with {workers} worker{'' if workers == 1 else 's'}\n"
        f"Data lies {where}, pictures in {app[keys.IMAGES].folder}\n"
        "Stop with Ctrl-C",
        file=sys.stderr,
        flush=True,
    )
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    logs.log.info(logs.SERVER_STARTED, address=address, workers=workers, event_loop=loop)


async def _drain(app: web.Application, seconds: float) -> None:
    """Answer every held poll at a random moment within that time; new ones are answered at once."""
    waiters = app[keys.WAITERS]
    if not len(waiters):
        waiters.draining = True
        return
    waiters.drain(seconds)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds + _DRAIN_PATIENCE_SECONDS):
            while len(waiters):
                await asyncio.sleep(0.05)
