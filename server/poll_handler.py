"""What aiohttp's handler and server must know more than their own, so that connections can be parked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

_END_OF_HEAD: Final = b"\r\n\r\n"


class PollHandler(RequestHandler):
    """aiohttp's handler of a connection, which also knows whether its parser has swallowed part of a next request."""

    __slots__ = ("_chunks", "_last_chunk", "server")

    def __init__(self, server: web.Server, **options: object) -> None:
        """Begin as aiohttp's does."""
        super().__init__(server, **options)  # type: ignore[arg-type]
        self.server = server
        self._chunks = 0
        self._last_chunk = b""

    def data_received(self, data: bytes) -> None:
        """Hand the bytes to the parser. A request without a body ends with an empty line, and nothing is behind it."""
        self._chunks += 1
        self._last_chunk = data
        super().data_received(data)

    @property
    def is_done_reading(self) -> bool:
        """Whether the request in hand is all that has been read: the connection may go elsewhere."""
        ends = self._last_chunk.endswith(_END_OF_HEAD)
        return ends and not self._messages and not self._upgraded and not self._force_close

    @property
    def only_request(self) -> bytes:
        """The bytes of the request in hand if they came in one piece and are all that ever came here; else nothing."""
        return self._last_chunk if self._chunks == 1 and self._request_count == 1 else b""

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


def _ignore(_connection: asyncio.BaseProtocol) -> None:
    """Take no notice."""


class PollServer(web.Server):
    """aiohttp's server, whose connections begin without one of its handlers: it is made when first bytes come.

    `begun` is told of each connection that aiohttp has got.
    """

    def __init__(
        self,
        made: web.Server,
        connect: Callable[[PollServer], asyncio.BaseProtocol],
        handler: type[PollHandler] = PollHandler,
    ) -> None:
        """Be what aiohttp has made for its application, with handlers of this class."""
        super().__init__(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,  # noqa: SLF001 - aiohttp has no way to make another kind
            **made._kwargs,  # noqa: SLF001
        )
        self._connect = connect
        self._handler = handler
        self.begun: Callable[[asyncio.BaseProtocol], None] = _ignore

    def __call__(self) -> asyncio.BaseProtocol:  # type: ignore[override]
        """Return the protocol of a new connection."""
        return self._connect(self)

    def handler(self) -> PollHandler:
        """Return a handler for a connection on which bytes have come."""
        return self._handler(self, loop=self._loop, **self._kwargs)
