"""A poll ends with the login or the token that it came with, wherever and however that is ended."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.errors import DatabaseUnavailable
from server.storage.sessions import digest
from server.web import keys
from tests.support.facts import until
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql
from tests.support.raw_http import connect_to, secret_of, status_request

HOLDS = {"sweep_seconds": 300.0}
# How a request is held: parked, by a coroutine, as a batch, as a create that waits.
Ask = Callable[[Person, str, dict[str, str]], Any]
WAYS: dict[str, tuple[bool, Ask]] = {
    "parked": (True, lambda who, task, headers: who.poll(task, version=1, headers=headers)),
    "coroutine": (False, lambda who, task, headers: who.poll(task, version=1, headers=headers)),
    "no version": (False, lambda who, task, headers: who.poll(task, headers=headers)),
    "batch": (
        True,
        lambda who, task, headers: who.http.get(
            "/api/generate/status/batch", params={"task": f"{task}:1", "gather": "2"}, headers=headers
        ),
    ),
    "create": (
        True,
        lambda who, _task, headers: who.http.post(
            "/api/generate", json={"prompt": "a lake"}, headers={**headers, "Prefer": "wait=30"}
        ),
    ),
}


async def ask(person: Person, way: str, task_id: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Send a request that is held; returns status and body of the reply."""
    async with WAYS[way][1](person, task_id, headers or {}) as reply:
        return reply.status, await reply.text()


async def held(person: Person, *requests: Awaitable[Any]) -> list[asyncio.Task[Any]]:
    """Begin requests and return when the server holds them all."""
    before = person.held
    tasks = [asyncio.ensure_future(request) for request in requests]
    await until(lambda: person.held == before + len(tasks))
    return tasks


def is_refused(answer: tuple[int, str]) -> bool:
    """Whether it is a 401 without any state."""
    status, text = answer
    assert status == 401, text
    assert json.loads(text)["code"] == "not_signed_in"
    assert "taskId" not in text
    assert "version" not in text
    return True


@pytest.mark.parametrize("way", WAYS)
async def test_a_logout_ends_the_polls_of_that_login_and_no_others(start: Start, enter: Enter, way: str) -> None:
    client = await start(polling={"park": WAYS[way][0]})
    alice, phone, bob = await enter(client), await enter(client), await enter(client, "bob")
    task_id, other = await alice.create(), await bob.create()
    (poll, again), bystanders = (
        await held(alice, ask(alice, way, task_id), ask(alice, way, task_id)),
        await held(alice, ask(phone, way, task_id), ask(bob, way, other)),
    )
    async with alice.http.post("/api/auth/logout") as reply:
        assert reply.status == 204
    assert is_refused(await poll)
    assert is_refused(await again)
    assert alice.held == 2
    assert not any(each.done() for each in bystanders)
    for each in bystanders:
        each.cancel()
    if way != "create":
        assert alice.metric("longpoll_polls_total", outcome="revoked") == 2


ENDS = {
    "deleted session": "DELETE FROM longpoll.sessions",
    "session moved into the past": "UPDATE longpoll.sessions SET expires_at = now() - interval '1 second'",
    "deleted account": "DELETE FROM longpoll.accounts",
}


@pytest.mark.parametrize("end", ENDS)
async def test_whoever_is_cut_off_by_plain_sql_hears_nothing_more(alice: Person, sql: Sql, end: str) -> None:
    """As an operator or another process does it; in every process that hears the database."""
    task_id = await alice.create()
    polls = await held(alice, *(ask(alice, way, task_id) for way in ("parked", "batch")))
    sql(ENDS[end])
    for poll in polls:
        assert is_refused(await poll)


async def test_a_logout_in_one_process_ends_polls_in_another(start: Start, enter: Enter) -> None:
    here, there = await start(), await start()
    alice = await enter(here)
    task_id = await alice.create()
    elsewhere = Person(there, alice.user)
    cookie = {"Cookie": f"longpoll={secret_of(alice)}"}
    polls = await held(elsewhere, *(ask(elsewhere, way, task_id, cookie) for way in ("parked", "batch")))
    async with alice.http.post("/api/auth/logout") as reply:
        assert reply.status == 204
    for poll in polls:
        assert is_refused(await poll)


async def test_a_revoked_token_ends_its_polls_and_not_those_of_its_owner(alice: Person) -> None:
    task_id = await alice.create()
    async with alice.http.post("/api/auth/tokens", json={}) as reply:
        token = await reply.json()
    header = {"Authorization": f"Bearer {token['token']}"}
    (poll,), (own,) = (
        await held(alice, ask(alice, "parked", task_id, header)),
        await held(alice, ask(alice, "parked", task_id)),
    )
    async with alice.http.delete(f"/api/auth/tokens/{token['id']}") as reply:
        assert reply.status == 204
    assert is_refused(await poll)
    assert not own.done()
    own.cancel()


@pytest.mark.parametrize("way", ["parked", "coroutine", "batch"])
async def test_a_poll_ends_at_the_moment_its_login_expires(start: Start, enter: Enter, sql: Sql, way: str) -> None:
    alice = await enter(await start(polling={"park": WAYS[way][0]}))
    task_id = await alice.create()
    sql("UPDATE longpoll.sessions SET expires_at = now() + interval '1.2 seconds', last_used_at = now()")
    ((expires_at,),) = sql("SELECT extract(epoch FROM expires_at)::double precision FROM longpoll.sessions")
    await until(lambda: all(not each.proven for each in alice.app[keys.SESSIONS]._known.values()))
    async with asyncio.timeout(15):  # half of a hold
        assert is_refused(await ask(alice, way, task_id))
    assert time.time() >= expires_at - 0.2, "not long before it"


async def test_an_end_that_is_moved_forward_is_heeded_by_polls_that_are_held(alice: Person, sql: Sql) -> None:
    """The poll asks again, and its next hold ends with the login."""
    task_id = await alice.create()
    (poll,) = await held(alice, ask(alice, "parked", task_id))
    sql("UPDATE longpoll.sessions SET expires_at = now() + interval '1 second', last_used_at = now()")
    status, text = await poll
    assert (status, json.loads(text)["poll"]["reason"]) == (200, "timeout")
    assert is_refused(await ask(alice, "parked", task_id))


async def test_a_revocation_while_the_task_is_being_read_is_not_slept_through(
    alice: Person, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The login was looked up, the poll isn't held yet: nothing is there to be found by the revocation."""
    board = alice.app[keys.BOARD]
    gate, reading = asyncio.Event(), asyncio.Event()
    real_refresh = board.refresh

    async def refresh(*arguments: Any, **options: Any) -> None:
        reading.set()
        await gate.wait()
        await real_refresh(*arguments, **options)

    task_id = await alice.create()
    for way in ("parked", "batch"):
        monkeypatch.setattr(board, "refresh", refresh)
        gate.clear()
        reading.clear()
        sessions = alice.app[keys.SESSIONS]
        poll = asyncio.ensure_future(ask(alice, way, task_id))
        await reading.wait()
        sessions.forget(digest(secret_of(alice)).hex())
        gate.set()
        assert is_refused(await poll)
        assert alice.held == 0
        monkeypatch.setattr(board, "refresh", real_refresh)
        alice.app[keys.WAITERS]._revoked.clear()


async def test_news_that_was_being_gathered_is_not_told_either(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    (poll,) = await held(alice, ask(alice, "batch", task_id))
    sql("UPDATE public.image_generations SET progress = 0.1")
    await until(lambda: (known := alice.app[keys.BOARD].peek(task_id)) and known.snapshot.version == 2)
    sql("DELETE FROM longpoll.sessions")
    assert is_refused(await poll)


async def test_a_poll_that_is_asked_again_ends_with_its_login_too(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        for version in (1, 2):
            await connection.send(status_request(alice, task_id, version=version))
            await until(lambda: alice.held == 1)
            if version == 1:
                sql("UPDATE public.image_generations SET status = 'processing'")
                assert (await connection.reply()).status == 200
        sql("DELETE FROM longpoll.sessions")
        reply = await connection.reply()
    assert is_refused((reply.status, reply.body.decode()))


# While revocations may go unheard ------------------------------------------------------------------------------------


def deafen(person: Person) -> None:
    """Have notifications not arrive, and the server know it."""
    person.app[keys.LISTENER]._restored = lambda: None
    person.app[keys.LISTENER]._channels["session_revoked"] = lambda _payload: None  # type: ignore[index]
    person.app[keys.REVOCATIONS].on_listener_lost()


async def test_while_revocations_go_unheard_held_logins_are_looked_up(alice: Person, bob: Person, sql: Sql) -> None:
    """As often as a request with them would be, all in one read; whoever is signed in still is held on."""
    task_id = await alice.create()
    polls = await held(alice, *(ask(alice, way, task_id) for way in ("parked", "batch")))
    (bystander,) = await held(alice, ask(bob, "parked", await bob.create()))
    deafen(alice)
    sql("DELETE FROM longpoll.sessions WHERE user_id = %s", (alice.user.user_id,))
    for poll in polls:
        assert is_refused(await poll)
    assert not bystander.done()
    bystander.cancel()


async def test_what_was_revoked_meanwhile_is_found_when_they_are_heard_again(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    (poll,) = await held(alice, ask(alice, "parked", task_id))
    alice.app[keys.LISTENER]._channels["session_revoked"] = lambda _payload: None  # type: ignore[index]
    sql("DELETE FROM longpoll.sessions")
    alice.app[keys.REVOCATIONS].on_listener_restored()
    assert is_refused(await poll)


async def test_a_database_that_cannot_be_asked_ends_nobodys_poll(
    alice: Person, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can revoke anything in it either; and it is asked again."""
    task_id = await alice.create()
    (poll,) = await held(alice, ask(alice, "parked", task_id))
    database, asked = alice.app[keys.DATABASE], asyncio.Event()
    real_fetch = database.fetch

    async def fetch(query: str, *arguments: Any, **parameters: Any) -> Any:
        if query == "find_credentials" and not asked.is_set():
            asked.set()
            raise DatabaseUnavailable("gone")
        return await real_fetch(query, *arguments, **parameters)

    monkeypatch.setattr(database, "fetch", fetch)
    alice.app[keys.LISTENER]._channels["session_revoked"] = lambda _payload: None  # type: ignore[index]
    sql("DELETE FROM longpoll.sessions")
    alice.app[keys.REVOCATIONS].on_listener_restored()
    await asked.wait()
    assert not poll.done()
    assert is_refused(await poll)


async def test_while_revocations_are_heard_nothing_is_looked_up(start: Start, enter: Enter) -> None:
    alice = await enter(await start(database={"heartbeat_seconds": 60.0}, polling=HOLDS))
    alice.stop_reading_places()
    (poll,) = await held(alice, ask(alice, "parked", await alice.create()))
    await until(lambda: not alice.app[keys.DATABASE].busy)
    before = alice.app[keys.DATABASE].statements
    bystander = asyncio.ensure_future(ask(alice, "batch", "unknown"))
    assert (await bystander)[0] == 200
    assert alice.app[keys.DATABASE].statements <= before + 1, "the read of the unknown task"
    poll.cancel()


# Memory ----------------------------------------------------------------------------------------------------------------


async def test_all_polls_of_a_login_share_what_is_known_of_it(alice: Person) -> None:
    """A held poll keeps no copy of its own, and no entry in any list of logins."""
    task_id = await alice.create()
    polls = await held(alice, *(ask(alice, "parked", task_id) for _ in range(5)))
    waiters = alice.app[keys.WAITERS]
    assert len({id(hold.credential) for hold in waiters}) == 1
    assert waiters.credentials() == {digest(secret_of(alice)).hex()}
    assert waiters._revoked == {}
    for poll in polls:
        poll.cancel()
