"""The database: identities that stay behind, statements that outlive their callers, and every way to fail."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import aiopg
import psycopg2
import pytest

from server.errors import ConfigurationError, ConstraintViolated, DatabaseUnavailable, StorageError
from server.storage.database import (
    Database,
    Role,
    connected,
    login_role,
    read_queries,
    run_directly,
    translated_errors,
)
from server.storage.embedded.cluster import EmbeddedPostgres
from server.storage.pool import back_off_seconds
from tests.faults.proxy import proxy_to
from tests.support.facts import until
from tests.support.postgres import Sql, execute

QUERIES = {
    "who": "SELECT current_user::text AS who, current_setting('request.jwt.claim.sub', true) AS subject,"
    " current_setting('request.jwt.claims', true) AS claims, current_setting('statement_timeout') AS timeout",
    "mine": "SELECT task_id FROM public.image_generations ORDER BY task_id",
    "pid": "SELECT pg_backend_pid() AS pid",
    "sleep": "SELECT pg_backend_pid() AS pid FROM pg_sleep(%(seconds)s)",
    "nonsense": "SELECT nothing FROM nowhere",
    "no_rows": "SET LOCAL search_path TO public",
    "divide": "SELECT 1/0 AS never",
}

Open = Callable[..., Awaitable[Database]]


@pytest.fixture
async def connect(dsn: str) -> AsyncIterator[Open]:
    """Open a database with the queries above beside its own."""
    opened: list[Database] = []

    async def open_one(pool_size: int = 1, timeout: float = 5.0) -> Database:
        database = Database(dsn, pool_size=pool_size, timeout=timeout)
        database._queries = {**database._queries, **QUERIES}
        await database.open()
        opened.append(database)
        return database

    yield open_one
    for database in opened:
        await database.close()


async def pid_of(database: Database) -> int:
    row = await database.fetch_one("pid", SimpleNamespace, retry=True)
    assert row is not None
    return int(row.pid)


def backends(sql: Sql) -> set[int]:
    """Who is connected to this test's database beside the test itself."""
    rows = sql(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    return {pid for (pid,) in rows}


def sleeping(sql: Sql) -> list[int]:
    rows = sql(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_sleep(%'"
        " AND state = 'active' AND pid <> pg_backend_pid()"
    )
    return [pid for (pid,) in rows]


def kill(sql: Sql, *pids: int) -> None:
    for pid in pids:
        assert sql("SELECT pg_terminate_backend(%s, 5000)", (pid,)) == [(True,)]


def add_task(sql: Sql, name: str) -> str:
    """Register somebody who has one task of the same name; returns the user's id."""
    user = str(sql("SELECT longpoll.register_account(%s, '')", (f"{name}@example.org",))[0][0])
    sql("INSERT INTO public.image_generations (user_id, task_id, prompt) VALUES (%s, %s, 'a lake')", (user, name))
    return user


# Identity ----------------------------------------------------------------------------------------------------------


async def test_two_users_on_one_connection_see_their_own_rows_only(connect: Open, sql: Sql) -> None:
    database = await connect(pool_size=1)
    users = {name: add_task(sql, name) for name in ("alice", "bob")}
    for _ in range(5):
        for name, user in users.items():
            rows = await database.fetch("mine", SimpleNamespace, user=user)
            assert [row.task_id for row in rows] == [name]
        rows = await database.fetch("mine", SimpleNamespace)
        assert [row.task_id for row in rows] == ["alice", "bob"], "the service sees everybody's"
    assert len(backends(sql)) == 1


async def test_a_statement_runs_as_the_role_and_user_of_its_caller(connect: Open) -> None:
    database = await connect()
    alice = "11111111-1111-1111-1111-111111111111"
    as_user = await database.fetch_one("who", SimpleNamespace, user=alice)
    as_service = await database.fetch_one("who", SimpleNamespace)
    assert as_user == SimpleNamespace(who=Role.APP, subject=alice, claims=f'{{"sub": "{alice}"}}', timeout="5s")
    assert as_service is not None
    assert as_service.who == Role.SERVICE
    assert not as_service.subject
    assert not as_service.claims


@pytest.mark.parametrize("query", ["who", "divide"])
async def test_nothing_of_an_identity_stays_on_the_connection(connect: Open, query: str) -> None:
    database = await connect(pool_size=1)
    with contextlib.suppress(StorageError):
        await database.fetch(query, SimpleNamespace, user="11111111-1111-1111-1111-111111111111")
    async with database._connection(database._connection_slots) as connection, connection.cursor() as cursor:
        await cursor.execute(QUERIES["who"])
        who, subject, claims, timeout = await cursor.fetchone()
        await cursor.execute("SELECT session_user")
        (login,) = await cursor.fetchone()
    assert who == login
    assert not subject
    assert not claims
    assert timeout == "0"


# Cancellation and time-outs ------------------------------------------------------------------------------------------


async def test_a_caller_that_leaves_cancels_neither_its_statement_nor_its_connection(connect: Open, sql: Sql) -> None:
    database = await connect(pool_size=2)
    before = {await pid_of(database)}
    for _ in range(200):
        caller = asyncio.create_task(database.fetch("sleep", SimpleNamespace, seconds=0.002))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    assert database.busy > 0
    await until(lambda: not database.busy)
    assert database.statements == 201
    after = backends(sql)
    assert before <= after
    assert len(after) <= 2


async def test_closing_waits_for_a_statement_whose_caller_left(connect: Open, sql: Sql) -> None:
    database = await connect()
    database._queries["write"] = (
        "WITH later AS MATERIALIZED (SELECT pg_sleep(0.2)) "
        "SELECT longpoll.register_account('late@example.org', '')::text AS user_id FROM later"
    )
    caller = asyncio.create_task(database.fetch("write", SimpleNamespace))
    await until(lambda: sleeping(sql))
    caller.cancel()
    await database.close()
    assert sql("SELECT count(*) FROM longpoll.accounts") == [(1,)]


async def test_a_statement_that_takes_too_long_is_an_error_and_keeps_its_connection(connect: Open, sql: Sql) -> None:
    database = await connect(timeout=1)
    pid = await pid_of(database)
    with pytest.raises(DatabaseUnavailable, match="took too long"):
        await database.fetch("sleep", SimpleNamespace, seconds=60)
    assert not sleeping(sql)
    assert await pid_of(database) == pid


async def test_a_statement_that_the_database_cancels_is_an_error_not_a_cancellation(connect: Open, sql: Sql) -> None:
    database = await connect()
    caller = asyncio.create_task(database.fetch("sleep", SimpleNamespace, seconds=60))
    (pid,) = await until(lambda: sleeping(sql))
    sql("SELECT pg_cancel_backend(%s)", (pid,))
    with pytest.raises(DatabaseUnavailable, match="canceled by the database"):
        await caller
    assert await pid_of(database) == pid


async def test_who_waits_too_long_for_a_connection_is_told_so(connect: Open) -> None:
    database = await connect(pool_size=1, timeout=1)
    async with database._connection(database._connection_slots):
        with pytest.raises(DatabaseUnavailable):
            await database.fetch("pid", SimpleNamespace)
    await until(lambda: _answers(database))


async def _answers(database: Database) -> bool:
    with contextlib.suppress(DatabaseUnavailable):
        return await pid_of(database) > 0
    return False


# Connections that die --------------------------------------------------------------------------------------------------


async def test_a_read_that_finds_its_connection_dead_is_tried_again(connect: Open, sql: Sql) -> None:
    database = await connect()
    pid = await pid_of(database)
    kill(sql, pid)
    assert await pid_of(database) != pid


async def test_a_read_succeeds_however_many_connections_have_died(connect: Open, sql: Sql) -> None:
    database = await connect(pool_size=5)
    sleepers = [asyncio.create_task(database.fetch("sleep", SimpleNamespace, seconds=0.2)) for _ in range(5)]
    await asyncio.gather(*sleepers)
    dying = backends(sql)
    assert len(dying) == 5
    kill(sql, *dying)
    assert await pid_of(database) not in dying


async def test_a_write_that_finds_its_connection_dead_is_not_tried_again(connect: Open, sql: Sql) -> None:
    database = await connect()
    kill(sql, await pid_of(database))
    before = database.statements
    with pytest.raises(DatabaseUnavailable):
        await database.fetch("pid", SimpleNamespace)
    assert database.statements == before + 1
    assert await pid_of(database)


async def test_a_connection_that_dies_under_a_statement_is_told_at_once(connect: Open, sql: Sql) -> None:
    database = await connect(timeout=60)
    caller = asyncio.create_task(database.fetch("sleep", SimpleNamespace, seconds=60))
    (pid,) = await until(lambda: sleeping(sql))
    kill(sql, pid)
    async with asyncio.timeout(10):
        with pytest.raises(DatabaseUnavailable):
            await caller


async def test_whoever_waits_for_a_connection_that_dies_gets_another_at_once(connect: Open, sql: Sql) -> None:
    """And isn't left waiting for one that never comes back."""
    database = await connect(pool_size=1, timeout=60)
    holder = asyncio.create_task(database.fetch("sleep", SimpleNamespace, seconds=60))
    (pid,) = await until(lambda: sleeping(sql))
    waiting = [asyncio.create_task(pid_of(database)) for _ in range(20)]
    await until(lambda: database.busy == 21)
    kill(sql, pid)
    async with asyncio.timeout(10):
        with pytest.raises(DatabaseUnavailable):
            await holder
        assert pid not in await asyncio.gather(*waiting)


async def test_a_connection_that_dies_while_another_is_made_costs_a_read_nothing(connect: Open, sql: Sql) -> None:
    database = await connect(pool_size=2)
    holder = asyncio.create_task(database.fetch("sleep", SimpleNamespace, seconds=0.1))
    (pid,) = await until(lambda: sleeping(sql))
    made, real_connect = asyncio.Event(), database._pool._connect

    async def slowly() -> aiopg.Connection:
        connection = await real_connect()
        await made.wait()
        return connection

    database._pool._connect = slowly
    readers = [asyncio.create_task(pid_of(database)) for _ in range(2)]
    await until(lambda: database._pool._growing)
    kill(sql, pid)
    with pytest.raises(DatabaseUnavailable):
        await holder
    made.set()
    assert pid not in await asyncio.gather(*readers)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux alone tells")
async def test_the_kernel_is_told_to_notice_within_three_seconds_that_the_other_end_has_vanished(dsn: str) -> None:
    """Without a word from either side, and with something sent that nobody acknowledges."""
    async with proxy_to(dsn) as proxy, connected(proxy.dsn(dsn), 5, "test") as connection:
        with socket.socket(fileno=os.dup(connection.raw.fileno())) as opened:
            options = [
                *((socket.SOL_SOCKET, socket.SO_KEEPALIVE), (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)),
                *((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL), (socket.IPPROTO_TCP, socket.TCP_KEEPCNT)),
                (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
            ]
            assert [opened.getsockopt(*option) for option in options] == [1, 2, 1, 3, 3000]


async def test_a_busy_pool_is_not_taken_for_a_database_out_of_reach(connect: Open) -> None:
    """Who waited too long is told so; whoever comes next isn't refused for that."""
    database = await connect(pool_size=1, timeout=1)
    async with database._connection_slots:
        with pytest.raises(DatabaseUnavailable):
            await pid_of(database)
    assert await pid_of(database)


@contextlib.contextmanager
def many_descriptors() -> Iterator[None]:
    """Let every new descriptor be 1024 or more, as in a server that holds a thousand requests."""
    taken: list[int] = []
    try:
        while not taken or taken[-1] < 1100:
            taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)


async def test_the_death_of_a_connection_with_a_high_descriptor_is_noticed(connect: Open, sql: Sql) -> None:
    """Without our stand-in for select() the statement waits out its time, and the descriptor's next owner is deaf."""
    with many_descriptors():
        database = await connect(timeout=60)
        assert (database._pool._free[0]._fileno or 0) >= 1024
        caller = asyncio.create_task(database.fetch("sleep", SimpleNamespace, seconds=60))
        (pid,) = await until(lambda: sleeping(sql))
        kill(sql, pid)
        async with asyncio.timeout(10):
            with pytest.raises(DatabaseUnavailable):
                await caller
            kill(sql, await pid_of(database))
            assert await pid_of(database)


@pytest.fixture
def outage(dsn: str, postgres: EmbeddedPostgres) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """Let nobody in to this test's database: `with outage(): ...`."""
    name = psycopg2.extensions.parse_dsn(dsn)["dbname"]

    @contextlib.contextmanager
    def begin() -> Iterator[None]:
        execute(postgres.dsn, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        execute(postgres.dsn, f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'")
        try:
            yield
        finally:
            execute(postgres.dsn, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    yield begin
    execute(postgres.dsn, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


async def test_while_the_database_is_down_few_try_to_connect_and_all_are_told(
    connect: Open, outage: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    database = await connect(pool_size=4)
    with outage():
        begun = time.monotonic()
        outcomes = await asyncio.gather(
            *(database.fetch("pid", SimpleNamespace, retry=True) for _ in range(300)), return_exceptions=True
        )
        doublings = 2 + int(time.monotonic() - begun) * 2
        assert {type(outcome) for outcome in outcomes} == {DatabaseUnavailable}
        assert 0 < database.connects_failed <= doublings, "each would have tried for itself"
    await until(lambda: _answers(database))
    assert database._pool.failures == 0


async def test_an_outage_of_hours_is_told_in_the_same_words(
    connect: Open, outage: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    database = await connect()
    with outage():
        database._pool.failures = 10_000
        with pytest.raises(DatabaseUnavailable):
            await database.fetch("pid", SimpleNamespace)
        assert database._pool._barred_until <= time.monotonic() + 2


@pytest.mark.parametrize(("failures", "longest"), [(1, 0.1), (2, 0.2), (5, 1.6), (6, 2), (7, 2), (100_000, 2)])
def test_pauses_grow_up_to_two_seconds_and_are_spread(failures: int, longest: float) -> None:
    pauses = [back_off_seconds(failures) for _ in range(1000)]
    assert longest * 0.5 <= min(pauses) < longest * 0.55
    assert longest * 0.95 < max(pauses) <= longest


async def test_a_database_that_cannot_be_reached_is_told_at_the_start(tmp_path: Any) -> None:
    database = Database(f"host={tmp_path} dbname=nothing", pool_size=1, timeout=5)
    with pytest.raises(DatabaseUnavailable):
        await database.open()
    await database.close()
    with pytest.raises(DatabaseUnavailable):
        async with connected(f"host={tmp_path} dbname=nothing", 5, "test"):
            pass


# Errors ------------------------------------------------------------------------------------------------------------------


async def test_a_broken_rule_is_told_by_its_name(connect: Open, sql: Sql) -> None:
    database = await connect()
    user = add_task(sql, "alice")
    with pytest.raises(ConstraintViolated) as caught:
        await database.fetch("register_account", SimpleNamespace, email="ALICE@example.org", password_hash="")
    assert caught.value.constraint == "accounts_email"
    assert "\n" not in str(caught.value)
    sql("UPDATE public.image_generations SET status = 'canceled' WHERE user_id = %s", (user,))
    database._queries["revive"] = "UPDATE public.image_generations SET status = 'pending'"
    with pytest.raises(ConstraintViolated) as caught:
        await database.fetch("revive", SimpleNamespace)
    assert caught.value.constraint == "terminal_is_final"


async def test_a_write_to_a_standby_finds_the_database_unavailable(connect: Open, sql: Sql) -> None:
    """As after a failover: whoever asks again later may be served."""
    sql(f"ALTER DATABASE {sql('SELECT current_database()')[0][0]} SET default_transaction_read_only = on")
    database = await connect()
    with pytest.raises(DatabaseUnavailable, match="standby"):
        await database.fetch("register_account", SimpleNamespace, email="alice@example.org", password_hash="")


@pytest.mark.parametrize(
    "broken",
    [
        psycopg2.DatabaseError("server closed the connection unexpectedly"),
        psycopg2.InterfaceError("connection already closed"),
        ConnectionResetError(),
        TimeoutError(),
    ],
)
def test_however_a_connection_breaks_the_database_is_unavailable(broken: Exception) -> None:
    with pytest.raises(DatabaseUnavailable, match=str(broken) or type(broken).__name__), translated_errors():
        raise broken


@pytest.mark.parametrize("value", ["a\0b", "\ud800", object(), 10**400])
async def test_a_value_that_cannot_be_sent_is_a_storage_error(connect: Open, value: object) -> None:
    """What the driver raises then (ValueError, UnicodeEncodeError, …) is no psycopg2.Error, and must not pass the border."""
    database = await connect()
    with pytest.raises(StorageError):
        await database.fetch("find_account", dict, email=value)
    assert await database.fetch("ping", dict) == [{"one": 1}]


async def test_a_statement_that_makes_no_sense_is_a_storage_error(connect: Open) -> None:
    database = await connect()
    for query in ("nonsense", "divide"):
        with pytest.raises(StorageError) as caught:
            await database.fetch(query, SimpleNamespace, retry=True)
        assert not isinstance(caught.value, DatabaseUnavailable)
    assert await database.fetch("no_rows", SimpleNamespace) == []
    assert await database.fetch_one("mine", SimpleNamespace) is None


async def test_a_role_that_the_policies_do_not_bind_is_refused(
    connect: Open, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await connect()
    await database.check_role()
    monkeypatch.setattr("server.storage.database._prefix", lambda _user, _timeout: "")  # stays the superuser
    with pytest.raises(ConfigurationError, match="row policies"):
        await database.check_role()


async def test_roles_that_cannot_be_taken_on_are_told_with_the_way_out(
    dsn: str, sql: Sql, postgres: EmbeddedPostgres
) -> None:
    role = f"stranger_{os.getpid()}"
    sql(f"CREATE ROLE {role} LOGIN")
    try:
        database = Database(psycopg2.extensions.make_dsn(dsn, user=role), pool_size=1, timeout=5)
        await database.open()
        with pytest.raises(ConfigurationError, match="python -m server migrate"):
            await database.check_role()
        await database.close()
    finally:
        sql(f"DROP ROLE {role}")


async def test_a_notification_tells_how_far_the_clocks_are_apart(connect: Open) -> None:
    database = await connect()
    await database.notify("nobody_listens", "")
    assert 0 < abs(database.clock_offset) < 5, "both clocks are this machine's"


async def test_several_statements_on_a_connection_of_ones_own_return_the_rows_of_the_last(dsn: str) -> None:
    async with connected(dsn, 5, "test") as connection:
        assert await run_directly(connection, "SELECT 1; SELECT 2", 5) == [(2,)]
        assert await run_directly(connection, "LISTEN nothing", 5) == []
        with pytest.raises(StorageError):
            await run_directly(connection, QUERIES["nonsense"], 5)


def test_a_file_of_statements_is_split_at_their_names() -> None:
    assert read_queries("-- head\n-- name: one\n-- why\nSELECT 1;\n\n-- name: two\nSELECT 2;\n") == {
        "one": "-- why\nSELECT 1;",
        "two": "SELECT 2;",
    }


def test_the_login_role_is_the_one_that_libpq_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    assert login_role("postgresql://somebody@localhost/x") == "somebody"
    monkeypatch.setattr("getpass.getuser", lambda: "me")
    monkeypatch.delenv("PGUSER", raising=False)
    assert login_role("dbname=x") == "me"
    monkeypatch.setenv("PGUSER", "postgres")
    assert login_role("dbname=x") == "postgres"
