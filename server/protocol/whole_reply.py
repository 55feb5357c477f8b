"""A poll's reply that leaves in one piece, with the very bytes that a parked connection would write."""

from __future__ import annotations

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11

from server.protocol import heads
from server.protocol.aiohttp_handler import PollHandler, begin_reply
from server.protocol.replies import StateReply, headers_of


class WholeReply(web.StreamResponse):
    """Written past aiohttp's own way, header by header, which costs more than all the rest of a wake."""

    def __init__(self, reply: StateReply, held_seconds: float, request_id: str) -> None:
        """Stand for this reply to somebody who was held for so long."""
        super().__init__(status=reply.status)
        self.reply = reply
        self._held_seconds = held_seconds
        self._request_id = request_id
        self._written = False

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write all of it; asked again, nothing."""
        if self._written:
            return
        self._written = True
        await begin_reply(request, self)
        transport = request.transport
        if transport is not None:
            end_of_head = heads.end_of_head(close=not self.keep_alive)
            transport.write(self.reply.to_bytes(self._held_seconds, self._request_id, end_of_head))

    async def write_eof(self, data: bytes = b"") -> None:
        """Write nothing: that was all."""


def poll_reply(request: web.Request, reply: StateReply, held_seconds: float, request_id: str) -> web.StreamResponse:
    """Return the reply to a poll; aiohttp writes it where the request isn't one of the plain kind."""
    if (
        request.version == HttpVersion11
        and request.method == hdrs.METH_GET
        and isinstance(request.protocol, PollHandler)
    ):
        return WholeReply(reply, held_seconds, request_id)
    status, head, body = reply.compose(held_seconds)
    return web.Response(status=status, headers=headers_of(head), body=body)
