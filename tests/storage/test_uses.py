"""Sessions slide: while they are used their end is put off, rarely and on no request's way."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from server.errors import DatabaseUnavailable
from server.storage.logins import SESSION_USE_SECONDS, Login
from server.web import keys
from tests.support import parked
from tests.support.facts import until
from tests.support.parked import changed, follow
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql
from tests.support.raw_http import connect_to
from tests.web.test_login import ALICE, cookie_of, post, register

config = parked.config

DAY = 86_400
PAGE = {"Accept": "text/html"}


def age(sql: Sql, days: int) -> None:
    """Make every session as old as that, as if it hadn't been used since."""
    sql(
        "UPDATE longpoll.sessions SET expires_at = now() + make_interval(days => 14 - %s),"
        " last_used_at = now() - make_interval(days => %s)",
        (days, days),
    )


def days_left(sql: Sql) -> float:
    return float(sql("SELECT extract(epoch FROM expires_at - now()) / 86400 FROM longpoll.sessions")[0][0])


def known(person: Person) -> Login:
    (login,) = person.app[keys.SESSIONS]._known.values()
    return login


async def test_a_session_that_is_used_goes_on(start: Start, enter: Enter, sql: Sql) -> None:
    alice = await enter(await start())
    age(sql, 10)
    async with alice.http.get("/api/generate/tasks") as reply:
        assert reply.status == 200
    await until(lambda: days_left(sql) > 13.9)
    await until(lambda: known(alice).expires_at > dt.datetime.now(dt.UTC).timestamp() + 13.9 * DAY)


async def test_a_session_that_is_not_used_ends(start: Start, enter: Enter, sql: Sql) -> None:
    alice = await enter(await start())
    age(sql, 15)
    async with alice.http.get("/api/generate/tasks") as reply:
        assert reply.status == 401
    living = "SELECT count(*) FROM longpoll.sessions WHERE expires_at > now()"
    assert sql(living) == [(0,)], "nothing brings it back"


async def test_polling_alone_keeps_a_session_alive(alice: Person, sql: Sql) -> None:
    """Also by polls that are asked again without aiohttp."""
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await follow(alice, connection, task_id, 1)
        await changed(connection, sql)
        login = known(alice)
        login.use_due_at = 0.0
        before = sql("SELECT expires_at FROM longpoll.sessions")
        await follow(alice, connection, task_id, 2)
        await until(lambda: sql("SELECT expires_at FROM longpoll.sessions") > before)
        await changed(connection, sql)


async def test_a_use_is_written_down_once_a_day(start: Start, enter: Enter) -> None:
    alice = await enter(await start(database={"heartbeat_seconds": 60.0}, polling={"sweep_seconds": 300.0}))
    alice.stop_reading_places()
    task_id = await alice.create()
    await alice.status(task_id, wait=0)
    login = known(alice)
    assert abs(login.use_due_at - SESSION_USE_SECONDS - dt.datetime.now(dt.UTC).timestamp()) < 60
    await until(lambda: not alice.app[keys.DATABASE].busy)
    before = alice.app[keys.DATABASE].statements
    for _ in range(5):
        await alice.status(task_id, wait=0)
    assert alice.app[keys.DATABASE].statements == before
    assert not alice.app[keys.SESSIONS]._uses._waiting


async def test_many_uses_are_written_in_one_statement(start: Start, enter: Enter, sql: Sql) -> None:
    client = await start()
    people = [await enter(client, name) for name in ("alice", "bob", "carol")]
    age(sql, 3)
    uses = people[0].app[keys.SESSIONS]._uses
    written: list[int] = []
    real = uses._write

    async def write(logins: list[Login]) -> None:
        written.append(len(logins))
        await real(logins)

    uses._write = write  # type: ignore[method-assign]
    for person in people:
        async with person.http.get("/api/generate/tasks") as reply:
            assert reply.status == 200
    await until(lambda: sum(written) == 3)
    assert written == [3]
    await until(lambda: days_left(sql) > 13.9)


async def test_a_use_that_could_not_be_written_disturbs_nobody(
    alice: Person, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again when the session is used next, but for a minute."""
    database, tried = alice.app[keys.DATABASE], []
    real_fetch = database.fetch

    async def fetch(query: str, *arguments: Any, **parameters: Any) -> Any:
        if query == "note_uses":
            tried.append(query)
            if len(tried) == 1:
                raise DatabaseUnavailable("gone")
        return await real_fetch(query, *arguments, **parameters)

    monkeypatch.setattr(database, "fetch", fetch)
    age(sql, 3)
    for attempt in (1, 2):
        async with alice.http.get("/api/generate/tasks") as reply:
            assert reply.status == 200
        await until(lambda attempt=attempt: len(tried) == attempt)  # type: ignore[misc]
        known(alice).use_due_at = 0.0
    await until(lambda: days_left(sql) > 13.9)


async def test_a_row_that_somebody_else_has_locked_is_left_out(alice: Person, sql: Sql) -> None:
    age(sql, 3)
    sql("BEGIN; SELECT FROM longpoll.sessions FOR UPDATE")
    uses = alice.app[keys.SESSIONS]._uses
    async with alice.http.get("/api/generate/tasks") as reply:
        assert reply.status == 200
    await uses._write([known(alice)])  # would wait, and end by its time-out
    sql("ROLLBACK")
    assert known(alice).expires_at < dt.datetime.now(dt.UTC).timestamp() + 12 * DAY


async def test_a_page_has_the_browser_keep_its_cookie(start: Start, sql: Sql) -> None:
    """Once for each time that the session's end is put off, and not with what programs ask."""
    client = await start()
    secret = cookie_of(await register(client)).value
    client.session.cookie_jar.clear()
    own = {"Cookie": f"longpoll={secret}", **PAGE}

    async def cookie(url: str) -> Any:
        async with client.get(url, headers=own) as reply:
            assert reply.status == 200
            return next((each for each in reply.cookies.values() if each.key.startswith("longpoll-")), None)

    assert await cookie("/api/generate/tasks") is None
    first = await cookie("/")
    assert (first.value, first["max-age"], first["httponly"], first["samesite"]) == (
        secret, str(14 * DAY), True, "Lax",
    )  # fmt: skip
    assert await cookie("/") is None
    age(sql, 3)
    await until(lambda: not all(each.proven for each in client.server.app[keys.SESSIONS]._known.values()))  # type: ignore[attr-defined]
    assert (await cookie("/tasks")).value == secret
    await until(lambda: days_left(sql) > 13.9)


async def test_a_page_brings_no_cookie_of_another_login_back(start: Start) -> None:
    client = await start()
    await register(client)
    async with client.get("/", headers=PAGE) as reply:
        assert reply.status == 200
    await post(client, "/api/auth/logout", 204)
    async with client.get("/docs", headers=PAGE) as reply:
        assert not reply.cookies
    reply = await post(client, "/api/auth/login", 401, data={**ALICE, "password": "wrong"}, headers=PAGE)
    assert "Set-Cookie" not in reply.headers
