"""The life of a connection that aiohttp doesn't serve: what clients do meanwhile, and how it ends."""

from __future__ import annotations

import asyncio
import json
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from server.protocol import parking, replies
from server.protocol.aiohttp_handler import PollHandler
from server.protocol.replies import DEFAULT_OPTIONS
from server.telemetry.requests import RequestRecord
from server.waiting.answers import Question
from server.waiting.parked_polls import ParkedPoll
from server.web import keys
from tests.support import parked
from tests.support.facts import until
from tests.support.parked import PROCESSING, changed, follow, kinds_held, server_of
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql
from tests.support.raw_http import connect_to, request, status_request

config = parked.config


async def test_a_client_that_sends_on_and_on_is_read_no_further_and_answered(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await follow(alice, connection, task_id, 1)
        flood = request(alice, "/healthz") * 20_000
        connection.writer.write(flood.encode())
        (hold,) = alice.app[keys.WAITERS]
        held_by = hold.on_answer.__self__  # type: ignore[attr-defined]
        await until(lambda: len(held_by._early) > parking._MOST_EARLY_BYTES)
        assert not held_by._transport.is_reading()
        assert len(held_by._early) < 1_000_000
        assert json.loads((await changed(connection, sql)).body)["poll"]["reason"] == "change"
        for _ in range(20_000):
            assert (await connection.reply()).status == 200


class DeafTransport(asyncio.Transport):
    """One whose other end doesn't read."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: asyncio.BaseProtocol | None = None
        self.reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol


async def test_aiohttp_gets_no_connection_whose_client_does_not_read(
    alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handler takes for granted that it begins with an empty buffer."""
    begun: list[bytes] = []
    monkeypatch.setattr(PollHandler, "connection_made", lambda *_: None)
    monkeypatch.setattr(PollHandler, "data_received", lambda _self, data: begun.append(data))
    transport, connection = DeafTransport(), server_of(alice)()
    connection.connection_made(transport)
    connection.pause_writing()
    assert not transport.reading
    connection.data_received(b"GET")
    for _ in range(5):
        await asyncio.sleep(0)
    assert not begun
    connection.resume_writing()
    assert transport.reading
    for _ in range(5):
        await asyncio.sleep(0)
    assert begun == [b"GET"]
    assert isinstance(transport.protocol, PollHandler)


async def test_a_connection_that_is_answered_has_as_long_for_its_next_request_as_a_new_one(
    alice: Person, sql: Sql
) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await follow(alice, connection, task_id, 1)
        (parked,) = alice.app[keys.PARKING]._connections
        parked.looks = parking._LOOKS
        await changed(connection, sql)
        alice.app[keys.PARKING]._look_for_idle()
        await follow(alice, connection, task_id, 2)


@pytest.mark.parametrize("closing", [False, True])
async def test_a_client_that_left_as_its_poll_was_to_be_parked_leaves_nothing(alice: Person, *, closing: bool) -> None:
    task_id = await alice.create()
    connection = alice.app[keys.PARKING].connect(server_of(alice))
    question = Question(task_id, alice.user.user_id, 1, 30.0)

    async def parked() -> ParkedPoll[Any] | None:
        await alice.status(task_id, wait=0)  # what is known may be in doubt: its creation is notified behind the reply
        return alice.app[keys.POLLING].park_at_once(question, 1, connection.answer)

    poll: ParkedPoll[Any] = await until(parked)
    connection.hold(poll, RequestRecord(), DEFAULT_OPTIONS, None)
    left = SimpleNamespace(is_closing=lambda: True) if closing else None
    connection.attach(SimpleNamespace(transport=left))  # type: ignore[arg-type]
    assert alice.held == 0
    await until(lambda: alice.metric("longpoll_polls_total", outcome="client_gone") == 1)


async def test_a_poll_that_ends_before_its_connection_is_parked_is_closed(
    start: Start, enter: Enter, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client isn't left waiting for what can't come any more."""

    @web.middleware
    async def dawdle(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        if response is parking.PARKED:
            sql(PROCESSING)
            await until(lambda: alice.held == 0)
        return response

    monkeypatch.setattr("server.web.middlewares.guard", lambda *_: dawdle)
    alice = await enter(await start())
    task_id = await alice.create()
    async with asyncio.timeout(20), connect_to(alice) as connection:
        await connection.send(status_request(alice, task_id, version=1))
        assert await connection.is_closed()
    assert alice.metric("longpoll_request_crashes_total") == 1
    codes = {"route": "/api/generate/status", "method": "GET", "code": "500"}
    await until(lambda: alice.metric("longpoll_http_requests_total", **codes) == 1)


async def test_a_poll_whose_request_fails_before_it_is_parked_is_answered_once_and_forgotten(
    start: Start, enter: Enter, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds no place of its user's, and no change that comes later answers it again."""

    @web.middleware
    async def fail(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        if response is parking.PARKED:
            raise RuntimeError("the session can't be saved")
        return response

    monkeypatch.setattr("server.web.middlewares.guard", lambda *_: fail)
    alice = await enter(await start())
    task_id = await alice.create()
    codes = {"route": "/api/generate/status", "method": "GET"}
    async with asyncio.timeout(20), connect_to(alice) as connection:
        await connection.send(status_request(alice, task_id, version=1))
        assert (await connection.reply()).status == 500
        assert alice.held == 0
        sql(PROCESSING)
        await connection.send(status_request(alice, task_id, version=0))
        assert (await connection.reply()).status == 200
    await until(lambda: alice.metric("longpoll_http_requests_total", code="200", **codes) == 1)
    assert alice.metric("longpoll_http_requests_total", code="500", **codes) == 1
    assert alice.metric("longpoll_http_requests_total", code="499", **codes) == 0
    assert alice.metric("longpoll_polls_total", outcome="client_gone") == 0


@pytest.mark.parametrize(("module", "broken"), [(replies, "StateReply"), (parking, "SharedReply")])
async def test_a_wake_that_fails_is_a_500_for_one_and_nothing_for_the_others(
    alice: Person, sql: Sql, monkeypatch: pytest.MonkeyPatch, module: ModuleType, broken: str
) -> None:
    """Whether it is the reply that can't be made or what all have in common: nobody is left waiting."""
    failing, sound = await alice.create(), await alice.create()

    def fail_once(*_arguments: Any, **_more: Any) -> Any:
        monkeypatch.undo()
        raise RuntimeError("a secret detail")

    async with asyncio.timeout(20), connect_to(alice) as first, connect_to(alice) as second:
        for connection, task_id in ((first, failing), (second, sound)):
            await connection.send(status_request(alice, task_id, version=1))
        await until(lambda: kinds_held(alice) == [ParkedPoll, ParkedPoll])
        monkeypatch.setattr(module, broken, fail_once)
        sql("UPDATE public.image_generations SET status = 'processing'")
        answers = [await first.reply(), await second.reply()]
        assert sorted(reply.status for reply in answers) == [200, 500]
        for connection, reply in zip((first, second), answers, strict=True):
            assert b"secret" not in reply.body
            if reply.status == 500:
                assert await connection.is_closed()
    assert alice.metric("longpoll_request_crashes_total") == 1


@pytest.mark.parametrize("asked_before", [False, True])
async def test_a_connection_on_which_nothing_comes_is_closed_after_a_while(
    start: Start, enter: Enter, sql: Sql, *, asked_before: bool
) -> None:
    alice = await enter(await start(server={"keepalive_seconds": 0.2}))
    task_id = await alice.create()
    async with connect_to(alice) as connection, connect_to(alice) as other:
        if asked_before:
            await follow(alice, connection, task_id, 1)
            await changed(connection, sql)
        assert await connection.is_closed()
        assert await other.is_closed()
    assert not alice.app[keys.PARKING]._connections


async def test_near_the_file_limit_a_newcomer_is_refused_politely_and_the_others_stay(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as held:
        await follow(alice, held, task_id, 1)
        alice.app[keys.PARKING]._highest_descriptor = 0
        async with connect_to(alice) as refused, connect_to(alice) as silent:
            await refused.send(status_request(alice, task_id, version=1))
            reply = await refused.reply()
            assert (reply.status, json.loads(reply.body)["code"]) == (503, "unavailable")
            assert 1 < int(reply.headers["retry-after"]) < 9
            assert await refused.is_closed()
            assert await silent.is_closed()
        assert (await changed(held, sql)).status == 200
        alice.app[keys.PARKING]._highest_descriptor = 10**6
        async with connect_to(alice) as welcome:
            await welcome.send(request(alice, "/healthz"))
            assert (await welcome.reply()).status == 200


async def test_a_process_that_stops_closes_those_that_wait_for_a_request(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as new, connect_to(alice) as answered, connect_to(alice) as held:
        await follow(alice, answered, task_id, 1)
        await changed(answered, sql)
        await follow(alice, held, task_id, 2)
        stopping = asyncio.create_task(alice.http.server.close())
        reply = await held.reply()
        assert json.loads(reply.body)["poll"]["reason"] == "drain"
        assert reply.headers["connection"] == "close"
        for connection in (new, answered, held):
            assert await connection.is_closed()
        await stopping


async def test_a_poll_that_never_gets_as_far_as_its_connection_is_forgotten(
    start: Start, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody between the handler and the transport waits for something, and the client leaves."""
    reached = asyncio.Event()

    @web.middleware
    async def dawdle(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        if response is parking.PARKED:
            reached.set()
            await asyncio.Event().wait()
        return response

    monkeypatch.setattr("server.web.middlewares.guard", lambda *_: dawdle)
    alice = await enter(await start())
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await connection.send(status_request(alice, task_id, version=1))
        await reached.wait()
        assert alice.held == 1
        connection.abort()
        await until(lambda: alice.held == 0)
    await until(lambda: alice.metric("longpoll_polls_total", outcome="client_gone") == 1)
    codes = {"route": "/api/generate/status", "method": "GET", "code": "499"}
    await until(lambda: alice.metric("longpoll_http_requests_total", **codes) == 1)
