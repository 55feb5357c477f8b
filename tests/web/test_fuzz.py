"""Whatever a stranger sends, in every parameter, field and header of every URL: a reply below 500, and nothing ends by it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from server.config import Config
from server.storage.grants import TAGS
from server.storage.worker_tokens import WorkerTokens
from server.web import keys
from server.web.openapi.document import describe
from tests.support.people import Enter, Person, Start
from tests.support.raw_http import Connection, connect_to, secret_of

DOCUMENT: Any = describe(Config(), secure=False, client_timeout_seconds=45)
OPERATIONS = [(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods]

# As bytes of a URL, of a header, of a form; `%` escapes are decoded by the server, the rest comes as it stands.
TEXTS = [
    b"", b"%00", b"a%00b", b"%7F", b"%0D%0A", b"%0A", b"%20", b"%FF", b"%C3%28", b"%ED%A0%80", b"%F4%90%80%80", b"%",
    b"%E2%80%AE", b"%EF%BB%BFx", b"%F0%9F%8C%8A", b"\xff", b"\xed\xa0\x80", b"\xc3\xa9", b"-1", b"0", b"1e999", b"nan",
    b"inf", b"1_0", b"9" * 400, b"18446744073709551616", b"\xd9\xa3", b"x" * 65, b"x" * 3000, b"../../etc/passwd", b"//evil",
    b"null", b"{}", b"a:b:c", b":", b",", b";", b'"', b"'", b"*", b"=", b"&", b"?", b"#", b"{{7*7}}", b"<script>",
]  # fmt: skip
# What can't stand in a line of HTTP at all, or ends it.
BREAKERS = [b"\0", b"a\0b", b"\x7f", b"\x01", b"\r", b"\t", b"\x0b"]
HEADERS = [
    "Host", "Cookie", "Authorization", "Accept", "Accept-Encoding", "Accept-Language", "Content-Type", "Content-Encoding",
    "Content-Length", "Transfer-Encoding", "Connection", "Expect", "Upgrade", "Origin", "Referer", "Sec-Fetch-Site",
    "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded", "X-Request-Id", "Range", "If-Range",
    "If-None-Match", "If-Match", "If-Modified-Since", "If-Unmodified-Since", "Prefer", "Idempotency-Key", "User-Agent",
    "Last-Event-ID",
]  # fmt: skip
HOSTS = [
    b"a:99999",
    b"a:-1",
    b"a:b",
    b"foo:bar",
    b":",
    b"[",
    b"[::1",
    b"[::1]:x",
    b"a b",
    b"a/b",
    b"a@b",
    b"a#b",
    b"%00",
]
THOROUGH = {"/login", "/api/generate", "/api/generate/status", "/api/generate/tasks/{task_id}/image"}
FEW = [b"", b"a\0b", b"\xff", b"\xed\xa0\x80", b"9" * 400, b"a:99999", b"foo:bar", b'"']
SCHEMES = [b"Bearer ", b"bearer lp_", b"Basic ", b"longpoll=", b"longpoll=lp_"]
VALUES = [
    None, True, False, 0, -1, 1.5, 2**53, 2**64, 10**400, 1e308, "", "\0", "a\0b", "\x7f", "\u202e", "\ufeff", "\u200b",
    "\ud7ff\ue000", "x" * 5000, "🌊", [], [1], {}, {"a": 1}, [[[[]]]], "1e999", "null",
]  # fmt: skip


@pytest.fixture
async def alice(start: Start, enter: Enter) -> AsyncIterator[Person]:
    """A person at a server behind a proxy that hardly holds; when the test is over, it must be as sound as before."""
    client = await start(
        server={"trusted_proxies": ["127.0.0.1"]}, polling={"hold_seconds": 0.05}, logging={"level": "critical"}
    )
    alice = await enter(client)
    yield alice
    bob = await enter(client, "bob")
    assert alice.metric("longpoll_request_crashes_total") == 0
    assert alice.metric("longpoll_unhandled_errors_total") == 0
    assert alice.metric("longpoll_failed_reads_total") == 0
    assert alice.metric("longpoll_background_restarts_total") == 0
    assert alice.app[keys.BACKGROUND].dead == {}
    assert (await bob.status(await bob.create()))["poll"]["reason"] in {"immediate", "timeout"}


class Sender:
    """Sends requests over connections that last, and expects a reply below 500 to each."""

    def __init__(self, person: Person, secret: str, worker_token: str) -> None:
        self._person = person
        self._secret = secret
        self._worker_token = worker_token
        self._stack = contextlib.AsyncExitStack()
        self._connection: Connection | None = None
        self.faults: list[str] = []

    async def send(
        self, method: str, target: bytes, headers: dict[str, bytes] | None = None, body: bytes = b""
    ) -> None:
        lines = {"Host": b"127.0.0.1", "Cookie": b"longpoll=" + self._secret.encode(), **(headers or {})}
        if target.startswith(b"/api/work/"):
            lines.setdefault("Authorization", b"Bearer " + self._worker_token.encode())
        if method not in {"GET", "HEAD"} or body:
            lines.setdefault("Content-Length", str(len(body)).encode())
        head = b"".join(b"%b: %b\r\n" % (name.encode(), value) for name, value in lines.items())
        whole = b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method.encode(), target, head, body)
        if self._connection is None:
            self._connection = await self._stack.enter_async_context(connect_to(self._person))
        await self._connection.send(whole)
        try:
            async with asyncio.timeout(20):
                reply = await self._connection.reply()
        except (asyncio.IncompleteReadError, TimeoutError, ConnectionError) as error:
            self.faults.append(f"no reply to {whole[:500]!r}: {error!r}")
            await self.close()
            return
        if reply.status >= 500 or b"Traceback" in reply.body:
            self.faults.append(f"{reply.line} to {whole[:500]!r}: {reply.body[:300]!r}")
        if reply.status >= 400 or reply.headers.get("connection") == "close" or "Connection" in lines:
            await self.close()

    async def close(self) -> None:
        self._connection = None
        await self._stack.aclose()


@contextlib.asynccontextmanager
async def sender(person: Person) -> AsyncIterator[Sender]:
    token, _ = await WorkerTokens(person.app[keys.DATABASE]).create("fuzz", TAGS, 1000, None)
    made = Sender(person, secret_of(person), token)
    try:
        yield made
    finally:
        await made.close()
    assert not made.faults, "\n".join(made.faults[:20])


def described(method: str, path: str) -> Any:
    return DOCUMENT["paths"][path][method.lower()]


def resolve(part: Any) -> Any:
    while "$ref" in part:
        found: Any = DOCUMENT
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        part = found
    return part


def parameters(method: str, path: str, place: str) -> list[str]:
    return [each["name"] for each in map(resolve, described(method, path).get("parameters", ())) if each["in"] == place]


def fields(method: str, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the media types of a body, each with the fields it has."""
    for media, content in described(method, path).get("requestBody", {}).get("content", {}).items():
        yield media, resolve(content["schema"]).get("properties", {})


def plain(path: str, task_id: str) -> bytes:
    """Return a target for which there is something to find."""
    target = (
        path.replace("{task_id}", task_id)
        .replace("{folder}/{filename}", "longpoll/api.js")
        .replace("{filename}", "style.css")
    )
    for name in ("{token_id}", "{session_id}"):
        target = target.replace(name, "0" * 36)
    return target.encode()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_parameters_are_not_trusted(alice: Person, method: str, path: str) -> None:
    """In the path and in the query: those that are described, and one that isn't."""
    task_id = await alice.create()
    async with sender(alice) as to:
        for name in parameters(method, path, "path"):
            for text in TEXTS:
                target = path.replace(f"{{{name}}}", "\1").encode().replace(b"\1", text)
                await to.send(method, target)
        names = [*parameters(method, path, "query"), "other"]
        for name in names:
            for text in TEXTS:
                others = b"".join(b"&%b=%b" % (each.encode(), task_id.encode()) for each in names if each == "taskId")
                query = b"%b=%b%b" % (name.encode(), text, others if name != "taskId" else b"")
                await to.send(method, plain(path, task_id) + b"?" + query)
                await to.send(method, plain(path, task_id) + b"?" + query, {"Accept": b"text/html"})


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_headers_are_not_trusted(alice: Person, method: str, path: str) -> None:
    """All texts where a kind of URL is first met, a few everywhere else: most headers are read before the handler is known."""
    target = plain(path, await alice.create()) + (b"?taskId=x&task=x" if "status" in path else b"")
    async with sender(alice) as to:
        for name in HEADERS:
            for text in [*TEXTS, *BREAKERS, *HOSTS, *SCHEMES] if path in THOROUGH else FEW:
                if name in {"Content-Length", "Transfer-Encoding"} and text in {b"0", b""}:
                    continue
                await to.send(
                    method, target, {name: text, "Connection": b"close"} if name != "Connection" else {name: text}
                )


@pytest.mark.parametrize(("method", "path"), [each for each in OPERATIONS if next(fields(*each), None)])
async def test_fields_are_not_trusted(alice: Person, method: str, path: str) -> None:
    target = plain(path, await alice.create())
    async with sender(alice) as to:
        for media, known in fields(method, path):
            for name in [*known, "other", "", "\0", "\u202e"]:
                for body in _bodies(media, name, known):
                    content_type = media.encode() + (b"; boundary=XX" if "multipart" in media else b"")
                    await to.send(method, target, {"Content-Type": content_type}, body)


def _bodies(media: str, name: str, known: dict[str, Any]) -> Iterator[bytes]:
    usual = {
        each: "a@example.org" if each == "email" else "correct horse 1" for each in known if each != "reference_image"
    }
    usual.pop(name, None)
    if media == "application/json":
        yield from (json.dumps({**usual, name: value}).encode() for value in VALUES)
        yield from (
            b'{"%b": %b}' % (name.encode(), raw) for raw in (b"1e400", b'"\\ud800"', b'"\xff"', b"[" * 3000, b"NaN")
        )
        yield from (b"", b"\xef\xbb\xbf{}", b"[]", b"null", b"\0", b"\xff\xfe{\0}\0")
    elif media == "application/x-www-form-urlencoded":
        rest = "&".join(f"{each}={quote(value)}" for each, value in usual.items()).encode()
        yield from (b"%b&%b=%b" % (rest, quote(name).encode(), text) for text in [*TEXTS, *BREAKERS])
    else:
        for text in [*TEXTS, *BREAKERS, b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP"]:
            head = b'Content-Disposition: form-data; name="%b"; filename="a"\r\n\r\n' % name.encode()
            yield b"--XX\r\n" + head + text + b"\r\n--XX--\r\n"
            yield b'--XX\r\nContent-Disposition: form-data; name="%b"\r\n\r\nx\r\n--XX--\r\n' % text
