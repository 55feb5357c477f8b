"""Starts a command that needs the settings and a Postgres."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

from server import config
from server.runtime import event_loop, file_limit
from server.storage import data_folder
from server.storage.embedded.cluster import EmbeddedPostgres
from server.storage.embedded.watchdog import keeping_it_running
from server.telemetry import logs

Main: TypeAlias = Callable[[config.Config, str, str], Coroutine[Any, Any, int]]
"""What a command does: it is given the settings, the DSN, and where the data lie."""

# Not "longpoll": "$user" would put the schema of that name into its search path.
_EMBEDDED_LOGIN: Final = "longpoll_login"


def run(main: Main, file: Path | None, *, serves: bool, alone: bool) -> int:
    """Read the settings, have a Postgres, and run it; returns the exit code.

    Args:
        main: what is run.
        file: the settings file that was named.
        serves: it goes on until it is told to stop, and keeps pictures.
        alone: it does so in this process.
    """
    settings = config.load(_config_file(file), os.environ)
    logs.configure(settings.logging)
    file_limit.raise_limit()
    if serves or not settings.database.dsn:
        data_folder.prepare(settings.database.data_dir)
    with _postgres(settings) as (settings, dsn, where, embedded):
        kind = settings.server.event_loop if serves and alone else event_loop.ASYNCIO
        return event_loop.run(lambda: keeping_it_running(embedded, main(settings, dsn, where)), kind)


def _config_file(given: Path | None) -> Path | None:
    if given is None and f"{config.PREFIX}CONFIG" in os.environ:
        given = Path(os.environ[f"{config.PREFIX}CONFIG"])
    default = Path("config.toml")
    return given or (default if default.is_file() else None)


@contextlib.contextmanager
def _postgres(settings: config.Config) -> Iterator[tuple[config.Config, str, str, EmbeddedPostgres | None]]:
    """Give the settings, the DSN and where its data lies: of the configured Postgres, or the embedded one for the block."""
    database = settings.database
    if database.dsn:
        yield settings, database.dsn, "in the configured Postgres", None
        return
    postgres_bin = Path(database.postgres_bin) if database.postgres_bin else None
    # Before any thread is started: it ends with the thread that started it, and that is to be the main one.
    with EmbeddedPostgres(Path(database.data_dir).absolute(), postgres_bin=postgres_bin) as embedded:
        migrating = settings.replace(database={"admin_dsn": embedded.dsn})
        yield migrating, embedded.dsn_of(_EMBEDDED_LOGIN), f"in {embedded.location.data}", embedded
