"""Holding a poll without a coroutine: its connection is parked.

What aiohttp keeps of a request that is under way (a task with its frames, the request, the parser) is about 9 KB, and
none of it is needed while nothing happens. So the router, the middlewares and the handler run as ever, up to the moment
at which the poll has to wait. Then the handler returns `PARKED`. Where aiohttp would write that reply, the transport
is moved to a `ParkedConnection`, and everything of aiohttp's is let go. Whatever ends the poll calls the connection,
which writes the reply in one piece. The first bytes of the next request go to a fresh handler of aiohttp's.

    bytes ──▶ aiohttp's handler ──▶ middlewares ──▶ handlers/status ──▶ PARKED.prepare()
                     ▲                                                        │ set_protocol
                     │ first bytes of the next request                        ▼
                     └───────────────────────────────────────────── ParkedConnection ◀── change, deadline, drain, …

A request that this doesn't fit (TLS, HTTP/1.0, `Connection: close`, a body, more requests behind it) is held by its
coroutine, which waits for the same board and keeps the same promises.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Final

from aiohttp import web
from aiohttp.http import HttpVersion11
from aiohttp.web_protocol import RequestHandler

from server import logs, poll_replies, wire
from server.errors import Problem
from server.observing import CLIENT_GONE, STATUS_OF_NOBODY, Observer, Trace
from server.poll_replies import Manner
from server.storage.tasks import Task
from server.waiting.deadlines import Deadlines
from server.waiting.polling import Answer, ParkedPoll
from server.waiting.waiters import Waiters

STATUS_ROUTE: Final = "/api/generate/status"
KEEPALIVE_SECONDS: Final = 75.0
# Requests that a client sends without waiting for the answer to its poll; beyond, it is read no further.
_MOST_EARLY_BYTES: Final = 64 * 1024


class PollHandler(RequestHandler):
    """aiohttp's handler of one connection, which also knows whether its parser has swallowed part of a next request."""

    __slots__ = ("_ends_whole",)

    def data_received(self, data: bytes) -> None:
        """Hand the bytes to the parser. A request without a body ends with an empty line, so nothing came behind it."""
        self._ends_whole = data.endswith(b"\r\n\r\n")
        super().data_received(data)

    @property
    def is_done_reading(self) -> bool:
        """Whether the request in hand is all that has been read: the connection may go elsewhere."""
        return self._ends_whole and not self._messages and not self._upgraded and not self._force_close

    def let_go(self) -> None:
        """Forget the connection, which somebody else has taken: `start` then ends and closes nothing.

        (aiohttp 3.14.5, web_protocol.py: what `connection_lost` does, but for closing the transport and canceling us.)
        """
        self.keep_alive(False)  # and its timer
        self.transport = None
        if self._manager is not None:
            self._manager.connection_lost(self)
        self._manager = self._request_factory = self._request_handler = None
        self._parser = None  # it points back at us: without this only the garbage collector would find us


class PollServer(web.Server):
    """Makes a handler for each connection, and for each request on a connection that was parked."""

    def __call__(self) -> PollHandler:
        """Return a handler."""
        return PollHandler(self, loop=self._loop, **self._kwargs)


class _Parked(web.StreamResponse):
    """Stands for the reply of a poll that is parked. Writing it means handing its connection over."""

    @property
    def keep_alive(self) -> bool:
        """Have aiohttp end its own work on this connection."""
        return False

    async def prepare(self, request: web.BaseRequest) -> None:
        """Take the connection over."""
        request[CONNECTION].take_over(request.protocol)

    async def write_eof(self, data: bytes = b"") -> None:
        """Write nothing: the reply comes later, and from elsewhere."""


class Parking:
    """Where connections are parked. Knows what may be, and those that wait for their client's next request."""

    def __init__(self, observer: Observer, waiters: Waiters, *, enabled: bool) -> None:
        """Count and log what is answered with this observer; close what is answered once the waiters are draining."""
        self.observer = observer
        self.enabled = enabled
        self.idle = Deadlines()
        self._waiters = waiters

    @property
    def closing(self) -> bool:
        """Whether this process stops: nothing more is parked, and connections end with their answers."""
        return self._waiters.draining

    def admits(self, request: web.Request) -> bool:
        """Whether this request may be held without its coroutine."""
        handler, transport = request.protocol, request.transport
        return (
            self.enabled
            and not self.closing
            and isinstance(handler, PollHandler)
            and handler.is_done_reading
            and request.method == "GET"
            and request.version == HttpVersion11
            and request.keep_alive
            and not request.body_exists
            and transport is not None
            and not transport.get_write_buffer_size()
            and not _is_encrypted(transport)
        )

    def close(self) -> None:
        """Close every connection that waits for a request; those with a poll are closed as they are answered."""
        for connection in list(self.idle):
            connection.expire()


def _is_encrypted(transport: asyncio.Transport) -> bool:
    return isinstance(transport.get_extra_info("sslcontext"), ssl.SSLContext)


class ParkedConnection(asyncio.Protocol):
    """A connection with a poll that waits, or, once that is answered, one that waits for its client's next request."""

    __slots__ = (
        "_early",
        "_manner",
        "_parking",
        "_poll",
        "_server",
        "_slot",
        "_trace",
        "_transport",
        "_writing_paused",
    )

    def __init__(self, parking: Parking, trace: Trace, manner: Manner) -> None:
        """Begin without a transport: `take_over` brings it, within the same turn of the loop."""
        self._parking = parking
        self._trace: Trace | None = trace
        self._manner = manner
        self._poll: ParkedPoll[Task] | None = None
        self._transport: asyncio.Transport | None = None
        self._server: PollServer | None = None
        self._early = b""
        self._slot = 0
        self._writing_paused = False

    def hold(self, poll: ParkedPoll[Task]) -> None:
        """Wait for this poll's answer, of which it tells `answer`."""
        self._poll = poll

    def take_over(self, handler: asyncio.BaseProtocol) -> None:
        """Take the transport from aiohttp's handler; if the client has just left, the poll ends here."""
        assert isinstance(handler, PollHandler), "admitted"
        transport, manager = handler.transport, handler._manager  # noqa: SLF001 - aiohttp has no other way to ask
        if transport is None or transport.is_closing() or not isinstance(manager, PollServer):
            self._end_unheard()
            return
        self._transport, self._server = transport, manager
        transport.set_protocol(self)
        handler.let_go()

    # The answer --------------------------------------------------------------------------------------------------------

    def answer(self, answer: Answer[Task]) -> None:
        """Write the reply, and wait for the next request or close."""
        self._poll = None
        trace, self._trace = self._trace, None
        assert trace is not None, "answered once"
        assert self._transport is not None, "parked"
        close = self._parking.closing
        self._transport.write(self._reply(answer, trace, close=close))
        if close:
            self._transport.close()
        elif self._early:
            self._proceed()
        else:
            self._slot = self._parking.idle.add(self, KEEPALIVE_SECONDS)

    def _reply(self, answer: Answer[Task], trace: Trace, *, close: bool) -> bytes:
        observer = self._parking.observer
        try:
            if answer.snapshot is None:
                status, headers, body = poll_replies.compose_problem(poll_replies.missing(answer), trace.request_id)
            else:
                status, headers, body = poll_replies.compose(answer.snapshot, answer, self._manner)
            outcome = poll_replies.outcome(answer)
        except Exception as error:  # noqa: BLE001 - the last border: logged with its trace, which no client sees
            observer.metrics.crashes.inc()
            logs.log.error(logs.REQUEST_CRASHED, request_id=trace.request_id, path=STATUS_ROUTE, exc_info=error)
            status, headers, body = poll_replies.compose_problem(Problem(), trace.request_id)
            outcome = "crashed"
        changed = (answer.snapshot,) if answer.snapshot is not None and answer.changed else ()
        observer.poll_finished(trace, outcome, answer.held_seconds, changed)
        self._finish(trace, status)
        return wire.reply_bytes(status, headers, body, request_id=trace.request_id, close=close)

    def abandon(self) -> None:
        """Have the poll forgotten: its client has gone."""
        poll, self._poll = self._poll, None
        if poll is not None and self._trace is not None:
            self._parking.observer.poll_finished(self._trace, CLIENT_GONE, poll.abandon())

    def _end_unheard(self) -> None:
        self.abandon()
        trace, self._trace = self._trace, None
        if trace is not None:
            self._finish(trace, STATUS_OF_NOBODY)

    def _finish(self, trace: Trace, status: int) -> None:
        seconds = time.perf_counter() - trace.started
        self._parking.observer.request_finished(trace, "GET", STATUS_ROUTE, STATUS_ROUTE, status, seconds)

    # The next request --------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Keep what comes before the answer; what comes after it goes to a handler of aiohttp's."""
        self._early += data
        if self._poll is None:
            self._proceed()
        elif len(self._early) > _MOST_EARLY_BYTES and self._transport is not None:
            self._transport.pause_reading()

    def _proceed(self) -> None:
        self._stop_idling()
        transport, server = self._transport, self._server
        if self._writing_paused or transport is None or server is None or transport.is_closing():
            return  # a client that doesn't read its answers has no more requests heard
        early, self._early = self._early, b""
        self._transport = None
        transport.resume_reading()
        handler = server()
        transport.set_protocol(handler)
        handler.connection_made(transport)
        handler.data_received(early)

    def _stop_idling(self) -> None:
        if self._slot:
            self._parking.idle.remove(self, self._slot)
            self._slot = 0

    def expire(self) -> None:
        """Close: no request has come for long, or the process stops."""
        if self._transport is not None:
            self._transport.close()

    # What else the transport tells -------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """Read nothing while the client doesn't read: the next handler must begin with an empty buffer."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """Go on with what has come meanwhile."""
        self._writing_paused = False
        if self._poll is None and self._early:
            self._proceed()

    def connection_lost(self, _error: Exception | None) -> None:
        """Let the poll go, or stop waiting for a request."""
        self._transport = None
        self._stop_idling()
        self._end_unheard()


CONNECTION: Final = web.RequestKey("parked connection", ParkedConnection)
PARKED: Final = _Parked()
