"""Clients that leave, and clients that only say no more: the first are gone within a second, the others get their replies."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from server.protocol.departures import CONTINUE, Departures
from server.storage.users import User
from server.web import keys
from tests.protocol import test_connections
from tests.support.facts import until
from tests.support.parked import server_of
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql
from tests.support.raw_http import Connection, Reply, connect, connect_to, request, status_request

https = test_connections.https
PROCESSING = "UPDATE public.image_generations SET status = 'processing'"


async def final_reply(connection: Connection) -> Reply:
    """Read a reply, and pass over what comes before it, as every client of HTTP/1.1 does."""
    while (reply := await connection.reply()).status == 100:
        pass
    return reply


@pytest.fixture(params=["parked", "coroutine"])
async def alice(request: pytest.FixtureRequest, start: Start, enter: Enter) -> Person:
    return await enter(await start(polling={"park": request.param == "parked"}))


def watched(person: Person) -> Departures:
    return server_of(person).departures


async def test_a_client_that_says_no_more_is_held_and_answered(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await connection.send(status_request(alice, task_id, version=1))
        await until(lambda: alice.held == 1)
        connection.half_close()
        assert await connection._reader.readexactly(len(CONTINUE)) == CONTINUE  # it is asked whether it is still there
        await until(lambda: watched(alice)._asked)
        sql(PROCESSING)
        reply = await connection.reply()
        assert json.loads(reply.body)["poll"]["reason"] == "change"
        assert await connection.is_closed()
    await until(lambda: len(watched(alice)) == 0)
    assert alice.metric("longpoll_polls_total", outcome="change") == 1
    assert alice.metric("longpoll_polls_total", outcome="client_gone") == 0


async def test_a_request_and_its_end_may_come_together(alice: Person, sql: Sql) -> None:
    """As a shell sends it: `printf … | nc -N`."""
    task_id = await alice.create()
    for target in (f"/api/generate/status?taskId={task_id}&version=1", f"/api/generate/status/batch?task={task_id}:2"):
        async with connect_to(alice) as connection:
            connection.writer.write(request(alice, target).encode())
            connection.half_close()
            await until(lambda: alice.held == 1)
            sql("UPDATE public.image_generations SET progress = coalesce(progress, 0) + 0.1")
            assert json.loads((await final_reply(connection)).body)["poll"]["reason"] == "change"
            assert await connection.is_closed()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_whatever_was_asked_is_answered(alice: Person, version: str) -> None:
    body = json.dumps({"prompt": "x" * 3000})
    order = request(alice, "/api/generate", method="POST", version=version, body=body)
    for text, status in ((order, 202), (request(alice, "/static/style.css", version=version), 200)):
        async with connect_to(alice) as connection:
            connection.writer.write(text.encode())
            connection.half_close()
            assert (await final_reply(connection)).status == status
            assert await connection.is_closed()


async def test_all_that_was_asked_is_answered_in_its_order(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        poll = status_request(alice, task_id, version=1)
        connection.writer.write((request(alice, "/healthz") + poll + request(alice, "/readyz") + poll).encode())
        connection.half_close()
        assert (await connection.reply()).status == 200
        await until(lambda: alice.held == 1)
        sql(PROCESSING)
        for _ in range(3):
            assert (await final_reply(connection)).status == 200
        assert await connection.is_closed()


async def test_a_body_that_was_not_sent_whole_is_not_waited_for(alice: Person) -> None:
    async with connect_to(alice) as connection:
        text = request(alice, "/api/generate", method="POST", body='{"prompt": "x"}')
        await connection.send(text.removesuffix('"}'))
        connection.half_close()
        assert await connection.is_closed()
    await until(lambda: len(watched(alice)) == 0)


async def test_an_idle_connection_ends_with_its_client(alice: Person) -> None:
    for asked in (False, True):
        async with connect_to(alice) as connection:
            if asked:
                await connection.send(request(alice, "/healthz"))
                await connection.reply()
            connection.half_close()
            assert await connection.is_closed()


def closes(connection: Connection) -> None:
    connection.writer.close()


def shuts_down(connection: Connection) -> None:
    """As a process does that ends; asyncio's own way to close waits for the other end's farewell."""
    number = os.dup(connection.writer.get_extra_info("socket").fileno())
    with socket.socket(fileno=number) as opened:
        opened.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("leaves", [closes, Connection.abort])
@pytest.mark.parametrize("early", [0, 64 * 1024, 130 * 1024])
async def test_a_client_that_left_is_gone_whatever_it_has_sent(
    alice: Person, early: int, leaves: Callable[[Connection], None]
) -> None:
    """What it has sent behind its poll is read no further, so its end isn't read either."""
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        line = request(alice, "/healthz")
        await connection.send(status_request(alice, task_id, version=1))
        await until(lambda: alice.held == 1)
        connection.writer.write((line * (early // len(line) + 1) if early else "").encode())
        await connection.writer.drain()
        leaves(connection)
        await until(lambda: alice.held == 0, seconds=10)  # its hold would last for thirty
    await until(lambda: len(watched(alice)) == 0)
    await until(lambda: alice.metric("longpoll_polls_total", outcome="client_gone") == 1)
    codes = {"route": "/api/generate/status", "method": "GET", "code": "499"}
    await until(lambda: alice.metric("longpoll_http_requests_total", **codes) == 1)


async def test_a_client_that_sends_on_and_on_and_then_no_more_is_answered(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    count = 130 * 1024 // len(request(alice, "/healthz"))
    async with connect_to(alice) as connection:
        await connection.send(status_request(alice, task_id, version=1))
        await until(lambda: alice.held == 1)
        await connection.send(request(alice, "/healthz") * count)
        connection.half_close()
        await until(lambda: watched(alice)._asked)
        sql(PROCESSING)
        assert json.loads((await final_reply(connection)).body)["poll"]["reason"] == "change"
        for _ in range(count):
            assert (await final_reply(connection)).status == 200
        assert await connection.is_closed()


async def test_an_old_client_that_says_no_more_counts_as_gone(alice: Person) -> None:
    """HTTP/1.0 knows nothing that could be written before a reply."""
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        await connection.send(status_request(alice, task_id, version=1, http="1.0"))
        await until(lambda: alice.held == 1)
        connection.half_close()
        await until(lambda: alice.held == 0, seconds=10)
        assert await connection.is_closed()
    await until(lambda: alice.metric("longpoll_polls_total", outcome="client_gone") == 1)


async def test_a_client_that_left_over_https_is_gone(
    https: tuple[int, ssl.SSLContext, web.Application], sql: Sql
) -> None:
    """Half a TLS connection is none for asyncio."""
    port, trust, app = https
    user_id = sql("SELECT longpoll.register_account('a@example.org', 'no hash')::text")[0][0]
    secret = await app[keys.SESSIONS].create(User(user_id, "a@example.org"))
    for leave in (Connection.abort, shuts_down):
        async with connect("127.0.0.1", port, ssl=trust) as connection:
            cookie = f"Host: 127.0.0.1:{port}\r\nCookie: __Host-longpoll={secret}\r\n"
            body = '{"prompt": "x"}'
            await connection.send(
                f"POST /api/generate HTTP/1.1\r\n{cookie}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            )
            task_id = json.loads((await connection.reply()).body)["taskId"]
            await connection.send(f"GET /api/generate/status?taskId={task_id}&version=1 HTTP/1.1\r\n{cookie}\r\n")
            await until(lambda: len(app[keys.WAITERS]) == 1)
            await connection.send(f"GET /healthz HTTP/1.1\r\n{cookie}\r\n" * 2000)
            leave(connection)
            await until(lambda: len(app[keys.WAITERS]) == 0, seconds=10)


class Socket:
    def fileno(self) -> int:
        return -1


class ClosedTransport(asyncio.Transport):
    def is_closing(self) -> bool:
        return True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return Socket() if name == "socket" else default


async def test_a_connection_that_closes_meanwhile_is_forgotten() -> None:
    departures = Departures()
    departures.watch(ClosedTransport(), lambda: b"")
    await until(lambda: len(departures) == 0)
    assert departures._timer is None
