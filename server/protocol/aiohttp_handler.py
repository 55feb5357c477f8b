"""aiohttp's request handler and server, extended so that connections can be parked.

This needs names that aiohttp keeps to itself. They are used in this module only and listed in `PRIVATE_NAMES`: where one is
missing, the server runs with aiohttp's own handler, and every poll is held by its coroutine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web, web_protocol
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler

from server.protocol.departures import CONTINUE, Departures

MOST_HEADER_BYTES: Final = 32 * 1024
MOST_LINE_BYTES: Final = 8190  # of the first line
# aiohttp bounds each header and their number, which together are megabytes.
_MOST_HEAD_BYTES: Final = MOST_LINE_BYTES + MOST_HEADER_BYTES
_END_OF_HEAD: Final = b"\r\n\r\n"

PRIVATE_NAMES: Final[Mapping[object, tuple[str, ...]]] = {
    RequestHandler: (
        "_current_request",
        "_force_close",
        "_keepalive_handle",
        "_loop",
        "_manager",
        "_messages",
        "_next_keepalive_close_time",
        "_parser",
        "_pause_transport_reading",
        "_process_keepalive",
        "_request_count",
        "_request_factory",
        "_request_handler",
        "_resume_transport_reading",
        "_upgraded",
        "_waiter",
    ),
    web.BaseRequest: ("_prepare_hook",),
    web.StreamResponse: ("_keep_alive",),
    web_protocol: ("_ErrInfo",),
}
_PRIVATE_NAMES_OF_A_SERVER: Final = ("_kwargs", "_loop")  # which has them only once it is made


def missing_names(made: web.Server) -> list[str]:
    """Return the private names that this release of aiohttp doesn't have; `made`: any server of its own."""
    wanted = [*PRIVATE_NAMES.items(), (made, _PRIVATE_NAMES_OF_A_SERVER)]
    return [name for owner, names in wanted for name in names if not hasattr(owner, name)]


async def begin_reply(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Do what aiohttp's `StreamResponse.prepare` begins with."""
    await request._prepare_hook(response)  # noqa: SLF001
    if response.keep_alive is None:
        response._keep_alive = request.keep_alive  # noqa: SLF001


def _bad_head(error: LineTooLong) -> web_protocol._ErrInfo:
    return web_protocol._ErrInfo(status=400, exc=error, message=error.message)  # noqa: SLF001


class PollHandler(RequestHandler):
    """aiohttp's handler of a connection, which bounds what is read of a request's head and how long that may take.

    It also knows whether its parser has swallowed part of a next request.
    """

    __slots__ = ("_chunks", "_last_body", "_last_chunk", "_unfinished", "ended", "server")

    def __init__(self, server: PollServer, **options: object) -> None:
        """Begin as aiohttp's does."""
        bounds = {"max_line_size": MOST_LINE_BYTES, "max_field_size": MOST_HEADER_BYTES}
        super().__init__(server, **bounds, **options)  # type: ignore[arg-type]
        self.server = server
        self._chunks = 0
        self._last_chunk = b""
        self._last_body: StreamReader | None = None
        self.ended = False  # the client has said that it sends no more
        self._unfinished: bytearray | None = None  # the head that is being read, if it came in pieces

    def data_received(self, data: bytes) -> None:
        """Hand the bytes to the parser. A request without a body ends with an empty line, and nothing is behind it."""
        self._chunks += 1
        self._last_chunk = data
        if self._waiter is None and self._request_count:
            super().data_received(data)  # a body, or what is behind the request in hand
            self._note_last_request()
            return
        if self._unfinished is not None:
            self._unfinished += data
        head = data if self._unfinished is None else self._unfinished
        if len(head) > _MOST_HEAD_BYTES and head.find(_END_OF_HEAD, 0, _MOST_HEAD_BYTES) < 0:
            self._refuse_head()
            return
        count = self._request_count
        super().data_received(data)
        self._note_last_request()
        if self._request_count == count:
            self._wait_for_rest(data)
        elif self._messages and isinstance(self._messages[-1][0], RawRequestMessage):
            self._unfinished = None

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection while replies are owed to a client that sends no more, unless it turns out to have gone."""
        owes_replies = self._waiter is None and self._last_body is not None and self._last_body.is_eof()
        if self.transport is None or not owes_replies or self.ssl_context is not None:
            return False  # asyncio doesn't know half a TLS connection
        self.ended = True
        self.server.departures.watch(self.transport, self.interim)
        return True

    def _note_last_request(self) -> None:
        if self._messages:
            self._last_body = self._messages[-1][1]

    def interim(self) -> bytes | None:
        """Return what may be written now, to learn whether the client is still there (see `departures`)."""
        request = self._current_request
        if request is None or request.writer.output_size:
            return b""
        return CONTINUE if request.version >= HttpVersion11 and self.ssl_context is None else None

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the reply; the last one to a client that sends no more ends the connection."""
        if self.ended and not self._messages:
            resp.force_close()
        return await super().finish_response(request, resp, start_time)

    def _pause_transport_reading(self) -> None:
        """Read no further, and have somebody else look whether the client is still there."""
        super()._pause_transport_reading()
        if self.transport is not None:
            self.server.departures.watch(self.transport, self.interim)

    def _resume_transport_reading(self) -> None:
        super()._resume_transport_reading()
        if self.transport is not None and not self.ended:
            self.server.departures.forget(self.transport)

    @property
    def head(self) -> bytes:
        """What has come of a head that can't be read."""
        return self._last_chunk if self._unfinished is None else bytes(self._unfinished)

    def _refuse_head(self) -> None:
        """Have the head answered as aiohttp does one that it can't parse (web_protocol.py, `data_received`)."""
        error = LineTooLong(b"", MOST_HEADER_BYTES)
        self._request_count += 1
        self._messages.append((_bad_head(error), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _wait_for_rest(self, data: bytes) -> None:
        """Wait for the rest of a head, but not as long as for one that hasn't begun."""
        if self._unfinished is not None or not data:
            return
        self._unfinished = bytearray(data)
        until = self._loop.time() + self.server.head_seconds
        if self._keepalive_handle is not None and until < self._next_keepalive_close_time:
            self._keepalive_handle.cancel()
            self._next_keepalive_close_time = until
            self._keepalive_handle = self._loop.call_at(until, self._process_keepalive)

    @property
    def is_done_reading(self) -> bool:
        """Whether the request in hand is all that has been read: the connection may go elsewhere."""
        ends = self._last_chunk.endswith(_END_OF_HEAD)
        return ends and not self._messages and not self._upgraded and not self._force_close

    @property
    def only_request(self) -> bytes:
        """The bytes of the request in hand if they came in one piece and are all that ever came here; else nothing."""
        return self._last_chunk if self._chunks == 1 and self._request_count == 1 else b""

    def detach(self) -> None:
        """Forget the connection, which somebody else has taken: `start` then ends and closes nothing.

        (aiohttp 3.14.5, web_protocol.py: what `connection_lost` does, but for closing the transport and canceling us.)
        """
        self.keep_alive(False)  # and its timer
        self.transport = None
        if self._manager is not None:
            self._manager.connection_lost(self)
        self._manager = self._request_factory = self._request_handler = None
        self._parser = None  # it points back at us: without this only the garbage collector would find us


def _ignore(_connection: asyncio.BaseProtocol) -> None:
    """Take no notice."""


class PollServer(web.Server):
    """aiohttp's server, whose connections begin without one of its handlers: it is made when first bytes come.

    `on_request_started` is told of each connection that aiohttp has got.
    """

    def __init__(
        self,
        made: web.Server,
        connect: Callable[[PollServer], asyncio.BaseProtocol],
        handler: type[PollHandler] = PollHandler,
        *,
        head_seconds: float,
    ) -> None:
        """Be what aiohttp has made for its application, with handlers of this class.

        `head_seconds`: how long a request's head may take, once it has begun.
        """
        super().__init__(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,  # noqa: SLF001 - aiohttp has no way to make another kind
            **made._kwargs,  # noqa: SLF001
        )
        self._connect = connect
        self._handler = handler
        self.head_seconds = head_seconds
        self.departures = Departures()
        self.on_request_started: Callable[[asyncio.BaseProtocol], None] = _ignore

    def __call__(self) -> asyncio.BaseProtocol:  # type: ignore[override]
        """Return the protocol of a new connection."""
        return self._connect(self)

    def handler(self) -> PollHandler:
        """Return a handler for a connection on which bytes have come."""
        return self._handler(self, loop=self._loop, **self._kwargs)
