"""HTTP by hand, over a socket: what no well-behaved client would send."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any

from tests.support.people import Person


@dataclass
class Reply:
    """What came back."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.line.split()[1])


class Connection:
    """One connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def send(self, *texts: str | bytes) -> None:
        for text in texts:
            self.writer.write(text if isinstance(text, bytes) else text.encode())
        await self.writer.drain()

    async def reply(self, *, has_body: bool = True) -> Reply:
        """Read one reply whose length is declared."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        length = int(headers.get("content-length", 0)) if has_body else 0
        return Reply(line, headers, await self._reader.readexactly(length))

    async def is_closed(self) -> bool:
        """Wait for the other end to close; nothing more may come."""
        return await self._reader.read() == b""

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self.writer.write_eof()

    def abort(self) -> None:
        """Vanish with a reset, as a killed browser does."""
        opened: socket.socket = self.writer.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def connect(host: str, port: int, ssl: SSLContext | None = None) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection(host, port, ssl=ssl)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def connect_to(person: Person) -> contextlib.AbstractAsyncContextManager[Connection]:
    """Connect to a person's server."""
    return connect(str(person.http.host), person.http.port or 0)


def secret_of(person: Person) -> str:
    """Return the secret in a person's session cookie."""
    cookies = person.http.session.cookie_jar.filter_cookies(person.http.make_url("/"))
    return cookies["longpoll"].value


def request(person: Person, target: str, *, method: str = "GET", version: str = "1.1", body: str = "") -> str:
    """Return the text of a request of this person."""
    lines = [f"{method} {target} HTTP/{version}", f"Host: {person.http.host}:{person.http.port}"]
    lines.append(f"Cookie: longpoll={secret_of(person)}")
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines) + "\r\n\r\n" + body


def status_request(person: Person, task_id: str, **query: Any) -> str:
    """Return the text of a status request."""
    method, version = query.pop("method", "GET"), query.pop("http", "1.1")
    rest = "".join(f"&{name}={value}" for name, value in query.items())
    return request(person, f"/api/generate/status?taskId={task_id}{rest}", method=method, version=version)
