"""A Postgres for one test alone, which may crash, be gone for a while, or come back as it was yesterday."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from server.storage.embedded.cluster import LOCK_SECONDS, EmbeddedPostgres
from server.storage.migrations import migrate
from tests.support.postgres import POSTGRES_BIN, copy_data_folder

T = TypeVar("T")

# A crash of Postgres loses nothing that was committed; what a power cut would lose doesn't matter here.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "60",
    "shared_buffers": "16MB",
    # What is committed with synchronous_commit = off stays in memory alone until somebody else commits: as long as it may.
    "wal_writer_delay": "10s",
    "bgwriter_delay": "10s",
}


class MortalPostgres(EmbeddedPostgres):
    """An embedded Postgres that is ended and started again beside a running event loop.

    All of that happens in one thread that lives as long as this object: a server on Linux ends with the thread that
    started it.
    """

    def __init__(self, data_dir: Path, *, postgres_bin: Path | None = POSTGRES_BIN) -> None:
        super().__init__(data_dir, postgres_bin=postgres_bin, settings=_SETTINGS)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="postgres")
        self._backup = data_dir / "backup"

    def __exit__(self, *error: object) -> None:
        self.stop()
        self._thread.shutdown()

    async def crash(self) -> None:
        """End it at once and without a checkpoint (`pg_ctl stop -m immediate`)."""
        await self._run(lambda: self._end(signal.SIGQUIT))

    async def shut_down(self) -> None:
        """End it in good order, with all its connections (`pg_ctl stop -m fast`)."""
        await self._run(lambda: self._end(signal.SIGINT))

    async def come_back(self) -> None:
        """Start it again on the same data; returns when it lets clients in."""
        await self._run(self._start_again)

    async def back_up(self) -> None:
        """Keep the data as they are now; it must have been shut down."""
        await self._run(lambda: self._copy(self.location.data, self._backup))

    async def restore(self) -> None:
        """Put the data back as they were kept; it must not be running."""
        await self._run(lambda: self._copy(self._backup, self.location.data))

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(30)

    def _start_again(self) -> None:
        with self._exclusive(LOCK_SECONDS):
            self._prepare()
            self._process = self._launch()

    def _copy(self, source: Path, target: Path) -> None:
        assert self._process is not None
        assert self._process.poll() is not None, "it still runs"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, symlinks=True)
        for path in [target, *target.rglob("*")]:
            self._account.give(path)


@contextlib.contextmanager
def mortal_postgres(made_before: Path) -> Iterator[MortalPostgres]:
    """Run a Postgres of one's own, with the schema in it, in a copy of that data folder."""
    folder = Path(tempfile.mkdtemp(prefix="longpoll-tests-", dir="/tmp"))
    folder.chmod(0o711)  # Postgres runs as `nobody` if the tests run as root
    try:
        with MortalPostgres(copy_data_folder(made_before, folder / "data")) as postgres:
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


@pytest.fixture
def mortal(made_before: Path) -> Iterator[MortalPostgres]:
    """A Postgres that this test may end."""
    with mortal_postgres(made_before) as postgres:
        yield postgres


@pytest.fixture
def dsn(mortal: MortalPostgres) -> str:
    """Its database, in place of one of the common server's."""
    return mortal.dsn
