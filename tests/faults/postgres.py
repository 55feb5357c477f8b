"""A Postgres for one test alone, which may crash and come back on the same data."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from server.storage.embedded import EmbeddedPostgres
from server.storage.migrations import migrate

# A crash must lose nothing that was committed; what a power cut would lose doesn't matter here.
_SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "60", "shared_buffers": "16MB"}


class MortalPostgres(EmbeddedPostgres):
    """An embedded Postgres that can be stopped the hard way."""

    def crash(self) -> None:
        """End it at once and without a checkpoint (`pg_ctl stop -m immediate`); `start` brings it back."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)


@contextlib.contextmanager
def mortal_postgres() -> Iterator[MortalPostgres]:
    """Run a Postgres of one's own, with the schema in it."""
    binaries = os.environ.get("LONGPOLL_TEST_POSTGRES_BIN")
    folder = Path(tempfile.mkdtemp(prefix="longpoll-tests-", dir="/tmp"))
    folder.chmod(0o711)  # Postgres runs as `nobody` if the tests run as root
    try:
        with MortalPostgres(folder, postgres_bin=Path(binaries) if binaries else None, settings=_SETTINGS) as postgres:
            asyncio.run(migrate(postgres.dsn))
            yield postgres
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process for the block: it lives, its connections stay open, and it says nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
