"""What is said to a server, and how its answers are read: all that differs from one kind of server to another."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple, Protocol


class Reason(IntEnum):
    """Why a poll was answered, as a small number: replies are kept in arrays."""

    IMMEDIATE = 0
    CHANGE = 1
    TIMEOUT = 2
    RESET = 3
    DRAIN = 4
    DEGRADED = 5
    SUPERSEDED = 6
    UNKNOWN = 7


class Answer(NamedTuple):
    """What a reply says. `cursor` is what the next poll names as seen; `final`: there is nothing more to ask for.

    A reply that tells nothing of the state has no cursor; then the version means nothing, and the client keeps both.
    """

    version: int
    reason: Reason
    cursor: bytes | None
    pause_seconds: float = 0.0
    final: bool = False


class Target(Protocol):
    """One kind of server at one address. Pickled: each generator process gets a copy."""

    host: str
    port: int

    def request(self, task_id: str, secret: str, client: int) -> tuple[bytes, bytes]:
        """Return what stands before and behind the cursor in every poll of this client."""

    def cursor(self, version: int) -> bytes:
        """Return the cursor of a first poll by somebody who has seen this version."""

    def read(self, reply: bytes, body: int) -> Answer:
        """Read a reply with status 200, 204, 304 or 408, whole; its body begins at `body`.

        Raises:
            ValueError: it isn't what this kind of server says.
        """


_REASONS: Final = {reason.name.lower().encode(): reason for reason in Reason}
_REASON: Final = b'"reason":"'
_VERSION: Final = b'"version":'
_RETRY: Final = b'"retryAfterMs":'
# The reply ends by `"next":"stop","retryAfterMs":0}}`.
_TAIL: Final = 60


class LongPollServer:
    """This project's server: `GET /api/generate/status`."""

    def __init__(
        self, host: str, port: int, *, wait_seconds: float, as_pages: bool = False, holds: bool = True
    ) -> None:
        """Poll with `wait=…`. `as_pages`: name each client with `c=`, as browsers do. Not `holds`: never wait at all."""
        self.host = host
        self.port = port
        self._wait = f"{wait_seconds:g}"
        self._as_pages = as_pages
        self._holds = holds

    def request(self, task_id: str, secret: str, client: int) -> tuple[bytes, bytes]:
        """Return the request's two halves; without holding there is no version to name."""
        query = f"taskId={task_id}"
        if self._holds:
            query += f"&wait={self._wait}" + (f"&c=page{client}" if self._as_pages else "") + "&version="
        else:
            query += "&wait=0"
        headers = f"Host: {self.host}:{self.port}\r\nAuthorization: Bearer {secret}\r\n"
        return f"GET /api/generate/status?{query}".encode(), f" HTTP/1.1\r\n{headers}\r\n".encode()

    def cursor(self, version: int) -> bytes:
        """Return the version itself."""
        return b"%d" % version if self._holds else b""

    def read(self, reply: bytes, body: int) -> Answer:
        """Find the few members that matter; within a text of the body, these would have a backslash before each quote."""
        at = reply.index(_VERSION, body) + len(_VERSION)
        version = int(reply[at : reply.index(b",", at)])
        at = reply.rindex(_REASON) + len(_REASON)
        reason = _REASONS.get(reply[at : reply.index(b'"', at)], Reason.UNKNOWN)
        pause = 0.0
        if reason >= Reason.DRAIN:
            at = reply.rindex(_RETRY) + len(_RETRY)
            pause = int(reply[at : reply.index(b"}", at)]) / 1000
        final = reply.find(b'"next":"stop"', len(reply) - _TAIL) > 0
        return Answer(version, reason, b"%d" % version if self._holds else b"", pause, final)
