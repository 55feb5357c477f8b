"""The port: who connects to it is answered, even if the process has just been told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator
from typing import Final

from aiohttp import web

from server.config import ServerSettings
from server.errors import ConfigurationError
from server.protocol.aiohttp_handler import PollServer
from server.protocol.syn_filter import HANDSHAKE_SECONDS, hear_no_syn
from server.protocol.unix_socket import UnixSocket

# How long a connection that was made last may take to bring its first request, its TLS handshake included.
PATIENCE_SECONDS: Final = 0.8
_BACKLOG: Final = 4096


class Port:
    """Listens for an application, and knows who has connected lately and was not answered yet.

    The kernel resets what it has queued for a listening socket that is closed, and aiohttp closes a connection that
    has not asked anything yet (web_protocol.py, `RequestHandler.close`). Both would fail a client's first request,
    which it can't repeat as safely as one that crossed with the end of an idle connection.
    """

    def __init__(self, app: web.Application, settings: ServerSettings, tls: ssl.SSLContext | None) -> None:
        """Take note; `open` listens. The application must not have been started."""
        self._settings = settings
        self._unix_socket = UnixSocket(settings.unix_socket)
        self._tls = tls
        self._make_protocol: web.Server | None = None
        self._listening: asyncio.Server | None = None
        # By id(protocol), which keeps nobody alive: an id that comes again belongs to somebody who has just come.
        self._arrived: dict[int, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        app.on_response_prepare.append(self._answered)

    async def open(self, make_protocol: web.Server) -> int:
        """Listen; returns the port's number, 0 for a unix socket.

        Raises:
            ConfigurationError: the address can't be used.
        """
        self._make_protocol, settings = make_protocol, self._settings
        if isinstance(make_protocol, PollServer):
            make_protocol.on_request_started = self._on_request_started
        try:
            self._listening = await self._listen(settings)
        except OSError as error:
            address = settings.unix_socket or f"{settings.host}:{settings.port}"
            raise ConfigurationError(f"can't listen on {address}: {error.strerror or error}") from error
        name = self._listening.sockets[0].getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    async def _listen(self, settings: ServerSettings) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        if settings.unix_socket:
            return await loop.create_unix_server(
                self._meet, sock=self._unix_socket.open(), ssl=self._tls, backlog=_BACKLOG
            )
        if _is_any_ipv6(settings.host) and socket.has_dualstack_ipv6():
            # asyncio would have it hear IPv6 alone.
            address, reuse_port = (settings.host, settings.port), settings.reuse_port
            both = socket.create_server(address, family=socket.AF_INET6, dualstack_ipv6=True, reuse_port=reuse_port)
            return await loop.create_server(self._meet, sock=both, ssl=self._tls, backlog=_BACKLOG)
        return await loop.create_server(
            self._meet,
            settings.host,
            settings.port,
            ssl=self._tls,
            reuse_port=settings.reuse_port or None,
            backlog=_BACKLOG,
        )

    async def close(self) -> None:
        """Stop listening, and return when everybody who has connected lately was answered or has had time enough."""
        assert self._listening is not None, "open"
        loop = asyncio.get_running_loop()
        # One's own descriptors: those of the loop are closed by close(), together with the kernel's queue.
        sockets = [socket.socket(fileno=os.dup(each.fileno())) for each in self._listening.sockets]
        if self._settings.unix_socket:
            self._unix_socket.remove()
        elif self._settings.reuse_port and all(hear_no_syn(each) for each in sockets):
            await asyncio.sleep(HANDSHAKE_SECONDS)
        for listening in self._listening.sockets:
            loop.remove_reader(listening.fileno())
        await asyncio.sleep(0)  # whom the loop has accepted in this turn, it brings in in the next, or not at all
        self._listening.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                queued = [client for each in sockets for client in _take_queue(each)]
                accepting = [loop.connect_accepted_socket(self._meet, client, ssl=self._tls) for client in queued]
                await asyncio.gather(*accepting, return_exceptions=True)
                while self._arrived:
                    await asyncio.sleep(0.01)
        if self._timer is not None:
            self._timer.cancel()

    def _meet(self) -> asyncio.BaseProtocol:
        """Make the protocol of a connection, which the loop asks for as soon as it has accepted it."""
        assert self._make_protocol is not None, "open"
        loop, protocol = asyncio.get_running_loop(), self._make_protocol()
        self._arrived.pop(id(protocol), None)
        self._arrived[id(protocol)] = loop.time() + PATIENCE_SECONDS
        if self._timer is None:
            self._timer = loop.call_later(PATIENCE_SECONDS, self._forget)
        return protocol

    def _on_request_started(self, protocol: asyncio.BaseProtocol) -> None:
        """Wait for that one no longer: aiohttp is at work on its request, and ends that by itself."""
        self._arrived.pop(id(protocol), None)

    async def _answered(self, request: web.Request, _response: web.StreamResponse) -> None:
        self._arrived.pop(id(request.protocol), None)

    def _forget(self) -> None:
        """Wait no longer for those who have had time enough; one timer serves them all."""
        now = asyncio.get_running_loop().time()
        for protocol, until in list(self._arrived.items()):
            if until > now:
                break  # they stand in the order in which they came
            del self._arrived[protocol]
        self._timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._forget) if self._arrived else None


def _is_any_ipv6(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.version == 6 and address.is_unspecified


def _take_queue(listening: socket.socket) -> Iterator[socket.socket]:
    """Accept everybody who stands in the kernel's queue, and close the socket at once."""
    with listening:
        listening.setblocking(False)
        while True:
            try:
                client, _ = listening.accept()
            except ConnectionAbortedError:
                continue  # that one has left the queue by itself
            except OSError:
                return  # the queue is empty, or there are no descriptors left
            client.setblocking(False)
            yield client
