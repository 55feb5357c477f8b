"""Polls that are held without a coroutine: the replies are the same, aiohttp's objects are gone, nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from server.protocol import replies, turnstile
from server.protocol.aiohttp_handler import PollHandler, PollServer
from server.waiting.parked_polls import ParkedPoll
from server.waiting.waiters import TaskHold
from server.web import keys
from tests.support import parked
from tests.support.facts import until
from tests.support.parked import PROCESSING, handlers_alive, is_parked, kinds_held, server_of
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql
from tests.support.raw_http import Reply, connect_to, request, status_request

config = parked.config


# What is left of aiohttp -----------------------------------------------------------------------------------------------


async def test_while_a_poll_is_parked_nothing_of_aiohttps_is_alive(alice: Person, sql: Sql) -> None:
    """Without the garbage collector: with cycles in it, a crowd would be swept up rarely and all at once."""
    task_id = await alice.create()
    gc.collect()
    gc.disable()
    try:
        alive = handlers_alive()  # that of the connection which has made the task
        async with connect_to(alice) as connection:
            for version in range(1, 4):
                # In pieces, so that each is a request for aiohttp.
                text = status_request(alice, task_id, version=version)
                await connection.send(text[:20])
                await until(lambda: handlers_alive() == alive + 1)
                await connection.send(text[20:])
                await is_parked(alice)
                await until(lambda: handlers_alive() == alive)
                assert not [task for task in asyncio.all_tasks() if "_handle_request" in repr(task)]
                sql(PROCESSING)
                assert (await connection.reply()).status == 200
    finally:
        gc.enable()


async def test_a_crowd_that_comes_at_once_is_begun_a_few_at_a_time(
    start: Start, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await enter(await start(polling={"max_held_per_user": 500}))
    task_id = await alice.create()
    await alice.status(task_id, wait=0)  # now it is known: whoever asks for it needs no read
    most = 0
    make = PollServer.handler

    def handler(server: PollServer) -> PollHandler:
        nonlocal most
        most = max(most, len(server.connections))
        return make(server)

    monkeypatch.setattr(PollServer, "handler", handler)
    asked = [connect_to(alice) for _ in range(400)]
    connections = await asyncio.gather(*(each.__aenter__() for each in asked))
    for connection in connections:
        connection.writer.write(status_request(alice, task_id, version=1).encode())
    await until(lambda: alice.held == 400)
    await asyncio.gather(*(each.__aexit__(None, None, None) for each in asked))
    assert most <= 4 * turnstile._BEGUN_AT_ONCE


# The same replies ------------------------------------------------------------------------------------------------------


class Workload:
    """A poll that is held, and how to end it."""

    def __init__(self, person: Person, sql: Sql, task_id: str) -> None:
        self.person = person
        self.sql = sql
        self.task_id = task_id

    async def change(self) -> None:
        self.sql(PROCESSING)

    async def complete(self) -> None:
        self.sql("UPDATE public.image_generations SET status = 'completed', result = '/x'")

    async def delete(self) -> None:
        self.sql("DELETE FROM public.image_generations")

    async def go_back(self) -> None:
        self.sql("ALTER TABLE public.image_generations DISABLE TRIGGER USER")
        self.sql("UPDATE public.image_generations SET version = 1")
        self.person.app[keys.BOARD].invalidate(self.task_id)

    async def drain(self) -> None:
        self.person.app[keys.WAITERS].drain(0)

    async def time_out(self) -> None:
        pass

    async def ask_again(self) -> None:
        """In another connection, by the same page or the same user."""
        await self.person.status(self.task_id, version=1, wait=0.1, c="page")


ENDINGS: list[tuple[Callable[[Workload], Awaitable[None]], dict[str, Any], str]] = [
    (Workload.change, {}, ""),
    (Workload.change, {"until": "status"}, ""),
    (Workload.complete, {"until": "terminal"}, ""),
    (Workload.delete, {}, ""),
    (Workload.go_back, {"version": 2}, ""),
    (Workload.drain, {}, ""),
    (Workload.time_out, {"wait": "0.3"}, ""),
    (Workload.time_out, {"wait": "0.3", "version": None}, ""),
    (Workload.time_out, {"wait": "0.3", "version": None}, 'If-None-Match: "{task_id}.1"\r\n'),
    (Workload.change, {"version": None}, 'If-None-Match: "{task_id}.1"\r\n'),
    (Workload.time_out, {}, "Prefer: wait=1\r\n"),
    (Workload.change, {}, "Prefer: wait=20, respond-async\r\n"),
    (Workload.ask_again, {"c": "page"}, ""),
    (Workload.ask_again, {}, ""),
]


@pytest.mark.parametrize(
    ("end", "query", "header"), ENDINGS, ids=[f"{end.__name__}-{query}{header[:13]}" for end, query, header in ENDINGS]
)
async def test_a_parked_poll_is_answered_to_the_letter_as_by_a_coroutine(
    start: Start, enter: Enter, sql: Sql, end: Callable[[Workload], Awaitable[None]], query: dict[str, Any], header: str
) -> None:
    replies, closes = [], []
    named = {"version": 1} | query
    for park, kind in ((True, ParkedPoll), (False, TaskHold)):
        sql("DELETE FROM public.image_generations")
        sql("ALTER TABLE public.image_generations ENABLE TRIGGER USER")
        alice = await enter(await start(polling={"park": park, "max_held_per_user": 1}))
        task_id = await alice.create()
        if named["version"] == 2:
            sql(PROCESSING)
        text = status_request(alice, task_id, **{name: value for name, value in named.items() if value is not None})
        async with connect_to(alice) as connection:
            await connection.send(text[:-2] + header.format(task_id=task_id) + "\r\n")
            await until(lambda alice=alice, kind=kind: kinds_held(alice) == [kind])  # type: ignore[misc]
            await end(Workload(alice, sql, task_id))
            reply = await connection.reply()
            replies.append(_comparable(reply, task_id))
            closes.append(reply.headers.get("connection") == "close" and await connection.is_closed())
    assert replies[0] == replies[1]
    assert closes[0] == closes[1]


def _comparable(reply: Reply, task_id: str) -> dict[str, Any]:
    """Return all of a reply but for what differs from one to the next: times, ids, and what is drawn by chance."""
    text = reply.body.decode().replace(task_id, "TASK")
    text = re.sub(r'"(waitedMs|retryAfterMs)":\d+', r'"\1":0', text)
    text = re.sub(r'"(\w+At)":"[^"]*"', r'"\1":"TIME"', text)
    text = re.sub(r'"instance":"[0-9a-f]{16}"', '"instance":"ID"', text)
    headers = dict(reply.headers)
    assert re.fullmatch(r"hold;dur=\d+\.\d", headers.pop("server-timing", "hold;dur=0.0"))
    assert re.fullmatch(r"[0-9a-f]{16}", headers.pop("x-request-id"))
    headers.pop("date")
    if "content-length" in headers:
        assert int(headers.pop("content-length")) == len(reply.body)
    return {"line": reply.line, "headers": {k: v.replace(task_id, "TASK") for k, v in headers.items()}, "body": text}


async def test_a_reply_that_cannot_be_made_is_a_500_and_counted(
    alice: Person, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret detail")

    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await connection.send(status_request(alice, task_id, version=1))
        await is_parked(alice)
        monkeypatch.setattr(replies, "StateReply", broken)
        sql(PROCESSING)
        reply = await connection.reply()
    assert (reply.status, json.loads(reply.body)["code"]) == (500, "internal_server_error")
    assert b"secret" not in reply.body
    assert alice.metric("longpoll_request_crashes_total") == 1


# What isn't parked -----------------------------------------------------------------------------------------------------


def _closing(text: str) -> str:
    return text[:-2] + "Connection: close\r\n\r\n"


def _lasting(text: str) -> str:
    """The old version, with what kept its connections open."""
    return text.replace("HTTP/1.1", "HTTP/1.0")[:-2] + "Connection: keep-alive\r\n\r\n"


def _with_body(text: str) -> str:
    return text[:-2] + "Content-Length: 4\r\n\r\n\r\n\r\n"  # which ends as a request without one does


@pytest.mark.parametrize(
    "change",
    [_closing, _with_body, lambda text: text.replace("HTTP/1.1", "HTTP/1.0"), _lasting, lambda text: text + text,
     lambda text: text + "GET /healthz HTTP/1.1\r\nHost: x\r\n"],
    ids=["Connection: close", "a body", "HTTP/1.0", "HTTP/1.0 that lasts", "another request behind it",
         "half a request behind it"],
)  # fmt: skip
async def test_a_request_that_cannot_be_parked_is_held_by_its_coroutine(
    alice: Person, sql: Sql, change: Callable[[str], str]
) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await connection.send(change(status_request(alice, task_id, version=1)))
        await until(lambda: kinds_held(alice) == [TaskHold])
        sql(PROCESSING)
        assert json.loads((await connection.reply()).body)["poll"]["reason"] == "change"


@pytest.mark.parametrize(
    ("header", "status"),
    [("", 200), ("Prefer: wait=0\r\n", 200), ('If-None-Match: "{task_id}.1"\r\nPrefer: wait=0\r\n', 304)],
    ids=["plain", "Prefer", "not modified"],
)
async def test_a_reply_in_one_piece_says_what_aiohttp_would(alice: Person, header: str, status: int) -> None:
    """The old version is answered by aiohttp, header by header."""
    task_id, replies = await alice.create(), []
    rest = "" if header else "&wait=0"
    text = request(alice, f"/api/generate/status?taskId={task_id}{rest}")[:-2] + header.format(task_id=task_id) + "\r\n"
    for change in (str, _lasting):
        async with connect_to(alice) as connection:
            await connection.send(change(text))
            replies.append(await connection.reply())
    whole, by_aiohttp = replies
    assert whole.status == by_aiohttp.status == status
    assert whole.line.replace("HTTP/1.1", "HTTP/1.0") == by_aiohttp.line
    assert by_aiohttp.headers.pop("connection") == "keep-alive"
    assert set(whole.headers) == set(by_aiohttp.headers)
    own = {"x-request-id", "date", "server-timing"}
    assert all(value == by_aiohttp.headers[name] for name, value in whole.headers.items() if name not in own)
    assert whole.body == by_aiohttp.body


class StillSending:
    """A transport that has not sent everything yet."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def get_write_buffer_size(self) -> int:
        return 1


async def test_a_poll_behind_a_reply_that_is_still_being_sent_is_held_by_its_coroutine(
    alice: Person, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = await alice.create()
    monkeypatch.setattr(web.BaseRequest, "transport", property(lambda poll: StillSending(poll.protocol.transport)))
    async with connect_to(alice) as connection:
        await connection.send(status_request(alice, task_id, version=1))
        await until(lambda: kinds_held(alice) == [TaskHold])
        sql(PROCESSING)
        assert (await connection.reply()).status == 200


async def test_a_reply_in_one_piece_ends_the_connection_if_its_client_wants_that(alice: Person) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await connection.send(_closing(status_request(alice, task_id, wait=0)))
        reply = await connection.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert await connection.is_closed()


async def test_half_a_request_behind_a_poll_is_answered_when_the_rest_has_come(alice: Person, sql: Sql) -> None:
    """Whether the first half came together with the poll, or while it was parked."""
    task_id = await alice.create()
    for together in (True, False):
        async with connect_to(alice) as connection:
            poll, half = status_request(alice, task_id), request(alice, "/healthz")
            await connection.send(poll + half[:20] if together else poll)
            await until(lambda: alice.held == 1)
            if not together:
                await connection.send(half[:20])
            sql(PROCESSING)
            assert (await connection.reply()).status == 200
            await connection.send(half[20:])
            assert json.loads((await connection.reply()).body)["status"] == "ok"


async def test_a_poll_that_comes_in_pieces_is_parked_all_the_same(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    text = status_request(alice, task_id, version=1)
    async with connect_to(alice) as connection:
        handled = server_of(alice).requests_count
        await connection.send(text[:30])
        await until(lambda: len(server_of(alice).connections) == 2)  # the other one made the task
        await connection.send(text[30:])
        await is_parked(alice)
        sql(PROCESSING)
        assert (await connection.reply()).status == 200
        assert server_of(alice).requests_count == handled + 1


async def test_parking_can_be_turned_off(start: Start, enter: Enter) -> None:
    alice = await enter(await start(polling={"park": False}))
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await connection.send(status_request(alice, task_id, version=1))
        await until(lambda: kinds_held(alice) == [TaskHold])
