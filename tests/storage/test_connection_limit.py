"""Fewer connections than the pool wants: who may not connect waits for a connection that is open."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import SimpleNamespace

import pytest
from psycopg2.extensions import make_dsn

from server.app import build_app
from server.commands.serve import make_runner
from server.config import Config
from server.errors import ConfigurationError, DatabaseUnavailable
from server.storage.database import Database
from tests.support.facts import until
from tests.support.people import Enter, Person, Start
from tests.support.pooler import pooler
from tests.support.postgres import Sql, execute

QUERIES = {
    "nap": "SELECT pg_backend_pid() AS pid FROM pg_sleep(%(seconds)s)",
    "wait": "SELECT 1 AS one FROM pg_advisory_xact_lock_shared(7)",
}
Open = Callable[..., Awaitable[Database]]
Limit = Callable[[int], None]


@pytest.fixture
def login(dsn: str) -> Iterator[str]:
    """The DSN of a plain login that may act as the server's roles: a superuser is bound by no limit."""
    role = f"limited_{os.getpid()}"
    execute(dsn, f"CREATE ROLE {role} LOGIN; GRANT longpoll_app, longpoll_service TO {role}")
    yield make_dsn(dsn, user=role)
    execute(dsn, f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '{role}'")
    execute(dsn, f"DROP ROLE {role}")


@pytest.fixture
def limit(login: str, sql: Sql) -> Limit:
    """Set how many connections the login may have: `limit(6)`."""

    def set_limit(most: int) -> None:
        sql(f"ALTER ROLE limited_{os.getpid()} CONNECTION LIMIT {most}")

    return set_limit


@pytest.fixture
async def connect() -> AsyncIterator[Open]:
    """Open a database that may also sleep."""
    opened: list[Database] = []

    async def open_one(dsn: str, pool_size: int = 8) -> Database:
        database = Database(dsn, pool_size=pool_size, timeout=15)
        database._queries = {**database._queries, **QUERIES}
        await database.open()
        opened.append(database)
        return database

    yield open_one
    for database in opened:
        await database.close()


async def nap(database: Database, seconds: float = 0.005) -> int:
    row = await database.fetch_one("nap", SimpleNamespace, seconds=seconds)
    assert row is not None
    return int(row.pid)


@pytest.mark.parametrize("most", [1, 2, 6])
async def test_a_burst_is_carried_out_by_the_connections_there_are(
    connect: Open, login: str, limit: Limit, most: int
) -> None:
    limit(most)
    database = await connect(login)
    await asyncio.gather(*(nap(database) for _ in range(100)))
    assert database.connections == most
    assert 0 < database.connects_failed < 20, "a failure bars connecting for a while"


@pytest.mark.parametrize("whose", ["database", "pooler"])
async def test_whoever_sets_the_limit(connect: Open, dsn: str, login: str, sql: Sql, whose: str) -> None:
    if whose == "database":
        (name,) = sql("SELECT current_database()")[0]
        sql(f"ALTER DATABASE {name} CONNECTION LIMIT 4")  # the test's own connection, a superuser's, counts too
        database = await connect(login)
        await asyncio.gather(*(nap(database) for _ in range(50)))
        assert database.connections == 3
    else:
        with pooler(login, max_clients=4) as pooled:
            database = await connect(pooled)
            await asyncio.gather(*(nap(database) for _ in range(50)))
            assert database.connections == 4
            await database.close()
    assert database.connects_failed


async def test_heartbeats_do_not_wait_for_statements(connect: Open, login: str, limit: Limit, sql: Sql) -> None:
    limit(3)
    database = await connect(login)
    await asyncio.gather(*(nap(database) for _ in range(20)))  # the limit is known from here on
    sql("SELECT pg_advisory_lock(7)")
    waits = [asyncio.create_task(database.fetch_one("wait", SimpleNamespace)) for _ in range(6)]
    await until(lambda: len(database._pool._used) == 2 and database._pool._barred_until < time.monotonic())
    await database.notify("nobody_listens", "")
    assert not any(each.done() for each in waits)
    sql("SELECT pg_advisory_unlock(7)")
    await asyncio.gather(*waits)


async def test_a_limit_that_is_lifted_is_noticed(connect: Open, login: str, limit: Limit) -> None:
    limit(2)
    database = await connect(login)
    await asyncio.gather(*(nap(database) for _ in range(20)))
    assert database.connections == 2
    limit(-1)

    async def grown() -> bool:
        await asyncio.gather(*(nap(database) for _ in range(20)))
        return database.connections > 2

    await until(grown)


async def test_who_waits_in_vain_is_told_what_for(connect: Open, login: str, limit: Limit) -> None:
    limit(1)
    database = await connect(login)
    sleeper = asyncio.create_task(nap(database, 1.5))
    await until(lambda: database._pool._used)
    database._timeout = 0.2
    with pytest.raises(DatabaseUnavailable, match="none of 1 open connections was free in time"):
        await nap(database)
    await sleeper


async def test_no_request_of_a_burst_is_refused(start: Start, enter: Enter, login: str, limit: Limit) -> None:
    """Of 60 tasks that are created at once, again and again until all is in use: room for a listener and five connections."""
    limit(6)
    person = await enter(await start(login))
    async with asyncio.timeout(30):
        while not person.metric("longpoll_database_connects_failed"):
            statuses = await asyncio.gather(*(_create(person) for _ in range(60)))
            assert set(statuses) == {202}
    async with person.http.get("/readyz") as reply:
        assert reply.status == 200
    assert person.metric("longpoll_database_connections") == 5
    assert person.metric("longpoll_database_connects_failed") > 0
    assert person.metric("longpoll_listener_reconnects_total") == 0


async def test_a_listener_and_one_connection_are_enough(start: Start, enter: Enter, login: str, limit: Limit) -> None:
    limit(2)
    person = await enter(await start(login))
    assert set(await asyncio.gather(*(_create(person) for _ in range(20)))) == {202}
    assert person.metric("longpoll_database_connections") == 1


async def test_without_room_for_a_listener_the_start_says_so(
    login: str, limit: Limit, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And doesn't blame a pooler."""
    limit(1)
    monkeypatch.setattr("server.storage.listener._READY_SECONDS", 1.0)
    runner = make_runner(build_app(config, login))
    try:
        with pytest.raises(
            ConfigurationError, match=r"LISTEN doesn't work: no connection .* too many connections for role"
        ):
            await runner.setup()
    finally:
        await runner.cleanup()


async def _create(person: Person) -> int:
    async with person.http.post("/api/generate", json={"prompt": "a lake"}) as reply:
        return int(reply.status)
