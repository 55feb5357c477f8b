"""Heads of requests that are too long or too slow: room for what browsers send, a bound, and a word on what to do."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest

from tests.support.facts import until
from tests.support.people import Enter, Person, Start
from tests.support.raw_http import Reply, connect_to, request, secret_of


def head(person: Person, *fields: str, path: str = "/login", accept: str = "text/html") -> str:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", f"Accept: {accept}", *fields, "", ""])


async def answered(person: Person, *pieces: str) -> Reply:
    async with connect_to(person) as connection:
        for number, piece in enumerate(pieces):
            await connection.send(piece)
            if number < len(pieces) - 1:
                await read(person)
        return await connection.reply()


async def read(person: Person) -> None:
    """Wait until the server has read what was sent, and waits for more."""
    server = person.http.server.runner.server  # type: ignore[attr-defined]
    await until(lambda: [each for each in server.connections if each._unfinished])


async def test_thirty_kilobytes_of_cookies_are_read(alice: Person) -> None:
    foreign = "; ".join(f"foreign{number}={'x' * 1000}" for number in range(30))
    for others in (foreign, f"foreign={'x' * 30_000}"):
        fields = [f"Cookie: {others}; longpoll={secret_of(alice)}"]
        assert (await answered(alice, head(alice, *fields, path="/api/generate/tasks"))).status == 200


@pytest.mark.parametrize("lines", [1, 40, 130])
@pytest.mark.parametrize("pieces", [1, 3])
async def test_more_is_refused_with_a_page_that_says_what_to_do(alice: Person, lines: int, pieces: int) -> None:
    fields = [f"Cookie: foreign={'x' * (50_000 // lines)}" for _ in range(lines)]
    text = head(alice, *fields)
    cut = [0, *(200 * (number + 1) for number in range(pieces - 1)), len(text)]
    reply = await answered(alice, *(text[begin:end] for begin, end in itertools.pairwise(cut)))
    assert (reply.status, reply.headers["content-type"]) == (431, "text/html; charset=utf-8")
    assert "delete the cookies of this site" in reply.body.decode()
    assert reply.headers["x-request-id"] in reply.body.decode()
    assert reply.headers["cache-control"] == "private, no-store"


@pytest.mark.parametrize(("path", "accept"), [("/api/generate/tasks", "text/html"), ("/login", "*/*")])
async def test_programs_are_told_in_a_problem_document(alice: Person, path: str, accept: str) -> None:
    reply = await answered(alice, head(alice, f"Cookie: x={'x' * 50_000}", path=path, accept=accept))
    problem = json.loads(reply.body)
    assert (reply.status, problem["code"], problem["status"]) == (431, "headers_too_large", 431)
    assert "32 KB" in problem["detail"]
    assert alice.metric("longpoll_malformed_requests_total") == 1


async def test_an_address_that_is_too_long_is_another_matter(alice: Person) -> None:
    reply = await answered(alice, head(alice, path=f"/tasks?x={'x' * 9000}"))
    assert (reply.status, "at most 8190 bytes" in reply.body.decode()) == (414, True)


async def test_a_head_in_pieces_keeps_little_memory(alice: Person) -> None:
    """Each header may be of 32 KB, and aiohttp takes 128 of them."""
    async with connect_to(alice) as connection:
        await connection.send("GET / HTTP/1.1\r\nHost: x\r\n")
        for number in range(3):
            await connection.send(f"X{number}: {'x' * 15_000}\r\n")
        assert (await connection.reply()).status == 431
        assert await connection.is_closed()


async def test_a_head_in_pieces_is_read_all_the_same(alice: Person) -> None:
    text = request(alice, "/api/generate/tasks")
    assert (await answered(alice, text[:10], text[10:50], text[50:])).status == 200


async def test_a_long_body_is_no_long_head(alice: Person) -> None:
    body = json.dumps({"prompt": "x", "seed": 1}) + " " * 60_000
    for _ in range(2):
        async with connect_to(alice) as connection:
            for _ in range(2):
                await connection.send(request(alice, "/api/generate", method="POST", body=body))
                assert (await connection.reply()).status == 202


@pytest.mark.parametrize("first", [True, False])
async def test_a_head_that_drips_is_given_up(start: Start, enter: Enter, *, first: bool) -> None:
    """It gets as long as any other wait for the client, not as long as a connection that says nothing."""
    alice = await enter(await start(server={"receive_seconds": 0.3}))
    async with connect_to(alice) as connection:
        if not first:
            await connection.send(request(alice, "/healthz"))
            assert (await connection.reply()).status == 200
        await connection.send("GET /healthz HTTP/1.1\r\nHost: ")
        async with asyncio.timeout(15):  # a connection that says nothing has 75 s
            assert await connection.is_closed()
