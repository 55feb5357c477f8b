"""Open connections to Postgres, handed out one statement at a time.

There may be fewer of them than wanted: a role, a database, the server or a pooler may have a limit. So a connection
that can't be had bars connecting for a while, and nothing else: who needs one waits for one that is open.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import aiopg
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from server.errors import DatabaseUnavailable, ServerError
from server.telemetry import logs

_LONGEST_PAUSE_SECONDS: Final = 2.0
_DOUBLINGS: Final = 6  # enough for the longest pause; half an hour of failures is more than a float can hold


class Pool:
    """Up to `size` connections, one of which is kept for heartbeats as soon as there are two.

    One connection is made at a time, in a task of the pool's own: whoever needs it may leave, and those behind a
    connect that failed are refused together if no connection is open.

    Attributes:
        size: how many connections there may be.
        failures: how many connects in a row have failed.
        refused: how many connects have failed in all.
    """

    def __init__(self, connect: Callable[[], Awaitable[aiopg.Connection]], size: int) -> None:
        """Take note of how to connect; the errors of `connect` are told as DatabaseUnavailable."""
        self._connect = connect
        self._free: deque[aiopg.Connection] = deque()
        self._used: set[aiopg.Connection] = set()
        self._growing: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._barred_until = 0.0
        self._reason = ""
        self._closed = False
        self.size = size
        self.failures = 0
        self.refused = 0

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._free) + len(self._used)

    async def fill(self) -> None:
        """Make the first connection, so that a wrong DSN is noticed now.

        Raises:
            ServerError: what `connect` raises.
        """
        self._free.append(await self._connect())

    async def acquire(self, deadline: float, *, heartbeat: bool = False) -> aiopg.Connection:
        """Take an open connection, or wait for one until this time of the loop's clock; `release` gives it back.

        Raises:
            DatabaseUnavailable: none is open and none can be had, or none was free in time.
        """
        while True:
            self._drop_dead()
            if self._may_take(heartbeat=heartbeat):
                connection = self._free.popleft()
                self._used.add(connection)
                return connection
            if self._closed:
                raise DatabaseUnavailable("this process stops")
            if self._may_grow():
                self._growing = self._growing or asyncio.create_task(self._grow(), name="connecting")
            elif not self.open:
                raise DatabaseUnavailable(self._reason)
            await self._wait_for_change(deadline)

    def release(self, connection: aiopg.Connection) -> None:
        """Give a connection back; a dead one is forgotten."""
        self._used.discard(connection)
        if self._closed or (
            not connection.closed and connection.raw.get_transaction_status() != TRANSACTION_STATUS_IDLE
        ):
            connection.close()
        if not connection.closed:
            self._free.append(connection)
        self._tell()

    async def close(self) -> None:
        """Close every connection, those in use too."""
        self._closed = True
        if self._growing is not None:
            self._growing.cancel()
            await asyncio.wait([self._growing])
        for connection in (*self._free, *self._used):
            connection.close()
        self._free.clear()
        self._tell()

    def _may_take(self, *, heartbeat: bool) -> bool:
        """Whether one is free; for a statement not the last one, if there is another and no more can be had."""
        if heartbeat or len(self._free) > 1 or self.open == 1:
            return bool(self._free)
        return bool(self._free) and self.open < self.size and not self.failures

    def _may_grow(self) -> bool:
        return self.open < self.size and time.monotonic() >= self._barred_until

    def _drop_dead(self) -> None:
        if any(connection.closed for connection in self._free):
            self._free = deque(connection for connection in self._free if not connection.closed)

    async def _grow(self) -> None:
        try:
            self._free.append(await self._connect())
        except ServerError as error:
            self.failures += 1
            self.refused += 1
            pause = back_off_seconds(self.failures)
            self._barred_until = time.monotonic() + pause
            asyncio.get_running_loop().call_later(pause, self._tell)
            self._reason = str(error)
            logs.log.warning(logs.CONNECTION_REFUSED, open=self.open, wanted=self.size, error=self._reason)
        else:
            self.failures = 0
        finally:
            self._growing = None
            self._tell()

    async def _wait_for_change(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self._changed.wait()
        except TimeoutError:
            what = f"none of {self.open} open connections was free" if self.open else "no connection could be made"
            raise DatabaseUnavailable(f"{what} in time") from None

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def back_off_seconds(failures: int) -> float:
    """Return how long to pause after so many failures in a row: doubled each time, up to 2 s, and up to half less.

    At random, for a database that comes back is met by every process that has lost it.
    """
    return min(0.05 * 2.0 ** min(failures, _DOUBLINGS), _LONGEST_PAUSE_SECONDS) * random.uniform(0.5, 1)
