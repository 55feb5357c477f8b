"""The same poll asked again with a newer version: held without aiohttp, if it is surely the same and surely must wait."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from server.protocol import repeats
from server.web import keys
from tests.support import parked
from tests.support.facts import until
from tests.support.parked import changed, follow, handlers_alive, is_parked, server_of
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql
from tests.support.raw_http import connect_to, secret_of, status_request

config = parked.config


async def test_the_same_poll_with_a_newer_version_is_held_without_aiohttp(start: Start, enter: Enter, sql: Sql) -> None:
    alice = await enter(await start(database={"heartbeat_seconds": 60.0}))  # none is missed on a machine that is busy
    alice.stop_reading_places()
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await follow(alice, connection, task_id, 1, c="page", wait=25)
        handled, statements = server_of(alice).requests_count, alice.metric("longpoll_database_statements")
        seen = {(await changed(connection, sql)).headers["x-request-id"]}
        for version in range(2, 12):
            await follow(alice, connection, task_id, version, c="page", wait=25)
            reply = await changed(connection, sql)
            assert json.loads(reply.body)["data"]["version"] == version + 1
            seen.add(reply.headers["x-request-id"])
    assert len(seen) == 11, "each has an id of its own"
    assert server_of(alice).requests_count == handled
    assert alice.metric("longpoll_polls_total", outcome="change") == 11
    assert alice.metric("longpoll_http_requests_total", route="/api/generate/status", method="GET", code="200") == 11
    assert alice.metric("longpoll_database_statements") - statements <= 11, "reads for the wakes"


async def test_the_same_poll_again_is_counted_and_refused_beyond_the_rate(start: Start, enter: Enter, sql: Sql) -> None:
    alice = await enter(await start(limits={"enabled": True, "poll": "3 per hour"}))
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        for version in (1, 2, 3):
            await follow(alice, connection, task_id, version)
            await changed(connection, sql)
        await connection.send(status_request(alice, task_id, version=4))
        assert (await connection.reply()).status == 429


async def test_whoever_has_logged_out_is_not_held_again(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        text = status_request(alice, task_id, version=1)
        await connection.send(text)
        await is_parked(alice)
        await changed(connection, sql)
        await alice.app[keys.SESSIONS].revoke(secret_of(alice))
        await connection.send(text.replace("version=1", "version=2"))
        assert (await connection.reply()).status == 401


async def test_another_user_on_the_same_connection_is_another_user(alice: Person, bob: Person, sql: Sql) -> None:
    """A proxy sends everybody's requests over the connections that it has."""
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await follow(alice, connection, task_id, 1)
        await changed(connection, sql)
        await connection.send(status_request(bob, task_id, version=2))
        assert (await connection.reply()).status == 404
        await follow(alice, connection, task_id, 2)
        assert (await changed(connection, sql)).status == 200


async def test_what_takes_more_than_waiting_is_answered_by_way_of_aiohttp(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        for number, (version, expected) in enumerate(((1, "immediate"), (99, "reset")), 2):
            await follow(alice, connection, task_id, number - 1)
            await changed(connection, sql)
            await connection.send(status_request(alice, task_id, version=version))
            assert json.loads((await connection.reply()).body)["poll"]["reason"] == expected
        await follow(alice, connection, task_id, 3)
        sql("UPDATE public.image_generations SET status = 'completed', result = '/x'")
        await connection.reply()
        await connection.send(status_request(alice, task_id, version=4))
        assert json.loads((await connection.reply()).body)["poll"] | {"waitedMs": 0} == {
            "reason": "immediate", "changed": False, "waitedMs": 0, "next": "stop", "retryAfterMs": 0
        }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda text: text.replace("version=7", "version=8"), True),
        (lambda text: text.replace("version=7", "version=0012"), True),
        (lambda text: text.replace("wait=20", "wait=21"), False),
        (lambda text: text.replace("Host: x", "Host: y"), False),
        (lambda text: text.replace("GET", "HEAD"), False),
        (lambda text: text.replace("version=7", "version=7a"), False),
        (lambda text: text.replace("version=7", "version=-7"), False),
        (lambda text: text.replace("version=7", "version=" + "9" * 19), False),
        (lambda text: text.replace("version=7", "vers%69on=1&version=7"), False),
        (lambda text: text.replace("version=7", "version=7&version=8"), False),
        (lambda text: text.replace("version=7", "xversion=7"), False),
        (lambda text: text.replace("?taskId", "?a=version=&taskId"), False),
        (lambda text: text.replace("/status?", "/status/batch?"), False),
        (lambda text: text.replace("HTTP/1.1", "HTTP/1.0"), False),
        (lambda text: text + text, False),
        (lambda text: text[:-1], False),
        (lambda text: text[:-4] + "\r\nX: " + "x" * 9000 + "\r\n\r\n", False),
    ],
)
def test_only_the_version_may_differ(change: Callable[[str], str], *, same: bool) -> None:
    text = "GET /api/generate/status?taskId=t&version=7&wait=20 HTTP/1.1\r\nHost: x\r\nCookie: a=b\r\n\r\n"
    first, second = repeats.parse_repeat(text.encode()), repeats.parse_repeat(change(text).encode())
    assert first is not None
    assert first[1] == 7
    assert (second is not None and second[0] == first[0]) is same


def test_a_version_that_is_named_twice_is_none_that_may_differ() -> None:
    """aiohttp takes the first of the two; whoever changes the second has changed nothing."""
    assert repeats.parse_repeat(b"GET /api/generate/status?taskId=t&version=8&version=8 HTTP/1.1\r\n\r\n") is None


def test_digits_cannot_wander_from_the_version_into_its_surroundings() -> None:
    texts = [f"GET /api/generate/status?a={a}&version={v}&b=1 HTTP/1.1\r\n\r\n" for a, v in (("1", "23"), ("12", "3"))]
    first, second = (repeats.parse_repeat(text.encode()) for text in texts)
    assert first is not None
    assert second is not None
    assert first[0] != second[0]


async def test_the_same_poll_is_answered_with_what_changed_while_nobody_waited(alice: Person, sql: Sql) -> None:
    """The task lingers in memory, and what is known of it is known to be old."""
    task_id, board = await alice.create(), alice.app[keys.BOARD]
    async with connect_to(alice) as connection:
        await follow(alice, connection, task_id, 1)
        await changed(connection, sql)
        sql("UPDATE public.image_generations SET message = 'more'")
        await until(lambda: board._tasks[task_id].stale)
        await connection.send(status_request(alice, task_id, version=2))
        assert json.loads((await connection.reply()).body)["data"]["version"] == 3


async def test_the_last_piece_of_a_poll_is_no_poll(alice: Person, sql: Sql) -> None:
    """Here it looks like one, and comes again without the cookie that stood in the first piece."""
    task_id, alive = await alice.create(), handlers_alive()
    piece = f"GET /api/generate/status?taskId={task_id}&version=%d HTTP/1.1\r\nHost: x\r\n\r\n"
    first = re.sub(r"Host: .*\r\n", "", status_request(alice, task_id, version=1))
    async with connect_to(alice) as connection:
        await connection.send(first[:-2] + "X-Odd: ")
        await until(lambda: handlers_alive() > alive)
        await connection.send(piece % 1)
        await is_parked(alice)
        assert (await changed(connection, sql)).status == 200
        await connection.send(piece % 2)
        assert (await connection.reply()).status == 401


async def test_the_same_poll_is_not_held_again_while_its_client_reads_no_answers(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await follow(alice, connection, task_id, 1)
        await changed(connection, sql)
        (parked,) = alice.app[keys.PARKING]._connections
        parked.pause_writing()
        parked.data_received(status_request(alice, task_id, version=2).encode())
        assert alice.held == 0
        parked.resume_writing()
        await is_parked(alice)
