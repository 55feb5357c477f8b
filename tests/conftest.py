"""What the tests stand on: a real Postgres, a fresh database for each test, and the real server on a real socket."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import uvloop

from server.config import Config
from server.runtime import file_limit
from server.storage.embedded.cluster import EmbeddedPostgres
from server.storage.migrations import migrate
from tests.faults.figures import pytest_terminal_summary  # noqa: F401 - for pytest, here where it looks
from tests.support.people import Enter, MakeClient, Person, Start, entering, starting
from tests.support.postgres import POSTGRES_BIN, Sql, copy_data_folder, database_of, execute, fresh_database

# Which way polls are held: `LONGPOLL_TEST_PARK=no` has all of them held by coroutines, as under TLS.
PARKS = os.environ.get("LONGPOLL_TEST_PARK") != "no"
# Which loop the servers within a test run on: `LONGPOLL_TEST_LOOP=uvloop`. Those in processes of their own take it anyway.
LOOP = os.environ.get("LONGPOLL_TEST_LOOP", "asyncio")
# A crash of this Postgres loses nothing that anybody wants: it needn't wait for the disk.
_QUICK = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "max_wal_size": "128MB",
}
# To make and drop a database of 300 small files is what most tests cost most; in memory it takes half the time.
_MEMORY = Path("/dev/shm")
_ENOUGH_MEMORY = 4 * 2**30
# What one of the hundred Pythons that a run starts has compiled, the others find, whatever the environment says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the name of its folder."""
    here = Path(__file__).parent
    for item in items:
        item.add_marker(item.path.relative_to(here).parts[0])


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run groups of tests apart: a browser a process and faults side by side are slow, and fail by chance.

    Raises:
        RuntimeError: pytest-xdist was told to keep groups together and has named none, as with a pytest it doesn't know.
    """
    if not getattr(session.config.option, "loadgroup", False):
        return
    for item in session.items:
        if item.get_closest_marker("xdist_group") and "@" not in item.nodeid.rpartition("]")[2]:
            raise RuntimeError(f"pytest-xdist has not put {item.nodeid} into its group: its pytest is another one")


@pytest.fixture(scope="session", autouse=True)
def enough_descriptors() -> None:
    """As the server does at its start: some tests hold thousands of connections."""
    file_limit.raise_limit()


@pytest.fixture(scope="session", autouse=True)
def ordinary_signals() -> None:
    """Have what tests start heed signals, although this process was told to ignore them by `nohup` or by a script's `&`.

    A signal that is handled, be it by nothing, is an ordinary one again for the programs that a process starts.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: None)


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Say on which loop tests run."""
    return {LOOP: uvloop.new_event_loop if LOOP == "uvloop" else asyncio.new_event_loop}


@pytest.fixture(scope="session")
def data_folder() -> Iterator[Path]:
    """A folder that even `nobody` can reach, as whom Postgres runs when the tests run as root."""
    in_memory = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _ENOUGH_MEMORY
    folder = Path(tempfile.mkdtemp(prefix="longpoll-tests-", dir=_MEMORY if in_memory else "/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def made_before(data_folder: Path) -> Path:
    """A data folder with a cluster that was stopped properly: a copy takes a tenth of the time that making it takes."""
    folder = data_folder / "made"
    with EmbeddedPostgres(folder, postgres_bin=POSTGRES_BIN, settings=_QUICK):
        return folder


@pytest.fixture(scope="session")
def postgres(data_folder: Path, made_before: Path) -> Iterator[EmbeddedPostgres]:
    """The embedded Postgres, or the one whose binaries `LONGPOLL_TEST_POSTGRES_BIN` names."""
    folder = copy_data_folder(made_before, data_folder / "common")
    with EmbeddedPostgres(folder, postgres_bin=POSTGRES_BIN, settings=_QUICK) as embedded:
        yield embedded


@pytest.fixture
def begun_folder(made_before: Path) -> Iterator[Path]:
    """A newcomer's checkout after a first start that came no further than to Postgres; its path is short and open."""
    path = Path(tempfile.mkdtemp(prefix="longpoll-run-", dir="/tmp"))
    path.chmod(0o711)
    if not POSTGRES_BIN:  # other binaries can't run what these have made
        copy_data_folder(made_before, path / ".data")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """The name of a database with the schema in it, to be copied."""
    execute(postgres.dsn, "CREATE DATABASE template_migrated")
    asyncio.run(migrate(database_of(postgres.dsn, "template_migrated")))
    return "template_migrated"


@pytest.fixture
def empty_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database with nothing in it."""
    yield from fresh_database(postgres.dsn, "template1")


@pytest.fixture
def dsn(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A database with the schema and no rows, for this test alone."""
    yield from fresh_database(postgres.dsn, template)


@pytest.fixture
def sql(dsn: str) -> Iterator[Sql]:
    """Run plain SQL as the superuser, as an operator with psql would: `sql("UPDATE …", parameters)`."""
    with closing(psycopg2.connect(dsn)) as connection:
        connection.autocommit = True

        def run(statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
            with connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                return cursor.fetchall() if cursor.description else []

        yield run


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Settings that make a test quick: short heartbeats and sweeps, no workers, no rate limits."""
    return Config().replace(
        server={"port": 0, "drain_seconds": 0.2, "receive_seconds": 5.0},
        database={"data_dir": str(tmp_path), "heartbeat_seconds": 0.5, "timeout_seconds": 5.0},
        polling={"hold_seconds": 30.0, "sweep_seconds": 5.0, "park": PARKS},
        limits={"enabled": False},
        generation={"workers": 0, "step_seconds": 0.0, "retry_seconds": 0.0},
        logging={"level": "debug", "format": "json"},
    )


@pytest.fixture
async def start(dsn: str, config: Config, aiohttp_client: MakeClient) -> AsyncIterator[Start]:
    """Start a server on this test's database: `await start(polling={"sweep_seconds": 1})`; returns a stranger's client.

    Whatever it answers is held against the description of the API.
    """
    async with starting(dsn, config, aiohttp_client) as begin:
        yield begin


@pytest.fixture
async def enter(sql: Sql) -> AsyncIterator[Enter]:
    """Log somebody in, by the shortest way: `alice = await enter(client, "alice")`."""
    async with entering(sql) as log_in:
        yield log_in


@pytest.fixture
async def alice(start: Start, enter: Enter) -> Person:
    """A person at a server without workers: nothing changes but by the test's own hand."""
    return await enter(await start(), "alice")


@pytest.fixture
async def bob(alice: Person, enter: Enter) -> Person:
    """Another person at Alice's server."""
    return await enter(alice.http, "bob")
