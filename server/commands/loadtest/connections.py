"""One client on one connection: a prepared request out, a reply in, and the time of both. No HTTP library."""

from __future__ import annotations

import errno
import re
import socket
import struct
import time
from selectors import EVENT_READ, EVENT_WRITE
from typing import Final, Protocol

from server.commands.loadtest.targets import Answer, Target

_READ_BYTES: Final = 16_384
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE: Final = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_EMPTY: Final = frozenset({b"204", b"304"})
_READABLE: Final = frozenset({b"200", b"204", b"304", b"408"})
# Linux, netinet/in.h: the port is chosen when the other end is known, so that each source address has all of them.
_IP_BIND_ADDRESS_NO_PORT: Final = 24
# Closed by a RST: 50,000 connections in TIME_WAIT would take the next run's ports.
_VANISH: Final = struct.pack("ii", 1, 0)


class Owner(Protocol):
    """Who runs the clients, and is told what happens to them."""

    target: Target

    def watch(self, client: Client, events: int) -> None:
        """Call `client.ready` at these events."""

    def unwatch(self, client: Client) -> None:
        """Call it no more."""

    def connected(self) -> None:
        """Take note of a connection that was made."""

    def asked(self) -> None:
        """Take note of a poll that was sent."""

    def answered(self, client: Client, answer: Answer, arrived: float) -> None:
        """Take note of its answer."""

    def failed(self, client: Client, what: str) -> None:
        """Take note of a poll, or a connection, that failed."""


class Client:
    """Polls one task, one poll after another, as its owner tells it."""

    __slots__ = (
        "_before",
        "_behind",
        "_owner",
        "_partial",
        "_socket",
        "_source",
        "asked_version",
        "cursor",
        "index",
        "sent",
        "version",
        "waiting",
    )

    def __init__(
        self, owner: Owner, index: int, version: int, request: tuple[bytes, bytes], source: str | None
    ) -> None:
        """Begin with no connection. `source` is the address to connect from."""
        self.index = index
        self.version = self.asked_version = version
        self.cursor = owner.target.cursor(version)
        self.sent = 0.0
        self.waiting = False
        self._owner = owner
        self._before, self._behind = request
        self._source = source
        self._socket: socket.socket | None = None
        self._partial = b""

    def ask(self) -> None:
        """Send the next poll; connects first where there is no connection."""
        if self._socket is None:
            self._connect()
        else:
            self._send(self._socket)

    def ready(self, events: int) -> None:
        """Read a reply, or find the connection made."""
        if self._socket is None:
            return  # closed since the selector looked
        if events & EVENT_WRITE:
            self._connected(self._socket)
        else:
            self._receive(self._socket)

    def fileno(self) -> int:
        """Return the descriptor, for the selector."""
        assert self._socket is not None, "connected"
        return self._socket.fileno()

    def close(self) -> None:
        """Leave without a word."""
        opened, self._socket, self._partial, self.waiting = self._socket, None, b"", False
        if opened is not None:
            opened.close()

    def _connect(self) -> None:
        target = self._owner.target
        try:
            self._socket = opened = _socket(target.host, self._source)
        except OSError as error:  # no descriptor, no port
            self._owner.failed(self, _name(error))
            return
        self._owner.watch(self, EVENT_WRITE)
        outcome = opened.connect_ex((target.host, target.port))
        if outcome not in {0, errno.EINPROGRESS}:
            self._fail(errno.errorcode.get(outcome, str(outcome)))

    def _connected(self, opened: socket.socket) -> None:
        outcome = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if outcome:
            self._fail(errno.errorcode.get(outcome, str(outcome)))
            return
        self._owner.watch(self, EVENT_READ)
        self._owner.connected()
        self._send(opened)

    def _send(self, opened: socket.socket) -> None:
        self.waiting, self.asked_version, self.sent = True, self.version, time.monotonic()
        self._owner.asked()
        request = self._before + self.cursor + self._behind
        try:
            whole = opened.send(request) == len(request)
        except OSError as error:
            self._fail(_name(error))
            return
        if not whole:  # a request is smaller than any send buffer, and the one before it was answered
            self._fail("request not taken")

    def _receive(self, opened: socket.socket) -> None:
        try:
            data = opened.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(_name(error))
            return
        arrived = time.monotonic()
        if not data:
            self._end_of_stream()
            return
        reply = self._partial + data if self._partial else data
        body = reply.find(_HEAD_END) + len(_HEAD_END)
        end = _end(reply, body) if body >= len(_HEAD_END) else 0
        if not 0 < end <= len(reply):
            self._partial = reply
            return
        self._partial = b""
        self._finish(reply, body, arrived)

    def _finish(self, reply: bytes, body: int, arrived: float) -> None:
        status = reply[9:12]
        if not self.waiting or status not in _READABLE:
            self._fail(f"HTTP {status.decode(errors='replace')}" if self.waiting else "reply to nothing")
            return
        try:
            answer = self._owner.target.read(reply, body)
        except ValueError:
            self._fail("unreadable reply")
            return
        self.waiting = False
        if answer.cursor is not None:
            self.version, self.cursor = answer.version, answer.cursor
        if _CLOSE.search(reply, 0, body):
            self._owner.unwatch(self)
            self.close()
        self._owner.answered(self, answer, arrived)

    def _end_of_stream(self) -> None:
        if self.waiting:
            self._fail("closed")
            return
        self._owner.unwatch(self)  # an idle connection may be closed; the next poll makes another
        self.close()

    def _fail(self, what: str) -> None:
        self._owner.unwatch(self)
        self._owner.failed(self, what)
        self.close()


def _socket(host: str, source: str | None) -> socket.socket:
    """Return a socket that can connect there, from this address if one is given."""
    opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _VANISH)
        if source is not None:
            opened.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            opened.bind((source, 0))
    except OSError:
        opened.close()
        raise
    return opened


def _end(reply: bytes, body: int) -> int:
    """Return where the reply ends. Without a Content-Length it is its head alone."""
    found = _LENGTH.search(reply, 0, body)
    if found is None or reply[9:12] in _EMPTY:
        return body
    return body + int(found[1])


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)
