"""Polls over sockets that nobody tidied up: clients that vanish, pipelines, old HTTP, https, and two thousand at once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from server.app import build_app
from server.commands import serve
from server.commands.certificate import write_certificate
from server.config import Config
from server.waiting.waiters import TaskHold
from server.web import keys
from tests.support.facts import until
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql
from tests.support.raw_http import connect, connect_to, request, status_request

CROWD = 2000


@pytest.mark.parametrize("leaves", ["aborts", "closes"])
async def test_the_waiter_of_a_client_that_left_is_gone(alice: Person, leaves: str) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await connection.send(status_request(alice, task_id, version=1))
        await until(lambda: alice.held == 1)
        if leaves == "aborts":
            connection.abort()
        else:
            connection.writer.close()
        await until(lambda: alice.held == 0, seconds=5)
    # A poll is counted as gone after its waiter has left: both happen in one process, but not in one step.
    await until(lambda: alice.metric("longpoll_polls_total", outcome="client_gone") == 1)
    codes = {"route": "/api/generate/status", "method": "GET", "code": "499"}
    await until(lambda: alice.metric("longpoll_http_requests_total", **codes) == 1)


async def test_the_time_a_client_was_held_before_it_left_is_not_counted_as_work(alice: Person) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await connection.send(status_request(alice, task_id, version=1))
        await until(lambda: alice.held == 1)
        loop = asyncio.get_running_loop()
        since = loop.time()
        await until(lambda: loop.time() - since > 0.3)
        held = loop.time() - since
        connection.abort()
        await until(lambda: alice.metric("longpoll_polls_total", outcome="client_gone"))
    worked = alice.metric("longpoll_http_request_seconds_sum", route="/api/generate/status")
    assert worked < held


async def test_a_pipelined_request_is_answered_after_the_one_before_it(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await connection.send(status_request(alice, task_id, version=1), request(alice, "/healthz"))
        await until(lambda: alice.held == 1)
        sql("UPDATE public.image_generations SET status = 'processing'")
        first, second = await connection.reply(), await connection.reply()
    assert json.loads(first.body)["data"]["version"] == 2
    assert json.loads(second.body)["status"] == "ok"


async def test_http_1_0_is_held_and_then_closed(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await connection.send(status_request(alice, task_id, version=1, http="1.0"))
        await until(lambda: alice.held == 1)
        sql("UPDATE public.image_generations SET status = 'processing'")
        reply = await connection.reply()
        assert reply.line == "HTTP/1.0 200 OK"
        assert json.loads(reply.body)["poll"]["reason"] == "change"
        assert await connection.is_closed()


async def test_head_is_held_too_and_has_no_body(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await connection.send(status_request(alice, task_id, version=1, method="HEAD"), request(alice, "/healthz"))
        await until(lambda: alice.held == 1)
        sql("UPDATE public.image_generations SET status = 'processing'")
        reply = await connection.reply(has_body=False)
        assert (reply.status, reply.headers["x-task-version"]) == (200, "2")
        assert (await connection.reply()).status == 200  # nothing stood between the two


async def test_a_connection_lives_on_after_a_poll(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        for version in range(1, 6):
            await connection.send(status_request(alice, task_id, version=version))
            await until(lambda: alice.held == 1)
            sql("UPDATE public.image_generations SET progress = %s", (version / 10,))
            reply = await connection.reply()
            assert json.loads(reply.body)["data"]["version"] == version + 1


async def test_two_thousand_polls_are_woken_by_one_update(start: Start, enter: Enter, sql: Sql) -> None:
    """One process, real sockets, several tasks, one statement: nobody is forgotten, and it costs one read."""
    polling = {"max_held_per_user": CROWD, "max_held": CROWD, "sweep_seconds": 300.0}
    alice = await enter(await start(database={"heartbeat_seconds": 60.0}, polling=polling))
    alice.stop_reading_places()
    task_ids = [await alice.create() for _ in range(4)]
    async with contextlib.AsyncExitStack() as stack:
        crowd = []
        for number in range(CROWD):
            connection = await stack.enter_async_context(connect_to(alice))
            await connection.send(status_request(alice, task_ids[number % 4], version=1))
            crowd.append(connection)
        await until(lambda: alice.held == CROWD, seconds=60)
        database = alice.app[keys.DATABASE]
        before = database.statements
        sql("UPDATE public.image_generations SET status = 'processing'")
        async with asyncio.timeout(60):
            replies = await asyncio.gather(*(connection.reply() for connection in crowd))
    answers = [json.loads(reply.body) for reply in replies]
    assert {(body["data"]["version"], body["poll"]["reason"]) for body in answers} == {(2, "change")}
    assert alice.held == 0
    assert alice.metric("longpoll_missed_notify_repairs_total") == 0
    assert database.statements == before + 1


@pytest.fixture
async def https(dsn: str, config: Config, tmp_path: Path) -> AsyncIterator[tuple[int, ssl.SSLContext, web.Application]]:
    """A server as production runs it, with a certificate of its own making; gives its port, who trusts it, and its application."""
    certificate, key = write_certificate(tmp_path / "tls", ["localhost", "127.0.0.1"])
    own = config.replace(server={"tls_certificate": str(certificate), "tls_key": str(key)})
    app = build_app(own, dsn)
    thresholds = gc.get_threshold()
    try:
        async with serve.running(app, own) as port:
            yield port, ssl.create_default_context(cafile=certificate), app
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


async def test_a_poll_is_held_and_woken_over_https(
    https: tuple[int, ssl.SSLContext, web.Application], sql: Sql
) -> None:
    port, trust, app = https
    site = f"https://127.0.0.1:{port}"
    async with ClientSession() as session:
        account = {"email": "alice@example.org", "password": "correct horse"}
        async with session.post(f"{site}/api/auth/register", json=account, ssl=trust) as reply:
            assert reply.status == 201
            cookie = reply.headers["Set-Cookie"]
        async with session.post(
            f"{site}/api/generate", json={"prompt": "x"}, ssl=trust, headers={"Cookie": cookie.partition(";")[0]}
        ) as reply:
            assert reply.status == 202, await reply.text()
            task_id = (await reply.json())["taskId"]
    async with connect("127.0.0.1", port, ssl=trust) as connection:
        await connection.send(
            f"GET /api/generate/status?taskId={task_id}&version=1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Cookie: {cookie.partition(';')[0]}\r\n\r\n"
        )
        await until(lambda: len(app[keys.WAITERS]) == 1)
        assert [type(hold) for hold in app[keys.WAITERS]] == [TaskHold]  # what encrypts must not lose its handler
        sql("UPDATE public.image_generations SET status = 'processing'")
        answer = await connection.reply()
    assert json.loads(answer.body)["data"]["version"] == 2
