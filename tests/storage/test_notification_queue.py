"""The queue of notifications: how full it is is asked each minute, and said before it is full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import psycopg2
import pytest
import structlog

from server.errors import DatabaseUnavailable
from server.storage import notification_queue
from server.storage.database import Database
from server.storage.embedded.cluster import EmbeddedPostgres
from server.storage.notification_queue import NotificationQueue
from server.telemetry import logs
from server.telemetry.metrics import Metrics
from tests.support.facts import until
from tests.support.outage import outage
from tests.support.people import Enter, Start
from tests.support.postgres import Sql


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[NotificationQueue]:
    database = Database(dsn, pool_size=1, timeout=5)
    await database.open()
    yield NotificationQueue(database, Metrics())
    await database.close()


@pytest.fixture
def sleeper(dsn: str) -> Iterator[psycopg2.extensions.connection]:
    """Somebody who listens, and reads nothing, for a transaction is open."""
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("LISTEN anything")
        connection.commit()
        cursor.execute("SELECT 1")
        yield connection


def fill(sql: Sql) -> None:
    """Send 200 notifications that fill a page each."""
    sql("SELECT pg_notify('anything', rpad(n::text, 7000, 'x')) FROM generate_series(1, 200) AS n")


async def test_what_a_listener_does_not_read_is_seen_and_gone_when_it_is_read(
    queue: NotificationQueue, sleeper: psycopg2.extensions.connection, sql: Sql
) -> None:
    await queue.sample()
    before = queue.usage
    fill(sql)
    await queue.sample()
    assert before < queue.usage < notification_queue.FILLING_USAGE
    sleeper.rollback()

    async def is_emptier() -> bool:
        full = queue.usage
        await queue.sample()
        return queue.usage < full

    await until(is_emptier)


@pytest.mark.parametrize(("threshold", "warnings"), [(0.00001, 1), (0.1, 0)])
async def test_a_queue_that_fills_is_logged(
    queue: NotificationQueue,
    sleeper: psycopg2.extensions.connection,
    sql: Sql,
    monkeypatch: pytest.MonkeyPatch,
    threshold: float,
    warnings: int,
) -> None:
    monkeypatch.setattr(notification_queue, "FILLING_USAGE", threshold)
    fill(sql)
    with structlog.testing.capture_logs() as events:
        await queue.sample()
    assert [event["event"] for event in events] == [logs.QUEUE_FILLING] * warnings


async def test_it_is_asked_again_and_again_even_after_an_outage(
    queue: NotificationQueue, postgres: EmbeddedPostgres, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notification_queue, "SAMPLE_SECONDS", 0.01)
    running = asyncio.create_task(queue.run())
    with outage(postgres, dsn):
        with pytest.raises(DatabaseUnavailable):
            await queue.sample()
        statements = queue._database.statements
    await until(lambda: queue._database.statements >= statements + 5)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()


async def test_a_running_server_shows_how_full_it_is(
    start: Start,
    enter: Enter,
    sleeper: psycopg2.extensions.connection,
    sql: Sql,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notification_queue, "SAMPLE_SECONDS", 0.01)
    alice = await enter(await start())
    before = alice.metric("longpoll_notification_queue_usage")
    fill(sql)
    await until(lambda: alice.metric("longpoll_notification_queue_usage") > before)
