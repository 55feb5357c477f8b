"""The command `worker`: workers without a web server."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from functools import partial

from aiohttp import web

from server.app import Process
from server.commands.migrate import bring_up_to_date
from server.commands.serve import LAST_REQUESTS_SECONDS
from server.config import Config
from server.errors import ConfigurationError
from server.protocol.runner import server_logger
from server.runtime import signals
from server.storage.retention import join_servers_folder
from server.telemetry import logs
from server.web import keys
from server.web.handlers import ops


async def work(config: Config, dsn: str, _where: str) -> int:
    """Run workers, without a web server, until SIGINT, SIGTERM or SIGHUP."""
    await bring_up_to_date(config, dsn)
    config = config.replace(generation={"workers": max(config.generation.workers, 1)})
    process = Process(config, dsn, application="longpoll-worker")
    listener = process.make_listener({}, lost=lambda: None, restored=lambda: None)
    async with (
        process.running(listener, partial(join_servers_folder, process.database, process.images), {}),
        _site(process) as where,
    ):
        with signals.told_to_stop(logs.stopping) as told:
            print(f"{len(process.workers)} worker(s) running{where}; stop with Ctrl-C", file=sys.stderr, flush=True)
            await told.wait()
    return 0


@contextlib.asynccontextmanager
async def _site(process: Process) -> AsyncIterator[str]:
    """Serve /metrics and /healthz on a port of their own, if one is set; yields a phrase for the announcement.

    Raises:
        ConfigurationError: the address can't be used.
    """
    config = process.config
    host, port = config.server.host, config.generation.metrics_port
    if not port:
        yield ""
        return
    app = web.Application()
    app[keys.CONFIG], app[keys.METRICS], app[keys.BACKGROUND] = config, process.metrics, process.background
    app.add_routes([web.get("/metrics", ops.exposition), web.get("/healthz", ops.healthz)])
    logger = server_logger(process.metrics)
    runner = web.AppRunner(app, access_log=None, logger=logger, shutdown_timeout=LAST_REQUESTS_SECONDS)
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
