"""The life of a process: open, say so, run until told to stop, let everybody go, close."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Final

from aiohttp import web

from server.app import (
    WORKERS,
    add_picture_gauges,
    build_app,
    is_https,
    log_metrics,
    make_workers,
    server_logger,
    wait_until_heard,
)
from server.config import Config
from server.errors import ConfigurationError
from server.generation.worker import Worker
from server.protocol.port import Port
from server.protocol.runner import Runner
from server.runtime import signals
from server.runtime.background import Background, counted_errors
from server.runtime.garbage import keep_gc_tuned, tune_gc
from server.storage import migrations
from server.storage.database import Database, login_role
from server.storage.images import FileImages
from server.storage.listener import Listener
from server.storage.retention import join_servers_folder
from server.telemetry import logs
from server.telemetry.metrics import Metrics
from server.web import keys
from server.web.handlers import ops
from server.web.replies import standalone_page

# How long a request that is under way may take when the port is closed; twice that if it doesn't heed its end.
_LAST_REQUESTS_SECONDS: Final = 0.8
# A drain that isn't over so long after its time leaves the rest to the closing of the connections.
_DRAIN_PATIENCE_SECONDS: Final = 10.0


async def serve(config: Config, dsn: str, where: str) -> int:
    """Bring the schema up to date and serve until SIGINT, SIGTERM or SIGHUP."""
    await bring_up_to_date(config, dsn)
    app = build_app(config, dsn)
    async with running(app, config) as port:
        with signals.told_to_stop(log_stop) as told:
            _announce(config, port, where, app)
            await told.wait()
            await _drain(app, config.server.drain_seconds)
    logs.log.info(logs.SERVER_STOPPED)
    return 0


async def work(config: Config, dsn: str, _where: str) -> int:
    """Run workers, without a web server, until SIGINT, SIGTERM or SIGHUP."""
    await bring_up_to_date(config, dsn)
    metrics = Metrics()
    background = Background(metrics)
    database = Database(
        dsn,
        pool_size=config.database.pool_size,
        timeout=config.database.timeout_seconds,
        application="longpoll-worker",
    )
    at_least_one = config.replace(generation={"workers": max(config.generation.workers, 1)})
    images = FileImages.below(config.database.data_dir)
    add_picture_gauges(metrics, images)
    workers = make_workers(at_least_one, database, images, metrics)
    listener = _worker_listener(config, dsn, database, workers, metrics)
    try:
        await database.open()
        await database.check_role()
        await join_servers_folder(database, images)
        background.start("pictures", images.watch)
        background.start("listener", listener.run)
        await wait_until_heard(listener)
        for number, worker in enumerate(workers, 1):
            background.start(f"worker {number}", worker.run)
        background.start("metrics", partial(log_metrics, metrics, config.logging.snapshot_seconds))
        async with _worker_site(config, metrics, background) as where:
            with signals.told_to_stop(log_stop) as told, counted_errors(metrics):
                print(f"{len(workers)} worker(s) running{where}; stop with Ctrl-C", file=sys.stderr, flush=True)
                await told.wait()
    finally:
        await background.close()
        await database.close()
    return 0


def _worker_listener(
    config: Config, dsn: str, database: Database, workers: Sequence[Worker], metrics: Metrics
) -> Listener:
    def wake(_payload: str = "") -> None:
        for worker in workers:
            worker.wake()

    listener = Listener(
        config.database.listen_dsn or dsn,
        database,
        {"generation_created": wake},
        restored=wake,
        lost=lambda: None,
        heartbeat_seconds=config.database.heartbeat_seconds,
        timeout=config.database.timeout_seconds,
        metrics=metrics,
    )
    metrics.gauge("longpoll_listener_up", "Whether notifications are proven to arrive", lambda: listener.healthy)
    return listener


@contextlib.asynccontextmanager
async def _worker_site(config: Config, metrics: Metrics, background: Background) -> AsyncIterator[str]:
    """Answer what an operator asks a worker, on a port of its own, if one is set; gives what to say of it.

    Raises:
        ConfigurationError: the address can't be used.
    """
    host, port = config.server.host, config.generation.metrics_port
    if not port:
        yield ""
        return
    app = web.Application()
    app[keys.CONFIG], app[keys.METRICS], app[keys.BACKGROUND] = config, metrics, background
    app.add_routes([web.get("/metrics", ops.exposition), web.get("/healthz", ops.healthz)])
    runner = web.AppRunner(app, access_log=None, logger=server_logger(metrics), shutdown_timeout=_LAST_REQUESTS_SECONDS)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigurationError(
                f"can't listen on {host}:{port} (generation.metrics_port): {error.strerror or error}"
            ) from error
        yield f", metrics on http://{host}:{port}/metrics"
    finally:
        await runner.cleanup()


async def migrate(config: Config, dsn: str, _where: str) -> int:
    """Bring the schema up to date, and say what was done."""
    applied = await bring_up_to_date(config, dsn)
    print("\n".join(f"applied {name}" for name in applied) or "nothing to do: the schema is up to date")
    return 0


async def bring_up_to_date(config: Config, dsn: str) -> list[str]:
    """Apply the migrations that are missing; returns their names."""
    database = config.database
    if not database.admin_dsn:
        return await migrations.migrate(dsn)
    if not database.dsn:  # the embedded Postgres, where nobody else would make it
        await migrations.make_login(database.admin_dsn, login_role(dsn))
    return await migrations.migrate(database.admin_dsn, grant_to=login_role(dsn))


def make_runner(app: web.Application) -> web.AppRunner:
    """Return what runs the application, wherever its sockets come from."""
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
        shutdown_timeout=_LAST_REQUESTS_SECONDS,
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
    """Return what https needs, or None if this server speaks plain http.

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
    site = f" ({config.server.public_url})" if is_https(config) and config.server.public_url else ""
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


def log_stop(number: signal.Signals) -> None:
    """Say by which signal the process was told to stop."""
    logs.log.info(logs.SERVER_STOPPING, signal=number.name)


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
