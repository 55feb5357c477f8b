"""Replies that can't be written: each is a 500 that is logged and counted, and nothing stays behind."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import structlog
from aiohttp import web
from yarl import URL

from server.protocol import heads
from server.protocol.replies import StateReply
from server.telemetry import logs
from server.web import keys
from server.web.handlers.login import safe_target
from server.web.replies import MAX_TARGET
from tests.support.people import Person, Start
from tests.support.postgres import Sql
from tests.support.raw_http import connect_to, request

PAGE = {"Accept": "text/html"}
ALICE = {"email": "carol@example.org", "password": "correct horse"}
UNWRITABLE = ["/\x7f", "/a\nb", "/a\x00"]
Lines = list[MutableMapping[str, Any]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    with structlog.testing.capture_logs() as captured:
        yield captured


def crashes(lines: Lines) -> int:
    return len([line for line in lines if line["event"] == logs.REQUEST_CRASHED and line.get("exc_info")])


@pytest.mark.parametrize("value", UNWRITABLE)
async def test_a_header_that_cannot_be_written_is_a_500(
    alice: Person, monkeypatch: pytest.MonkeyPatch, lines: Lines, value: str
) -> None:
    async def go_on(_request: web.Request) -> web.Response:
        return web.Response(status=303, headers={"Location": value})

    monkeypatch.setattr("server.web.handlers.login.log_out", go_on)
    (resource,) = [each for each in alice.app.router.resources() if each.canonical == "/api/auth/logout"]
    (route,) = resource
    monkeypatch.setattr(route, "_handler", go_on)
    async with alice.http.post("/api/auth/logout") as reply:
        assert (reply.status, (await reply.json())["code"]) == (500, "internal_server_error")
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
    async with alice.http.post("/api/auth/logout", headers=PAGE) as reply:
        assert (reply.status, reply.content_type) == (500, "text/html")
    assert alice.metric("longpoll_request_crashes_total") == crashes(lines) == 2
    labels = {"route": "/api/auth/logout", "method": "POST"}
    assert alice.metric("longpoll_http_requests_total", **labels, code="500") == 2
    assert alice.metric("longpoll_http_requests_total", **labels, code="303") == 0


async def test_no_session_is_made_if_the_reply_cannot_be_written(
    start: Start, monkeypatch: pytest.MonkeyPatch, sql: Sql
) -> None:
    client = await start()
    async with client.post("/api/auth/register", json=ALICE) as reply:
        assert reply.status == 201
    client.session.cookie_jar.clear()
    before = sql("SELECT count(*) FROM longpoll.sessions")
    monkeypatch.setattr("server.web.handlers.login.safe_target", lambda _: "/\x7f")
    async with client.post("/api/auth/login", data=ALICE, headers=PAGE, allow_redirects=False) as reply:
        assert reply.status == 500
        assert "Set-Cookie" not in reply.headers
    assert sql("SELECT count(*) FROM longpoll.sessions") == before


@pytest.mark.parametrize("way", ["coroutine", "parked"])
async def test_a_poll_whose_reply_cannot_be_made_is_a_500(
    start: Start, enter: Any, monkeypatch: pytest.MonkeyPatch, lines: Lines, sql: Sql, way: str
) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError("a secret detail")

    alice = await enter(await start(polling={"park": way == "parked"}))
    task_id = await alice.create()
    async with alice.poll(task_id, version=1, wait=0) as reply:
        assert reply.status == 200
    monkeypatch.setattr(StateReply, "to_bytes", fail)
    async with connect_to(alice) as connection:
        await connection.send(request(alice, f"/api/generate/status?taskId={task_id}&version=0"))
        reply = await connection.reply()
        assert (reply.status, json.loads(reply.body)["code"]) == (500, "internal_server_error")
        assert b"secret" not in reply.body
    assert alice.metric("longpoll_request_crashes_total") == crashes(lines) == 1
    labels = {"route": "/api/generate/status", "method": "GET"}
    assert alice.metric("longpoll_http_requests_total", **labels, code="500") == 1
    assert sql("SELECT count(*) FROM public.image_generations") == [(1,)]


async def test_what_fails_behind_every_middleware_is_a_500_too(
    alice: Person, monkeypatch: pytest.MonkeyPatch, lines: Lines
) -> None:
    """A file is sent as it is prepared, which only aiohttp does."""

    async def fail(*_: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(web.FileResponse, "prepare", fail)
    async with alice.http.get("/static/style.css") as reply:
        assert (reply.status, (await reply.json())["code"]) == (500, "internal_server_error")
        assert reply.headers["Connection"] == "close"
    assert alice.metric("longpoll_request_crashes_total") == crashes(lines) == 1
    assert alice.metric("longpoll_malformed_requests_total") == 0


# What comes from a request and goes into a header --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/\x7f", "/%7F"), ("/é", "/%C3%A9"), ("/\ud800", "/?"), ("/a b", "/a%20b"), ('/"<>', "/%22%3C%3E"), ("/\x80\u2028", "/%C2%80%E2%80%A8"),
        ("/%7F?x=%zz&y=1#z", "/%7F?x=%zz&y=1#z"), ("/" + "x" * MAX_TARGET, "/"), ("/" + "é" * 400, "/"),
    ],
)  # fmt: skip
def test_a_target_can_always_be_written(target: str, location: str) -> None:
    assert safe_target(target) == location
    heads.require_writable({"Location": safe_target(target)})


async def test_a_login_goes_on_to_any_target(start: Start) -> None:
    client = await start()
    async with client.post("/api/auth/register", json=ALICE) as reply:
        assert reply.status == 201
    for target, location in (
        ("%2F%7F", "/%7F"),
        ("%2F%C3%A9%0D", "/"),
        ("%2F%C3%A9", "/%C3%A9"),
        ("%2F%FF", "/%EF%BF%BD"),
    ):
        body = f"email=carol%40example.org&password=correct+horse&next={target}"
        headers = {**PAGE, "Content-Type": "application/x-www-form-urlencoded"}
        async with client.post("/api/auth/login", data=body, headers=headers, allow_redirects=False) as reply:
            assert (reply.status, reply.headers.get("Location")) == (303, location), target
        async with client.get(URL(f"/login?next={target}", encoded=True), allow_redirects=False) as reply:
            assert (reply.status, reply.headers.get("Location")) == (303, location), target


async def test_a_stranger_is_sent_to_the_login_from_anywhere(start: Start) -> None:
    person = Person(await start(), None)  # type: ignore[arg-type]
    for target, location in (
        (b"/tasks?x=a%0d%0ab", "/login?next=%2Ftasks%3Fx%3Da%250d%250ab"),
        (b"/tasks?x=%7F%00", "/login?next=%2Ftasks%3Fx%3D%257F%2500"),
        (b"/tasks?x=" + b"%" * 1000, "/login"),
    ):
        async with connect_to(person) as connection:
            await connection.send(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n\r\n")
            reply = await connection.reply()
            assert (reply.status, reply.headers["location"]) == (303, location)
    assert person.metric("longpoll_request_crashes_total") == 0


async def test_what_is_not_utf_8_may_be_quoted_in_a_refusal(alice: Person) -> None:
    """Headers are decoded byte for byte, and JSON can't hold half a character."""
    for field in (b"Content-Type: \xff\xfe/x", b"Content-Type: text/\xed\xa0\x80"):
        for accept in (b"text/html", b"*/*"):
            for url in (b"/api/generate", b"/api/auth/login"):
                async with connect_to(alice) as connection:
                    head = request(alice, url.decode(), method="POST").encode().removesuffix(b"\r\n")
                    await connection.send(head + field + b"\r\nAccept: " + accept + b"\r\nContent-Length: 0\r\n\r\n")
                    reply = await connection.reply()
                    assert reply.status == 415, (field, accept, reply.body)
    assert alice.metric("longpoll_request_crashes_total") == 0


async def test_what_was_sent_is_in_no_header_of_a_reply(alice: Person) -> None:
    """Whatever a request says, the head of its reply is made of our own words."""
    marker = "m4rker"
    task_id = await alice.create()
    for url in (
        f"/api/generate/status?taskId={task_id}&wait=0&c={marker}", f"/api/generate/status?taskId={marker}&wait=0",
        f"/static/{marker}", f"/{marker}", f"/api/generate/tasks?cursor={marker}", f"/docs?{marker}",
    ):  # fmt: skip
        headers = {
            "Prefer": f"wait=0, x={marker}",
            "If-None-Match": f'"{marker}.1"',
            "Idempotency-Key": marker,
            "Accept": marker,
        }
        async with alice.http.get(url, headers={**headers, "X-Request-Id": f"{marker}\x80"}) as reply:
            assert marker not in str(reply.headers)
    assert alice.app[keys.METRICS].value("longpoll_request_crashes_total") == 0


async def test_the_name_of_a_field_may_be_quoted_in_a_refusal(alice: Person) -> None:
    """The head of a part is decoded byte for byte, and JSON can't hold half a character."""
    body = b'--XX\r\nContent-Disposition: form-data; name="\xff\xfe"\r\n\r\nx\r\n--XX--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=XX"}
    async with alice.http.post("/api/generate", data=body, headers=headers) as reply:
        assert (reply.status, "Unknown field: ??." in await reply.text()) == (400, True)
