"""A poll's reply that leaves in one piece, with the very bytes that a parked connection would write."""

from __future__ import annotations

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11

from server import wire
from server.poll_replies import Composed, headers_of


class WholeReply(web.StreamResponse):
    """Written past aiohttp's own way, header by header, which costs more than all the rest of a wake."""

    def __init__(self, composed: Composed, request_id: str) -> None:
        """`composed`: status, head and body, all that differs from one reply to another."""
        super().__init__(status=composed[0])
        self.composed = composed
        self._request_id = request_id

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write all of it."""
        await request._prepare_hook(self)  # noqa: SLF001 - what every reply's prepare() begins with
        if self.keep_alive is None:
            self._keep_alive = request.keep_alive
        transport = request.transport
        if transport is not None:
            close = not self.keep_alive
            transport.write(wire.reply_bytes(*self.composed, request_id=self._request_id, close=close))

    async def write_eof(self, data: bytes = b"") -> None:
        """Write nothing: that was all."""


def poll_reply(request: web.Request, composed: Composed, request_id: str) -> web.StreamResponse:
    """Return the reply to a poll; aiohttp writes it where the request isn't one of the plain kind."""
    if request.version == HttpVersion11 and request.method == hdrs.METH_GET:
        return WholeReply(composed, request_id)
    status, head, body = composed
    return web.Response(status=status, headers=headers_of(head), body=body)
