"""A proxy before Postgres that breaks on command: half-open connections, resets, delays, refusals, all of them counted.

client --- to_server --> proxy --- to_server --> Postgres' unix socket
       <-- to_client ---       <-- to_client ---
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

from psycopg2.extensions import make_dsn, parse_dsn

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Direction:
    """One way through the proxy, for all its connections: may stand still, or be slow.

    What stands still is kept by the operating system, so nobody is told, as behind a firewall that forgot a connection.
    """

    delay_seconds: float = 0.0
    paused: bool = False
    passed_bytes: int = 0
    ends: set[End] = field(default_factory=set)

    def pause(self) -> None:
        """Forward nothing more; every connection stays open."""
        self.paused = True
        for end in self.ends:
            end.transport.pause_reading()

    def resume(self) -> None:
        """Forward again, beginning with what has waited."""
        self.paused = False
        for end in self.ends:
            end.go_on()


class End(asyncio.Protocol):
    """One end of a connection: what it hears goes out at the other one."""

    def __init__(self, direction: Direction) -> None:
        self.direction = direction
        self.other: End | None = None
        self._kept: list[bytes] = []
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        # Not at once: up to Python 3.11.3 the transport begins to read behind this call, whatever it says.
        asyncio.get_running_loop().call_soon(self._stand_still)

    def _stand_still(self) -> None:
        if self.other is None or self.direction.paused:  # under uvloop it may have been joined already
            self.transport.pause_reading()

    def join(self, other: End) -> None:
        """Forward from now on, unless the direction stands still."""
        self.other = other
        self.direction.ends.add(self)
        if not self.direction.paused:
            self.go_on()

    def go_on(self) -> None:
        """Forward what was kept, and all that comes."""
        kept, self._kept = self._kept, []
        for data in kept:
            self.data_received(data)
        self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.direction.paused:
            self._kept.append(data)  # uvloop may read before it can be told not to
            return
        self.direction.passed_bytes += len(data)
        if self.direction.delay_seconds:
            asyncio.get_running_loop().call_later(self.direction.delay_seconds, self.other.transport.write, data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self.direction.ends.discard(self)
        if self.other is not None:
            self.other.transport.close()

    def reset(self) -> None:
        """End the connection by force: the other side sees a reset, not an end."""
        opened = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):  # closed already; uvloop then has no socket to show
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()


class Proxy:
    """Forwards a TCP port of 127.0.0.1 to a unix socket.

    Attributes:
        port: where it listens.
        accepted: how many connections were ever asked for, the refused ones among them.
        refusing: whether new connections are reset at once.
    """

    def __init__(self, target: str) -> None:
        self.to_server = Direction()
        self.to_client = Direction()
        self.accepted = 0
        self.refusing = False
        self.port = 0
        self._target = target
        self._opening: set[asyncio.Task[None]] = set()

    @property
    def open(self) -> int:
        """How many connections pass through now."""
        return len(self.to_server.ends)

    def dsn(self, dsn: str) -> str:
        """Return the DSN of the same database, by way of this proxy."""
        return make_dsn(dsn, host="127.0.0.1", port=self.port)

    def pause(self) -> None:
        """Forward nothing in either direction; connections stay open, and new ones are taken and left in silence."""
        self.to_server.pause()
        self.to_client.pause()

    def resume(self) -> None:
        """Forward again."""
        self.to_server.resume()
        self.to_client.resume()

    def cut(self) -> None:
        """Reset every connection."""
        for end in [*self.to_server.ends, *self.to_client.ends]:
            end.reset()

    def fail(self) -> None:
        """Be what a stopped server is: every connection ends, and new ones are refused."""
        self.refusing = True
        self.cut()

    def recover(self) -> None:
        """Take new connections again."""
        self.refusing = False

    async def serve(self) -> asyncio.Server:
        """Open the port."""
        server = await asyncio.get_running_loop().create_server(lambda: _Entrance(self), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def accept(self, client: End) -> None:
        """Take a new connection, or refuse it."""
        self.accepted += 1
        if self.refusing:
            client.reset()
            return
        task = asyncio.create_task(self._forward(client))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _forward(self, client: End) -> None:
        try:
            _, server = await asyncio.get_running_loop().create_unix_connection(
                lambda: End(self.to_client), self._target
            )
        except OSError:
            client.reset()  # nobody is at home
            return
        server.join(client)
        client.join(server)


class _Entrance(End):
    def __init__(self, proxy: Proxy) -> None:
        super().__init__(proxy.to_server)
        self._proxy = proxy

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._proxy.accept(self)


@contextlib.asynccontextmanager
async def proxy_to(dsn: str) -> AsyncIterator[Proxy]:
    """Run a proxy before the Postgres of this DSN, which names a folder with its unix socket."""
    parts = parse_dsn(dsn)
    proxy = Proxy(f"{parts['host']}/.s.PGSQL.{parts['port']}")
    server = await proxy.serve()
    try:
        yield proxy
    finally:
        server.close()
        proxy.refusing = True
        proxy.cut()
