"""What the tests stand on: a real Postgres, a fresh database for each test, and the real server on a real socket."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import argon2
import psycopg2
import pytest
import uvloop
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from server.app import build_app
from server.commands import serve
from server.config import Config
from server.runtime import file_limit
from server.storage.embedded.cluster import EmbeddedPostgres
from server.storage.migrations import migrate
from server.storage.users import User
from server.telemetry import logs
from server.web import keys
from tests.contract import Contract
from tests.faults.figures import pytest_terminal_summary  # noqa: F401 - for pytest, here where it looks

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
# Passwords of tests need no protection, and a server hashes one at each start.
_CHEAP_HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
_numbers = itertools.count(1)
# What one of the hundred Pythons that a run starts has compiled, the others find, whatever the environment says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
CONTRACT = web.AppKey("contract", Contract)


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
def postgres(data_folder: Path) -> Iterator[EmbeddedPostgres]:
    """The embedded Postgres, or the one whose binaries `LONGPOLL_TEST_POSTGRES_BIN` names."""
    binaries = os.environ.get("LONGPOLL_TEST_POSTGRES_BIN")
    with EmbeddedPostgres(data_folder, postgres_bin=Path(binaries) if binaries else None, settings=_QUICK) as embedded:
        yield embedded


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """The name of a database with the schema in it, to be copied."""
    execute(postgres.dsn, "CREATE DATABASE template_migrated")
    asyncio.run(migrate(database_of(postgres.dsn, "template_migrated")))
    return "template_migrated"


@pytest.fixture
def empty_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database with nothing in it."""
    yield from _fresh_database(postgres.dsn, "template1")


@pytest.fixture
def dsn(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A database with the schema and no rows, for this test alone."""
    yield from _fresh_database(postgres.dsn, template)


def _fresh_database(admin_dsn: str, template: str) -> Iterator[str]:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    execute(admin_dsn, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    try:
        yield database_of(admin_dsn, name)
    finally:
        execute(admin_dsn, f"DROP DATABASE {name} WITH (FORCE)")


def database_of(dsn: str, name: str) -> str:
    """Return the DSN of another database of the same server."""
    return psycopg2.extensions.make_dsn(dsn, dbname=name)


def execute(dsn: str, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    """Run a statement as the superuser, over a connection of its own, committed; returns the rows."""
    with closing(psycopg2.connect(dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []


Sql = Callable[..., list[tuple[Any, ...]]]


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


async def until(condition: Callable[[], Any] | Callable[[], Awaitable[Any]], seconds: float = 15) -> Any:
    """Wait for a fact: return what the condition returns as soon as that is true; fail if it never is."""
    async with asyncio.timeout(seconds):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.005)


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


class ProductionServer(TestServer):
    """A real socket before the runner that production uses; aiohttp's own test server runs handlers differently."""

    async def _make_runner(self, **_options: Any) -> web.AppRunner:
        return serve.make_runner(self.app)


Start = Callable[..., Awaitable[TestClient[web.Request, web.Application]]]


MakeClient = Callable[..., Awaitable[TestClient[web.Request, web.Application]]]


@pytest.fixture
async def start(dsn: str, config: Config, aiohttp_client: MakeClient) -> AsyncIterator[Start]:
    """Start a server on this test's database: `await start(polling={"sweep_seconds": 1})`; returns a stranger's client.

    Whatever it answers is held against the description of the API.
    """
    async with starting(dsn, config, aiohttp_client) as begin:
        yield begin


@asynccontextmanager
async def starting(dsn: str, config: Config, make_client: MakeClient) -> AsyncIterator[Start]:
    """Do what `start` promises, on whichever loop."""
    logs.configure(config.logging)
    contracts: list[Contract] = []

    async def begin(use_dsn: str = dsn, **sections: Any) -> TestClient[web.Request, web.Application]:
        app = build_app(config.replace(**sections), use_dsn)
        app[keys.USERS]._hasher = _CHEAP_HASHER
        contract = app[CONTRACT] = Contract(app[keys.DESCRIPTION])
        contracts.append(contract)
        app.on_response_prepare.append(contract.check)
        return await make_client(ProductionServer(app))

    yield begin
    assert [fault for contract in contracts for fault in contract.faults] == []


class Person:
    """Somebody who is logged in to a server, with the calls that tests make most."""

    def __init__(self, client: TestClient[web.Request, web.Application], user: User) -> None:
        self.http = client
        self.app: web.Application = client.server.app  # type: ignore[attr-defined]
        self.user = user

    async def create(self, prompt: str = "a lake", **body: Any) -> str:
        """Create a task; returns its id."""
        async with self.http.post("/api/generate", json={"prompt": prompt, **body}) as reply:
            assert reply.status == 202, await reply.text()
            return str((await reply.json())["taskId"])

    async def status(self, task_id: str, headers: dict[str, str] | None = None, **query: Any) -> Any:
        """Ask for a task's status; returns the body of a 200."""
        async with self.poll(task_id, headers=headers, **query) as reply:
            assert reply.status == 200, await reply.text()
            return await reply.json()

    def poll(self, task_id: str, headers: dict[str, str] | None = None, **query: Any) -> Any:
        """Begin a status request, to be awaited."""
        return self.http.get("/api/generate/status", params={"taskId": task_id, **query}, headers=headers)

    @property
    def held(self) -> int:
        """How many polls the server holds."""
        return len(self.app[keys.WAITERS])

    def metric(self, name: str, **labels: str) -> float:
        """Return a figure of the server's metrics."""
        return self.app[keys.METRICS].registry.get_sample_value(name, labels) or 0.0


Enter = Callable[..., Awaitable[Person]]


@pytest.fixture
async def enter(sql: Sql) -> AsyncIterator[Enter]:
    """Log somebody in, by the shortest way: `alice = await enter(client, "alice")`."""
    async with entering(sql) as log_in:
        yield log_in


@asynccontextmanager
async def entering(sql: Sql) -> AsyncIterator[Enter]:
    """Do what `enter` promises, on whichever loop."""
    clients: list[TestClient[web.Request, web.Application]] = []

    async def log_in(client: TestClient[web.Request, web.Application], name: str = "alice") -> Person:
        email = f"{name}@example.org"
        rows = sql("SELECT user_id::text FROM longpoll.accounts WHERE email = %s", (email,))
        user_id = (rows or sql("SELECT longpoll.register_account(%s, 'no hash')::text", (email,)))[0][0]
        own = TestClient(client.server)  # a cookie jar of one's own
        clients.append(own)
        await own.start_server()
        secret = await client.server.app[keys.SESSIONS].create(User(user_id, email))  # type: ignore[attr-defined]
        own.session.cookie_jar.update_cookies({"longpoll": secret}, URL(str(client.server.make_url("/"))))
        return Person(own, User(user_id, email))

    yield log_in
    for client in clients:
        await client.session.close()


@pytest.fixture
async def alice(start: Start, enter: Enter) -> Person:
    """A person at a server without workers: nothing changes but by the test's own hand."""
    return await enter(await start(), "alice")


@pytest.fixture
async def bob(alice: Person, enter: Enter) -> Person:
    """Another person at Alice's server."""
    return await enter(alice.http, "bob")
