"""The listener: hears everything while it is healthy, knows when it isn't, and comes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import aiopg
import psycopg2
import pytest

from server.storage import connecting
from server.storage.database import Database
from server.storage.embedded.cluster import EmbeddedPostgres
from server.storage.listener import Listener
from server.telemetry.metrics import Metrics
from tests.storage.test_database import many_descriptors
from tests.support.facts import until
from tests.support.postgres import Sql


class Ear:
    """A listener that runs, and everything it told."""

    def __init__(self, dsn: str, notify_dsn: str, heartbeat_seconds: float) -> None:
        self.heard: list[str] = []
        self.events: list[str] = []
        self.metrics = Metrics()
        self.database = Database(notify_dsn, pool_size=2, timeout=5)
        self.on_restored: Callable[[], object] = lambda: None
        self.lost_in_beat = 0
        self.listener = Listener(
            dsn,
            self.database,
            {"news": self.hear, "more_news": self.hear},
            restored=self.restored,
            lost=self.lost,
            heartbeat_seconds=heartbeat_seconds,
            timeout=5,
            metrics=self.metrics,
        )
        self.running: asyncio.Task[None] | None = None

    def hear(self, payload: str) -> None:
        if payload == "a bug":
            raise RuntimeError(payload)
        self.heard.append(payload)

    def restored(self) -> None:
        self.events.append("restored")
        self.on_restored()

    def lost(self) -> None:
        self.events.append("lost")
        self.lost_in_beat = self.listener.beats

    async def begin(self) -> None:
        await self.database.open()
        self.running = asyncio.create_task(self.listener.run())

    async def cancel(self) -> None:
        # Again and again, as Background does: until Python 3.12, wait_for() may swallow a cancellation.
        while self.running is not None and not self.running.done():
            self.running.cancel()
            await asyncio.wait([self.running], timeout=0.1)

    async def end(self) -> None:
        await self.cancel()
        await self.database.close()

    @property
    def reconnects(self) -> float:
        return self.metrics.registry.get_sample_value("longpoll_listener_reconnects_total") or 0


Listen = Callable[..., Awaitable[Ear]]


@pytest.fixture
async def listen(dsn: str) -> AsyncIterator[Listen]:
    """Begin to listen; without `heartbeat_seconds` no heartbeat is missed however slow the machine is."""
    ears: list[Ear] = []

    async def begin(heartbeat_seconds: float = 10, notify_dsn: str = dsn, *, healthy: bool = True) -> Ear:
        ear = Ear(dsn, notify_dsn, heartbeat_seconds)
        ears.append(ear)
        await ear.begin()
        if healthy:
            await ear.listener.until_healthy()
        return ear

    yield begin
    for ear in ears:
        await ear.end()


def listening_backends(sql: Sql) -> list[int]:
    rows = sql("SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'")
    return [pid for (pid,) in rows]


async def test_each_channel_is_heard(listen: Listen, sql: Sql) -> None:
    ear = await listen()
    assert ear.events == ["restored"]
    sql("NOTIFY news, 'one'; NOTIFY more_news, 'two'; NOTIFY other_news, 'three'; NOTIFY news")
    await until(lambda: len(ear.heard) == 3)
    assert ear.heard == ["one", "two", ""]
    assert ear.listener.lag_seconds > 0


async def test_a_burst_of_thousands_arrives_whole_and_in_order(listen: Listen, sql: Sql) -> None:
    ear = await listen()
    for start in (0, 2500):
        sql(f"SELECT pg_notify('news', n::text) FROM generate_series({start}, {start + 2499}) AS n")
    await until(lambda: len(ear.heard) == 5000)
    assert ear.heard == [str(number) for number in range(5000)]


async def test_it_stays_healthy_while_everything_else_is_busy(listen: Listen, dsn: str) -> None:
    """A heartbeat doesn't wait for a connection behind statements that take long."""
    ear = await listen(heartbeat_seconds=0.2)
    reconnects, beats = ear.reconnects, ear.listener.beats
    with contextlib.closing(psycopg2.connect(dsn)) as other, other.cursor() as cursor:
        cursor.execute("LOCK TABLE longpoll.sessions")
        busy = [asyncio.create_task(ear.database.fetch("expire_sessions", dict)) for _ in range(4)]
        await until(lambda: ear.listener.beats >= beats + 5)
        assert ear.database.busy >= len(busy)
        assert ear.listener.healthy
    await asyncio.gather(*busy)
    assert ear.reconnects == reconnects


async def test_it_counts_as_healthy_only_when_its_own_notification_has_come_back(
    listen: Listen, sql: Sql, postgres: EmbeddedPostgres
) -> None:
    """The heartbeat goes to another database here, as if a pooler had swallowed LISTEN."""
    ear = await listen(heartbeat_seconds=0.1, notify_dsn=postgres.dsn, healthy=False)
    await until(lambda: ear.reconnects >= 2)
    assert ear.events == []
    assert not ear.listener.healthy
    assert not await ear.listener.barrier()


async def test_what_is_notified_as_soon_as_it_is_restored_is_heard(listen: Listen, sql: Sql) -> None:
    """LISTEN comes first: who reads again when told that it is restored misses nothing after."""
    ear = await listen()
    ear.on_restored = lambda: sql("NOTIFY news, 'at once'")
    (pid,) = listening_backends(sql)
    sql("SELECT pg_terminate_backend(%s)", (pid,))
    await until(lambda: ear.heard == ["at once"])


async def test_a_killed_connection_is_lost_and_restored(listen: Listen, sql: Sql) -> None:
    ear = await listen()
    for _ in range(3):
        (pid,) = await until(lambda: listening_backends(sql))
        ear.events.clear()
        sql("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        await until(lambda: ear.events == ["lost", "restored"])
        sql("NOTIFY news, 'again'")
        await until(lambda: ear.heard.pop() if ear.heard else None)
    assert ear.reconnects == 3
    assert ear.running is not None
    assert not ear.running.done()


async def test_the_death_of_a_connection_with_a_high_descriptor_is_noticed(listen: Listen, sql: Sql) -> None:
    """No heartbeat helps here: it is told by the connection itself, or never."""
    with many_descriptors():
        ear = await listen(heartbeat_seconds=600)
        assert ear.listener._connection is not None
        assert (ear.listener._connection._fileno or 0) >= 1024
        (pid,) = listening_backends(sql)
        sql("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        await until(lambda: ear.events == ["restored", "lost", "restored"])


async def test_a_stopped_backend_is_noticed_by_a_missed_heartbeat(listen: Listen, sql: Sql) -> None:
    ear = await listen(heartbeat_seconds=0.5)
    (pid,) = listening_backends(sql)
    os.kill(pid, signal.SIGSTOP)
    stopped_in_beat = ear.listener.beats
    try:
        await until(lambda: "lost" in ear.events)
        assert ear.lost_in_beat <= stopped_in_beat + 1, "within two heartbeats: this one and the next"
        assert not await ear.listener.barrier()
        await until(lambda: ear.events[-1] == "restored")
        sql("NOTIFY news, 'heard by the new connection'")
        await until(lambda: ear.heard)
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_loop_that_stands_still_is_not_taken_for_a_lost_connection(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands still for three heartbeats, just when one was to be sent."""
    ear = await listen(heartbeat_seconds=0.5)
    stalls = 0
    real_notify = ear.database.notify

    async def stall(channel: str, payload: str) -> None:
        nonlocal stalls
        if stalls < 2:
            stalls += 1
            time.sleep(1.5)  # noqa: ASYNC251 - this is the point
        await real_notify(channel, payload)

    monkeypatch.setattr(ear.database, "notify", stall)
    await until(lambda: stalls == 2)
    beats = ear.listener._heard
    await until(lambda: ear.listener._heard > beats)
    assert ear.events == ["restored"]
    assert ear.reconnects == 0


async def test_a_barrier_comes_behind_everything_that_was_notified_before(listen: Listen, sql: Sql) -> None:
    ear = await listen()
    for number in range(30):
        sql(f"SELECT pg_notify('news', n::text) FROM generate_series(1, {number}) AS n")
        ear.heard.clear()
        sql("NOTIFY news, 'last'")
        assert await ear.listener.barrier()
        assert ear.heard[-1] == "last"


async def test_many_barriers_at_once_all_hold(listen: Listen) -> None:
    ear = await listen()
    assert all(await asyncio.gather(*(ear.listener.barrier() for _ in range(50))))
    assert len(ear.listener._sent_at) == 0


async def test_a_barrier_cannot_be_had_when_the_connection_dies_meanwhile(listen: Listen, sql: Sql) -> None:
    ear = await listen()
    (pid,) = listening_backends(sql)
    os.kill(pid, signal.SIGSTOP)
    try:
        barrier = asyncio.create_task(ear.listener.barrier())
        await until(lambda: ear.listener._sent_at)
        sql("SELECT pg_terminate_backend(%s)", (pid,))
    finally:
        os.kill(pid, signal.SIGCONT)
    await until(barrier.done)
    assert barrier.result() is False


async def test_a_strangers_heartbeat_is_ignored(listen: Listen, sql: Sql) -> None:
    ear = await listen()
    for payload in ("", "x", "-1", "²", "9" * 5000, "1 2", "0"):
        sql("SELECT pg_notify(%s, %s)", (ear.listener._heartbeat_channel, payload))
    sql("NOTIFY news, 'next'")
    await until(lambda: ear.heard == ["next"])
    assert ear.events == ["restored"]


async def test_a_callback_with_a_bug_costs_the_connection_but_not_the_listener(listen: Listen, sql: Sql) -> None:
    ear = await listen()
    sql("NOTIFY news, 'a bug'")
    await until(lambda: ear.events == ["restored", "lost", "restored"])
    sql("NOTIFY news, 'well'")
    await until(lambda: ear.heard == ["well"])


async def test_a_bug_in_the_heartbeat_ends_the_listener_instead_of_leaving_it_unguarded(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    ear = await listen(heartbeat_seconds=0.2)

    def fail() -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ear.listener, "_send_heartbeat", fail)
    assert ear.running is not None
    await until(ear.running.done)
    assert isinstance(ear.running.exception(), RuntimeError)
    assert ear.events == ["restored", "lost"]


async def test_a_database_that_is_not_there_is_tried_again_however_often_that_failed(
    dsn: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More often than a pause can be doubled: an outage may last for hours."""
    ear = Ear(f"host={tmp_path} dbname=nothing", dsn, 10)
    monkeypatch.setattr("server.storage.pool._LONGEST_PAUSE_SECONDS", 0)
    await ear.begin()
    await until(lambda: ear.reconnects >= 1100, 60)
    ear.listener._dsn = dsn
    await until(lambda: ear.events == ["restored"])
    await ear.end()


async def test_a_cancellation_that_is_swallowed_while_it_connects_ends_the_listener_all_the_same(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_connect = connecting.connect

    async def swallow(dsn: str, timeout: float, application: str) -> aiopg.Connection:
        connection = await real_connect(dsn, timeout, application)
        assert ear.running is not None
        ear.running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return connection

    ear = await listen()
    monkeypatch.setattr("server.storage.database.connect", swallow)
    ear.listener._drop_connection()
    assert ear.running is not None
    await until(ear.running.done)
    assert ear.running.cancelled()


@pytest.mark.parametrize("healthy", [True, False])
async def test_a_canceled_listener_leaves_nothing(listen: Listen, sql: Sql, *, healthy: bool) -> None:
    before = asyncio.all_tasks()
    ear = await listen(heartbeat_seconds=0.05, healthy=healthy)
    await ear.cancel()
    assert not ear.listener._sending
    assert not ear.listener.healthy
    await until(lambda: not ear.database.busy)
    await until(lambda: asyncio.all_tasks() == before)
    await until(lambda: not listening_backends(sql))
    assert ear.events == (["restored", "lost"] if healthy else [])
