"""Holding a poll without a coroutine: its connection is parked.

What aiohttp keeps of a request that is under way (a task with its frames, the request, the parser) is about 9 KB, and
none of it is needed while nothing happens. So the router, the middlewares and the handler run as ever, up to the moment
at which the poll has to wait. Then the handler returns `PARKED`. Where aiohttp would write that reply, the transport
is moved to a `Connection`, and everything of aiohttp's is let go. Whatever ends the poll calls the connection, which
writes the reply in one piece. What the client sends next is a request for aiohttp, or the same poll asked again.

    accept ──▶ Connection (idle) ──first bytes──▶ PollHandler ──▶ middlewares ──▶ handlers/status
                  ▲      │  ▲                                                         │ PARKED.prepare()
                  │      │  └── the same poll, ──┐                                    │ set_protocol
                  │      └───── a newer version ─┴──▶ Connection (holds a poll) ◀─────┘
                  └──────────────── reply ─────────────────┘      ▲
                                                                  └── change, deadline, drain, …

A request that this doesn't fit (TLS, HTTP/1.0, `Connection: close`, a body, more requests behind it) is held by its
coroutine, which waits for the same board and keeps the same promises.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable
from typing import Final, TypeAlias, cast

from aiohttp import web
from aiohttp.http import HttpVersion11

from server.errors import Problem, Unavailable
from server.protocol import heads, repeats
from server.protocol.aiohttp_handler import PollHandler, PollServer
from server.protocol.departures import CONTINUE
from server.protocol.repeats import RepeatablePoll
from server.protocol.replies import DEFAULT_OPTIONS, ProblemReply, ReplyOptions, SharedReply
from server.protocol.turnstile import Turnstile
from server.storage.tasks import Task
from server.telemetry import logs
from server.telemetry.requests import CLIENT_CLOSED_REQUEST, CLIENT_GONE, RequestLog, RequestRecord
from server.waiting.answers import Answer
from server.waiting.parked_polls import OnAnswer, ParkedPoll
from server.waiting.waiters import Waiters

STATUS_ROUTE: Final = "/api/generate/status"
# Requests that a client sends without waiting for the answer to its poll; beyond, it is read no further.
_MOST_EARLY_BYTES: Final = 64 * 1024
# How often a connection is seen without a request until it is closed.
_LOOKS: Final = 5
# Beside those of clients: the pool, the listener, pictures, static files, whoever asks how the process is.
_DESCRIPTORS_BESIDE: Final = 128
_UNWELCOME_SECONDS: Final = 1.0


Repeat: TypeAlias = Callable[[RepeatablePoll, int, OnAnswer[Task]], ParkedPoll[Task] | None]
"""Takes a poll that was answered, the version with which it is asked again, and whom to give the answer.

Returns None if anything but waiting is to be done: then aiohttp handles the request.
"""


class Parking:
    """All connections that aiohttp doesn't serve just now, and what they need to serve themselves."""

    def __init__(
        self,
        request_log: RequestLog,
        waiters: Waiters,
        repeat: Repeat,
        *,
        enabled: bool,
        keepalive_seconds: float,
        most_descriptors: int,
    ) -> None:
        """Begin without a connection. `repeat`: does for a poll that is asked again what its first request met on its way.

        `keepalive_seconds`: how long a connection may be without a request.
        `most_descriptors`: how many this process may have. The last ones are for the database and for files.
        """
        self.request_log = request_log
        self.repeat = repeat
        self._waiters = waiters
        self._enabled = enabled
        self._look_every = keepalive_seconds / _LOOKS
        self._highest_descriptor = most_descriptors - _DESCRIPTORS_BESIDE
        self._connections: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._shared: SharedReply | None = None
        self.turnstile = Turnstile()

    @property
    def closing(self) -> bool:
        """Whether this process stops: nothing more is parked, and connections end with their answers."""
        return self._waiters.draining

    def admits(self, request: web.Request) -> bool:
        """Whether this request may be held without its coroutine."""
        handler, transport = request.protocol, request.transport
        return (
            self._enabled
            and isinstance(handler, PollHandler)
            and handler.is_done_reading
            and request.method == "GET"
            and request.version == HttpVersion11
            and request.keep_alive
            and not request.body_exists
            and transport is not None
            and not transport.get_write_buffer_size()
            and not isinstance(transport.get_extra_info("sslcontext"), ssl.SSLContext)
        )

    def connect(self, server: PollServer) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(self, server)

    def connection(self, request: web.Request) -> Connection:
        """Return what will hold an admitted request, once it has a poll and the handler has returned `PARKED`."""
        return Connection(self, _handler(request).server)

    @staticmethod
    def bytes_of(request: web.Request) -> bytes:
        """Return the bytes of an admitted request if they are known, else nothing."""
        return _handler(request).only_request

    def has_room_for(self, transport: asyncio.Transport) -> bool:
        """Whether this connection leaves enough descriptors for everything else: the system gives the lowest first."""
        opened = transport.get_extra_info("socket")
        return opened is None or opened.fileno() < self._highest_descriptor

    def shared(self, answer: Answer[Task]) -> SharedReply:
        """Return what they share who get this answer, one after the other."""
        shared = self._shared
        if shared is None or shared.answer is not answer:
            shared = self._shared = SharedReply(answer, close=self.closing)
        return shared

    def add(self, connection: Connection) -> None:
        """Take a connection in: from now on it is closed if nothing comes for long."""
        self._connections.add(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._look_every, self._look_for_idle)

    def remove(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)

    def close(self) -> None:
        """Close every connection that waits for a request; those with a poll are closed as they are answered."""
        if self._timer is not None:
            self._timer.cancel()
        for connection in self._connections:
            if connection.waits_for_request:
                connection.close()

    def _look_for_idle(self) -> None:
        # To look at all of them now and then costs less than to take note of each reply.
        self._timer = None
        if self._connections:
            self._timer = asyncio.get_running_loop().call_later(self._look_every, self._look_for_idle)
        for connection in self._connections:
            if connection.waits_for_request:
                connection.looks += 1
                if connection.looks > _LOOKS:
                    connection.close()


class Connection(asyncio.Protocol):
    """A connection without a request: new, or parked with a poll, or waiting for what its client asks next."""

    __slots__ = (
        "_again",
        "_early",
        "_ended",
        "_options",
        "_parking",
        "_poll",
        "_record",
        "_server",
        "_transport",
        "_unwelcome",
        "_writing_paused",
        "looks",
    )

    def __init__(self, parking: Parking, server: PollServer) -> None:
        """Begin without a transport: the event loop brings it, or `attach`."""
        self._parking = parking
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._poll: ParkedPoll[Task] | None = None
        self._record: RequestRecord | None = None
        self._options = DEFAULT_OPTIONS
        self._again: RepeatablePoll | None = None
        self._early = b""
        self._ended = False
        self._writing_paused = False
        self._unwelcome = False
        self.looks = 0

    @property
    def waits_for_request(self) -> bool:
        """Whether nothing has been asked, or everything was answered."""
        return self._poll is None

    def hold(
        self, poll: ParkedPoll[Task], record: RequestRecord, options: ReplyOptions, again: RepeatablePoll | None
    ) -> None:
        """Wait for this poll's answer, of which it tells `answer`. `again`: how to know the poll when it comes again."""
        self._poll, self._record, self._options, self._again = poll, record, options, again

    def attach(self, handler: PollHandler) -> None:
        """Take the transport from aiohttp's handler; if the client has just left, the poll ends here."""
        if self._poll is None:
            return  # it ended too early to be answered, because a middleware had to wait: aiohttp closes
        transport = handler.transport
        if transport is None or transport.is_closing():
            self._end_unheard()
            return
        self._transport, self._ended = transport, handler.ended
        self._parking.add(self)
        transport.set_protocol(self)
        handler.detach()
        if self._ended:
            self._server.departures.watch(transport, self._interim)

    def abandon(self) -> None:
        """Have the poll forgotten: its client has gone."""
        poll, self._poll = self._poll, None
        if poll is not None and self._record is not None:
            self._record.held = CLIENT_GONE, poll.abandon(), ()

    def withdraw(self) -> None:
        """Have the poll forgotten before it is parked: its request failed behind the handler, and is answered there."""
        poll, self._poll, self._record = self._poll, None, None
        if poll is not None:
            poll.abandon()

    def _end_unheard(self) -> None:
        self.abandon()
        record, self._record = self._record, None
        if record is not None:
            self._finish(record, CLIENT_CLOSED_REQUEST)

    def answer(self, answer: Answer[Task], held_seconds: float) -> None:
        """Write the reply, and wait for the next request or close."""
        self._poll = None
        record, self._record = self._record, None
        transport = self._transport
        assert record is not None, "answered once"
        try:
            assert transport is not None, "parked"
            shared = self._parking.shared(answer)
            record.held = shared.outcome, held_seconds, shared.changes
            reply = shared.reply(self._options)
            transport.write(reply.to_bytes(held_seconds, record.request_id, shared.end_of_head))
        except Exception as error:  # noqa: BLE001 - the last border: logged with its trace, which no client sees
            self._fail(record, error)
            return
        self._finish(record, reply.status)
        if shared.close or (self._ended and not self._early):
            transport.close()
            return
        self.looks = 0
        if self._early:
            self._parking.turnstile.admit(self.start_request)

    def _fail(self, record: RequestRecord, error: Exception) -> None:
        """Answer with a 500 and close. A poll that isn't parked yet is closed by `attach`."""
        self._parking.request_log.metrics.crashes.inc()
        logs.log.error(logs.REQUEST_CRASHED, request_id=record.request_id, path=STATUS_ROUTE, exc_info=error)
        self._finish(record, Problem.status)
        if self._transport is not None:
            end_of_head = heads.end_of_head(close=True)
            self._transport.write(ProblemReply(Problem()).to_bytes(0.0, record.request_id, end_of_head))
            self._transport.close()

    def _finish(self, record: RequestRecord, status: int) -> None:
        seconds = time.perf_counter() - record.started
        self._parking.request_log.request_finished(record, "GET", STATUS_ROUTE, STATUS_ROUTE, status, seconds)

    def data_received(self, data: bytes) -> None:
        """Keep what comes before the answer; what comes after it is the same poll again, or a request for aiohttp."""
        if self._unwelcome:
            self._refuse()
            return
        if self._poll is None and not self._early and self._try_repeat(data):
            return
        if self._poll is None and not self._early:
            self._parking.turnstile.admit(self.start_request)
        self._early += data
        if len(self._early) > _MOST_EARLY_BYTES and self._transport is not None:
            self._transport.pause_reading()
            self._server.departures.watch(self._transport, self._interim)

    def eof_received(self) -> bool:
        """Keep the connection while a reply is owed to a client that sends no more, unless it turns out to have gone."""
        if self._transport is None or (self._poll is None and not self._early):
            return False
        self._ended = True
        self._server.departures.watch(self._transport, self._interim)
        return True

    def _interim(self) -> bytes:
        return b"" if self._poll is None else CONTINUE

    def _try_repeat(self, data: bytes) -> bool:
        """Hold the poll if it is the last one with another version, and still nothing but waiting will do."""
        again, parking = self._again, self._parking
        if again is None or self._writing_paused:
            return False
        found = repeats.parse_repeat(data)
        if found is None or found[0] != again.request:
            return False
        self._poll = parking.repeat(again, found[1], self.answer)
        if self._poll is None:
            return False
        self._record = RequestRecord(again.question.user_id, again.question.task_id)
        return True

    def _refuse(self) -> None:
        """Say that there is no room. Only now: a reply to what wasn't read yet would be lost with the connection."""
        record, transport = RequestRecord(), self._transport
        if transport is not None and not transport.is_closing():
            wait = random.uniform(2, 8)  # spread out, or everybody comes back at once
            problem = Unavailable("This process has all the connections that it can have.", retry_after=wait)
            self._parking.request_log.request_finished(record, "other", "full", "full", problem.status, 0.0)
            transport.write(ProblemReply(problem).to_bytes(0.0, record.request_id, heads.end_of_head(close=True)))
            transport.close()

    def start_request(self) -> None:
        """Give the connection to a handler of aiohttp's, with what has come."""
        transport = self._transport
        if self._writing_paused or transport is None or transport.is_closing():
            return  # a client that doesn't read its answers has no more requests heard
        handler = self._server.handler()
        self._parking.remove(self)
        early, self._early = self._early, b""
        self._transport = self._again = None
        self._server.departures.forget(transport)
        transport.resume_reading()
        transport.set_protocol(handler)
        handler.connection_made(transport)
        handler.data_received(early)
        if self._ended and not handler.eof_received():
            transport.close()
        asyncio.get_running_loop().call_soon(self._server.on_request_started, self)  # behind aiohttp's first step

    # What the transport tells ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        self._transport = cast("asyncio.Transport", transport)
        self._parking.add(self)
        if not self._parking.has_room_for(self._transport):
            self._unwelcome = True
            asyncio.get_running_loop().call_later(_UNWELCOME_SECONDS, self.close)

    def pause_writing(self) -> None:
        """Hand nothing over while the client doesn't read: aiohttp's handler must begin with an empty buffer."""
        self._writing_paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on with what has come meanwhile."""
        self._writing_paused = False
        if self._transport is not None:
            self._transport.resume_reading()
        if self._poll is None and self._early:
            self._parking.turnstile.admit(self.start_request)

    def connection_lost(self, _error: Exception | None) -> None:
        """Let the poll go, or stop waiting for a request."""
        self._transport = None
        self._parking.remove(self)
        self._end_unheard()

    def close(self) -> None:
        """Close: no request has come for long, or the process stops."""
        if self._transport is not None:
            self._transport.close()


# What aiohttp must know of it ------------------------------------------------------------------------------------------


class _Parked(web.StreamResponse):
    """Stands for the reply of a poll that is parked. Writing it means handing its connection over."""

    @property
    def keep_alive(self) -> bool:
        """Have aiohttp end its own work on this connection."""
        return False

    async def prepare(self, request: web.BaseRequest) -> None:
        """Hand the connection over."""
        request[CONNECTION].attach(_handler(request))

    async def write_eof(self, data: bytes = b"") -> None:
        """Write nothing: the reply comes later, and from elsewhere."""


def _handler(request: web.BaseRequest) -> PollHandler:
    handler = request.protocol
    assert isinstance(handler, PollHandler), "admitted"
    return handler


CONNECTION: Final = web.RequestKey("parked connection", Connection)
PARKED: Final = _Parked()
