"""Sessions and tokens: found without a query, and gone everywhere the moment they are revoked."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from server.errors import DatabaseUnavailable
from server.storage.database import Database
from server.storage.listener import Listener
from server.storage.logins import Scope
from server.storage.sessions import MOST_SESSIONS, OFFLINE_GRACE_SECONDS, UNPROVEN_SECONDS, Sessions
from server.storage.tokens import Tokens
from server.storage.users import User
from server.storage.uses import Uses
from server.telemetry.metrics import Metrics
from tests.support import rows
from tests.support.facts import until
from tests.support.postgres import Sql

shared_dsn, dsn = rows.shared_dsn, rows.dsn


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    """The database below the sessions; `statements` counts what it was asked."""
    database = Database(dsn, pool_size=4, timeout=5)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def sessions(database: Database) -> Sessions:
    """Sessions whose revocations are heard."""
    sessions = make(database)
    sessions.on_listener_restored()
    return sessions


@pytest.fixture
def alice(sql: Sql) -> User:
    return User(rows.add_user(sql, "alice"), "alice@example.org")


class Clock:
    """The time as the sessions see it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let time pass: `clock.ahead += 60`."""
    clock = Clock()
    monkeypatch.setattr("server.storage.sessions.time", clock)
    return clock


def make(database: Database, *, days: float = 1, cache_size: int = 1000) -> Sessions:
    return Sessions(database, Uses(database, session_seconds=days * 86_400), days=days, cache_size=cache_size)


async def who(sessions: Sessions, secret: str) -> User | None:
    """Return whose secret this is."""
    login = await sessions.find(secret)
    return None if login is None else login.user


def key_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@pytest.fixture
def gate(database: Database, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Let something happen before a read's answer arrives (`gate.after`), or nothing be answered (`gate.down`)."""
    gate = SimpleNamespace(after=None, down=False)
    real_fetch = database.fetch

    async def fetch(query: str, *arguments: Any, **parameters: Any) -> Any:
        if gate.down:
            raise DatabaseUnavailable("gone")
        if query != "find_credentials":
            return await real_fetch(query, *arguments, **parameters)
        found = await real_fetch(query, *arguments, **parameters)
        if gate.after is not None:
            await gate.after()
        return found

    monkeypatch.setattr(database, "fetch", fetch)
    return gate


async def test_who_is_known_is_found_without_a_query(sessions: Sessions, database: Database, alice: User) -> None:
    secret = await sessions.create(alice)
    assert await who(sessions, secret) == alice
    before = database.statements
    for _ in range(100):
        assert await who(sessions, secret) == alice
    assert database.statements == before


async def test_a_thousand_finds_at_once_share_one_read(sessions: Sessions, database: Database, alice: User) -> None:
    secrets = [await sessions.create(alice) for _ in range(20)]
    before = database.statements
    found = await asyncio.gather(*(who(sessions, secret) for secret in secrets * 50))
    assert found == [alice] * 1000
    assert database.statements == before + 1


async def test_a_find_that_is_canceled_does_not_disturb_the_others(sessions: Sessions, alice: User) -> None:
    secret = await sessions.create(alice)
    leaving, staying = (asyncio.create_task(who(sessions, secret)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == alice
    assert not sessions._reading


@pytest.mark.parametrize("secret", ["", "unknown", "\udcff\udc80", "\ud800", "\x00", "ß" * 5000, "lp_unknown"])
async def test_a_secret_that_nobody_has_finds_nobody(sessions: Sessions, secret: str) -> None:
    assert await who(sessions, secret) is None
    assert len(sessions) == 0


async def test_the_secret_itself_is_kept_nowhere(sessions: Sessions, alice: User, sql: Sql) -> None:
    secret = await sessions.create(alice)
    assert sql("SELECT encode(secret_hash, 'hex') FROM longpoll.sessions") == [(key_of(secret),)]
    await who(sessions, secret)
    assert secret not in sessions._known


# Revoking ----------------------------------------------------------------------------------------------------------


async def test_a_revoked_session_is_gone_here_at_once(sessions: Sessions, alice: User) -> None:
    secret = await sessions.create(alice)
    await who(sessions, secret)
    await sessions.revoke(secret)
    assert await who(sessions, secret) is None


async def test_a_row_deleted_by_sql_is_forgotten_by_every_process(
    dsn: str, database: Database, sessions: Sessions, alice: User, sql: Sql
) -> None:
    others = [sessions, make(database, cache_size=10)]
    listeners = [
        Listener(
            dsn,
            database,
            {"session_revoked": each.forget},
            restored=each.on_listener_restored,
            lost=each.on_listener_lost,
            heartbeat_seconds=10,
            timeout=5,
            metrics=Metrics(),
        )
        for each in others
    ]
    running = [asyncio.create_task(listener.run()) for listener in listeners]
    for listener in listeners:
        await listener.until_healthy()
    secret, other = await sessions.create(alice), await sessions.create(alice)
    token_secret, _ = await Tokens(database, sessions.forget).create(alice, "script", Scope.WRITE, None)
    for each in others:
        for known in (secret, other, token_secret):
            assert await who(each, known) == alice
    sql("DELETE FROM longpoll.sessions WHERE encode(secret_hash, 'hex') = %s", (key_of(secret),))
    sql("DELETE FROM longpoll.tokens")
    await until(lambda: [len(each) for each in others] == [1, 1])
    before = database.statements
    assert await who(sessions, other) == alice
    assert database.statements == before
    assert [await who(each, secret) for each in others] == [None, None]
    for task in running:
        task.cancel()
    await asyncio.wait(running)


@pytest.mark.parametrize("moment", ["wanted", "reading"])
async def test_a_revocation_that_comes_during_the_read_is_not_overwritten(
    sessions: Sessions, alice: User, gate: SimpleNamespace, moment: str
) -> None:
    """The row was still there when it was read, and the notification comes before the answer."""
    secret = await sessions.create(alice)

    async def revoked() -> None:
        sessions.forget(key_of(secret))

    gate.after = revoked
    find = asyncio.create_task(who(sessions, secret))
    if moment == "wanted":
        gate.after = None
        await asyncio.sleep(0)
        await revoked()
    assert await find is None
    assert len(sessions) == 0
    assert not sessions._revoked_meanwhile


async def test_a_find_while_the_session_is_being_revoked_does_not_bring_it_back(
    sessions: Sessions, database: Database, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = await sessions.create(alice)
    real_fetch = database.fetch

    async def find_first(query: str, *arguments: Any, **parameters: Any) -> Any:
        if query == "revoke_session":
            assert await who(sessions, secret) == alice
        return await real_fetch(query, *arguments, **parameters)

    monkeypatch.setattr(database, "fetch", find_first)
    await sessions.revoke(secret)
    assert len(sessions) == 0
    assert await who(sessions, secret) is None


async def test_a_read_that_failed_leaves_no_trace(sessions: Sessions, alice: User, gate: SimpleNamespace) -> None:
    secret = await sessions.create(alice)
    gate.down = True
    find = asyncio.create_task(who(sessions, secret))
    await asyncio.sleep(0)
    sessions.forget(key_of(secret))
    with pytest.raises(DatabaseUnavailable):
        await find
    gate.down = False
    assert not sessions._revoked_meanwhile
    assert await who(sessions, secret) == alice, "the row is still there"


# Doubt ---------------------------------------------------------------------------------------------------------------


async def test_while_revocations_may_go_unheard_a_secret_is_looked_up_now_and_then(
    sessions: Sessions, database: Database, alice: User, sql: Sql, clock: Clock
) -> None:
    secret = await sessions.create(alice)
    await who(sessions, secret)
    sessions.on_listener_lost()
    before = database.statements
    await who(sessions, secret)
    assert database.statements == before, "read a moment ago"
    clock.ahead += UNPROVEN_SECONDS
    assert await who(sessions, secret) == alice
    assert database.statements == before + 1
    sql("DELETE FROM longpoll.sessions")
    clock.ahead += UNPROVEN_SECONDS
    assert await who(sessions, secret) is None


async def test_what_was_known_before_is_read_again_when_revocations_are_heard_again(
    sessions: Sessions, database: Database, alice: User, sql: Sql
) -> None:
    secret, revoked = await sessions.create(alice), await sessions.create(alice)
    for each in (secret, revoked):
        await who(sessions, each)
    sessions.on_listener_lost()
    sql("DELETE FROM longpoll.sessions WHERE encode(secret_hash, 'hex') = %s", (key_of(revoked),))
    sessions.on_listener_restored()
    assert await who(sessions, revoked) is None
    assert await who(sessions, secret) == alice
    before = database.statements
    assert await who(sessions, secret) == alice
    assert database.statements == before, "once is enough"


async def test_a_read_that_began_before_an_outage_proves_nothing(
    sessions: Sessions, database: Database, alice: User, gate: SimpleNamespace
) -> None:
    secret = await sessions.create(alice)

    async def outage() -> None:
        sessions.on_listener_lost()
        sessions.on_listener_restored()

    gate.after = outage
    assert await who(sessions, secret) == alice
    gate.after = None
    before = database.statements
    assert await who(sessions, secret) == alice
    assert database.statements == before + 1


async def test_while_the_database_is_away_who_was_known_goes_on_for_a_while(
    sessions: Sessions, alice: User, gate: SimpleNamespace, clock: Clock
) -> None:
    secret = await sessions.create(alice)
    await who(sessions, secret)
    sessions.on_listener_lost()
    gate.down = True
    clock.ahead += OFFLINE_GRACE_SECONDS - 1
    assert await who(sessions, secret) == alice
    with pytest.raises(DatabaseUnavailable):
        await who(sessions, "a stranger's")
    clock.ahead += 2
    with pytest.raises(DatabaseUnavailable):
        await who(sessions, secret)


# Bounds --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("away", [False, True])
async def test_a_session_ends_with_its_time(
    database: Database, alice: User, gate: SimpleNamespace, clock: Clock, sql: Sql, *, away: bool
) -> None:
    """Whether it is found in memory, or the database is away and it may go on for a while."""
    sessions = make(database, days=60 / 86_400)
    sessions.on_listener_restored()
    assert sessions.max_age == 60
    secret = await sessions.create(alice)
    assert await who(sessions, secret) == alice
    if away:
        sessions.on_listener_lost()
        gate.down = True
    sql("UPDATE longpoll.sessions SET expires_at = now()")
    clock.ahead += 61
    assert await who(sessions, secret) is None


async def test_a_session_whose_end_another_process_has_put_off_goes_on(
    sessions: Sessions, alice: User, sql: Sql, clock: Clock
) -> None:
    secret = await sessions.create(alice)
    assert await who(sessions, secret) == alice
    sql("UPDATE longpoll.sessions SET expires_at = expires_at + interval '1 day'")
    clock.ahead += 86_401
    assert await who(sessions, secret) == alice


async def test_of_one_user_only_so_many_sessions_last(sessions: Sessions, alice: User, sql: Sql) -> None:
    """Whoever logs in from a script each time can't fill the table."""
    bob = User(rows.add_user(sql, "bob"), "bob@example.org")
    others = await sessions.create(bob)
    first = await sessions.create(alice)
    sql(
        "INSERT INTO longpoll.sessions (secret_hash, user_id, expires_at)"
        " SELECT sha256(number::text::bytea), %s, now() + interval '1 day' FROM generate_series(1, %s) AS number",
        (alice.user_id, MOST_SESSIONS - 1),
    )
    sql("UPDATE longpoll.sessions SET last_used_at = now() - interval '1 day' WHERE agent = ''")
    sql(
        "UPDATE longpoll.sessions SET last_used_at = now() - interval '2 days' WHERE encode(secret_hash, 'hex') = %s",
        (key_of(first),),
    )
    newest = await sessions.create(alice)
    assert [await who(sessions, secret) for secret in (first, newest, others)] == [None, alice, bob]
    assert len(await sessions.list(alice)) == MOST_SESSIONS


async def test_an_expired_row_finds_nobody(sessions: Sessions, alice: User, sql: Sql) -> None:
    secret = await sessions.create(alice)
    sql("UPDATE longpoll.sessions SET expires_at = now() - interval '1 second'")
    assert await who(sessions, secret) is None


async def test_no_more_is_remembered_than_the_cache_holds(database: Database, alice: User) -> None:
    sessions = make(database, cache_size=3)
    sessions.on_listener_restored()
    secrets = [await sessions.create(alice) for _ in range(5)]
    for secret in secrets:
        assert await who(sessions, secret) == alice
    assert len(sessions) == 3
    assert set(sessions._known) == {key_of(secret) for secret in secrets[2:]}
