"""The LISTEN connection of a process, which reconnects by itself.

It is healthy only after a notification of its own has come back: a connection may be half open, and a transaction pooler
accepts LISTEN and drops it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Mapping

import aiopg
import psycopg2

from server.errors import ConfigurationError, StorageError
from server.storage.database import Database, connected, run_directly, translated_errors
from server.storage.pool import back_off_seconds
from server.telemetry import logs
from server.telemetry.metrics import Metrics

_LONGEST_NUMBER = 20
_READY_SECONDS = 15.0


class Listener:
    """Receives notifications and passes each payload to the callback of its channel.

    `restored` is called when the listener becomes healthy, which is after LISTEN: a read from then on misses nothing.
    `lost` is called when it is healthy no more. All callbacks run in the event loop and must not block.

    A connection that falls silent is detected within two heartbeats: it may have answered the current one, but not the
    next.

    Attributes:
        healthy: whether notifications are proven to arrive.
        lag_seconds: the round trip of the latest heartbeat.
        beats: the number of heartbeats so far.
        refusal: the error of the last attempt to connect and listen; empty if it succeeded.
    """

    def __init__(
        self,
        dsn: str,
        database: Database,
        channels: Mapping[str, Callable[[str], None]],
        *,
        restored: Callable[[], None],
        lost: Callable[[], None],
        heartbeat_seconds: float,
        timeout: float,
        metrics: Metrics,
    ) -> None:
        """`run` does the work. Heartbeats are sent through `database`, as real changes are."""
        self._dsn = dsn
        self._database = database
        self._application = f"{database.application}-listener"
        self._heartbeat_channel = f"longpoll_heartbeat_{secrets.token_hex(8)}"
        self._channels = {**channels, self._heartbeat_channel: self._hear_heartbeat}
        self._restored = restored
        self._lost = lost
        self._heartbeat_seconds = heartbeat_seconds
        self._timeout = timeout
        self._metrics = metrics
        self._connection: aiopg.Connection | None = None
        self._sent = 0
        self._heard = 0
        self._sent_at: dict[int, float] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._echo = asyncio.Event()
        self.healthy = False
        self.lag_seconds = 0.0
        self.beats = 0
        self.refusal = ""

    async def run(self) -> None:
        """Listen, and reconnect with growing pauses whenever the connection is lost."""
        heartbeat = asyncio.create_task(self._beat(), name="heartbeat")
        heartbeat.add_done_callback(lambda _: self._drop_connection())  # then the loop below sees that it is dead
        try:
            await self._listen_loop(heartbeat)
        finally:
            ours = (heartbeat, *self._sending)
            for task in ours:
                task.cancel()
            await asyncio.gather(*ours, return_exceptions=True)

    async def until_healthy(self) -> None:
        """Wait until a notification of our own has come back.

        Raises:
            ConfigurationError: it never came.
        """
        try:
            async with asyncio.timeout(_READY_SECONDS):
                while not self.healthy:
                    await self._echo.wait()
        except TimeoutError:
            if self.refusal:
                raise ConfigurationError(
                    f"LISTEN doesn't work: no connection for it could be had within {_READY_SECONDS:g} s: {self.refusal}"
                ) from None
            raise ConfigurationError(
                "LISTEN doesn't work: a notification sent by this server did not come back within"
                f" {_READY_SECONDS:g} s. A transaction pooler (PgBouncer, Supavisor) drops LISTEN:"
                " give database.listen_dsn a direct or session-mode connection"
            ) from None

    async def barrier(self) -> bool:
        """Wait until everything committed before this call has been heard; False if the listener is or becomes unhealthy.

        Postgres delivers notifications in the order of their commits, so our own comes behind all the earlier ones.
        """
        number = self._send_heartbeat()
        try:
            async with asyncio.timeout(2 * self._heartbeat_seconds):
                while self.healthy and self._heard < number:
                    await self._echo.wait()
        except TimeoutError:
            return False
        return self.healthy

    async def _listen_loop(self, heartbeat: asyncio.Task[None]) -> None:
        attempt = 0
        while True:
            try:
                async with connected(self._dsn, self._timeout, self._application) as connection:
                    await self._subscribe(connection)
                    _heed_cancellation()
                    logs.log.info(logs.LISTENER_CONNECTED, attempt=attempt)
                    await self._hear(connection)
            except Exception as error:  # noqa: BLE001 - after any error it reconnects (uvloop: RuntimeError)
                if heartbeat.done():
                    heartbeat.result()
                attempt = 0 if self.healthy else attempt + 1
                self.refusal = "" if self._connection is not None else str(error).strip()
                logs.log.warning(
                    logs.LISTENER_LOST, attempt=attempt, error=str(error).strip(), kind=type(error).__name__
                )
            finally:
                self._connection = None
                self._become_unhealthy()
            self._metrics.listener_reconnects.inc()
            await asyncio.sleep(back_off_seconds(attempt) if attempt else 0)

    async def _subscribe(self, connection: aiopg.Connection) -> None:
        # The connection is idle from now on; a login's idle_session_timeout must not close it.
        statements = [*(f"LISTEN {channel}" for channel in self._channels), "SET idle_session_timeout = 0"]
        await run_directly(connection, ";".join(statements), self._timeout)
        self._connection = connection
        self._sent_at.clear()
        self._send_heartbeat()

    async def _hear(self, connection: aiopg.Connection) -> None:
        # No time-out and no cancel around get(): a notification that arrives in the same iteration would be lost.
        while True:
            with translated_errors():
                notification = await connection.notifies.get()
            while notification is not None:
                self._channels[notification.channel](notification.payload)
                notification = _next_in_burst(connection)

    def _hear_heartbeat(self, payload: str) -> None:
        number = int(payload) if payload.isdecimal() and len(payload) < _LONGEST_NUMBER else 0
        if number not in self._sent_at:
            return  # of another process, or of an earlier connection
        self.lag_seconds = time.monotonic() - self._sent_at[number]
        self._sent_at = {sent: at for sent, at in self._sent_at.items() if sent > number}
        self._heard = number
        if not self.healthy:
            self.healthy = True
            self._restored()
        echo, self._echo = self._echo, asyncio.Event()
        echo.set()

    async def _beat(self) -> None:
        while True:
            self.beats += 1
            connection, number = self._connection, self._send_heartbeat()
            await asyncio.sleep(0.75 * self._heartbeat_seconds)
            answered = self._heard >= number
            # The last quarter is for a loop that stood still: it hears what has arrived before the verdict.
            await asyncio.sleep(0.25 * self._heartbeat_seconds)
            if connection is None or connection is not self._connection or answered or self._heard >= number:
                continue
            logs.log.warning(logs.HEARTBEAT_MISSED, number=number, waited_seconds=self._heartbeat_seconds)
            self._become_unhealthy()
            self._drop_connection()

    def _send_heartbeat(self) -> int:
        self._sent += 1
        if self._connection is not None:
            self._sent_at[self._sent] = time.monotonic()
            task = asyncio.create_task(self._notify(self._sent), name="heartbeat notification")
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        return self._sent

    async def _notify(self, number: int) -> None:
        # A failure is logged where it is raised, and unanswered it counts as silence.
        with contextlib.suppress(StorageError):
            await self._database.notify(self._heartbeat_channel, str(number))

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()  # get() raises, and the loop that listens connects again

    def _become_unhealthy(self) -> None:
        if self.healthy:
            self.healthy = False
            self._lost()
        echo, self._echo = self._echo, asyncio.Event()
        echo.set()


def _heed_cancellation() -> None:
    """End a task that was canceled and didn't notice.

    Until Python 3.12, wait_for(), and so aiopg, swallows a cancellation that comes as its future is done.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _next_in_burst(connection: aiopg.Connection) -> psycopg2.extensions.Notify | None:
    """Return the next notification if it is here already; get() would cost a task and two futures each."""
    try:
        notification: psycopg2.extensions.Notify = connection.notifies.get_nowait()
    except psycopg2.Error:
        return None  # closed and empty: get() raises it next
    except asyncio.QueueEmpty:
        return None
    return notification
