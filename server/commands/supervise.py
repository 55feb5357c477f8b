"""The command `serve --processes N`: several processes on one port, restarted when they die, stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Final

from server.commands.migrate import bring_up_to_date
from server.config import PREFIX, Config
from server.errors import ConfigurationError
from server.runtime import signals
from server.storage.embedded.binaries import end_with_parent
from server.telemetry import logs

# A process that has lived for so long didn't die of its start: it is started again at once.
_SETTLED_SECONDS: Final = 10.0
_LONGEST_PAUSE_SECONDS: Final = 10.0
# Beyond the drain, for the last replies and the connections to Postgres.
_LEAVE_SECONDS: Final = 8.0


async def run(config: Config, dsn: str, where: str, *, processes: int) -> int:
    """Bring the schema up to date and have that many processes serve until SIGINT, SIGTERM or SIGHUP."""
    if config.server.unix_socket:
        raise ConfigurationError("several processes share a port; server.unix_socket is for one: leave it empty")
    await bring_up_to_date(config, dsn)
    patience = config.server.drain_seconds + _LEAVE_SECONDS
    with _reserved_port(config) as port, signals.told_to_stop(logs.stopping) as told:
        print(f"{processes} processes on port {port}, data lies {where}\nStop with Ctrl-C", file=sys.stderr, flush=True)
        watching = [
            asyncio.create_task(_keep_alive(number, _environment(config, dsn, port, number), patience))
            for number in range(1, processes + 1)
        ]
        try:
            await told.wait()
        finally:
            for each in watching:
                each.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
    return 0


@contextlib.contextmanager
def _reserved_port(config: Config) -> Iterator[int]:
    """Reserve the port by a socket that doesn't listen, and so gets no connections."""
    family = socket.AF_INET6 if ":" in config.server.host else socket.AF_INET
    with socket.socket(family) as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            reserved.bind((config.server.host, config.server.port))
        except OSError as error:
            address = f"{config.server.host}:{config.server.port}"
            raise ConfigurationError(f"can't listen on {address}: {error.strerror or error}") from error
        yield reserved.getsockname()[1]


def _environment(config: Config, dsn: str, port: int, number: int) -> Mapping[str, str]:
    """Return the environment of one of several processes."""
    workers = config.generation.workers if number == 1 else 0
    ours = {
        "DATABASE__DSN": dsn,
        "DATABASE__ADMIN_DSN": "",  # we have migrated: they need no right to
        "SERVER__PORT": str(port),
        "SERVER__REUSE_PORT": "true",
        "GENERATION__WORKERS": str(workers),
    }
    return {**os.environ, **{f"{PREFIX}{name}": value for name, value in ours.items()}}


async def _keep_alive(number: int, environment: Mapping[str, str], patience: float) -> None:
    """Restart a process whenever it ends, until this is canceled; then stop it gracefully."""
    failures = 0
    while True:
        started = time.monotonic()
        process = await _start(number, environment)
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await _stop(process, patience)
            raise
        failures = 0 if time.monotonic() - started > _SETTLED_SECONDS else failures + 1
        pause = min(0.25 * 2**failures, _LONGEST_PAUSE_SECONDS) if failures else 0.0
        logs.log.error(logs.PROCESS_DIED, number=number, code=code, pause_seconds=pause)
        await asyncio.sleep(pause)


async def _start(number: int, environment: Mapping[str, str]) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "server", *_config_option()],
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # the terminal's Ctrl-C is for us, who pass it on
        preexec_fn=end_with_parent(),
    )
    logs.log.info(logs.PROCESS_STARTED, number=number, pid=process.pid)
    return process


async def _stop(process: asyncio.subprocess.Process, patience: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(patience):
                await process.wait()
        except TimeoutError:
            process.kill()


def _config_option() -> list[str]:
    """Return the option that names the settings file, if we were given it."""
    given = [number for number, argument in enumerate(sys.argv) if argument == "--config"]
    return sys.argv[given[0] : given[0] + 2] if given else []
