"""Waking under pressure: thousands at once, and through a flood of notifications that mean nothing here."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from contextlib import closing
from typing import Any, Self

import orjson
import psycopg2
import pytest

from server import keys
from tests.conftest import Sql, until
from tests.faults import sites
from tests.faults.load import (
    Channel,
    Oracle,
    Pollers,
    Updates,
    add_tasks,
    print_figure,
    read_states,
)
from tests.faults.sites import Account, channels, poll_target

config, account, open_site = sites.config, sites.account, sites.open_site

NO_SWEEP = {"sweep_seconds": 300.0}
MALFORMED = ("x", "", "task", "task:", "task:five", "task:-1", "task:" + "9" * 20, "x" * 7999)
WELL_FORMED = ("other-%s:%s", "other-%s:-")


@pytest.mark.parametrize("crowd", [2000, pytest.param(5000, marks=pytest.mark.slow)])
async def test_one_commit_wakes_a_crowd_by_one_read(open_site: Any, account: Account, sql: Sql, crowd: int) -> None:
    site = await open_site(polling=NO_SWEEP)
    (task_id,) = add_tasks(sql, account.user_id, 1)
    replied: list[float] = []

    async def poll(channel: Channel) -> tuple[int, int, str]:
        status, body = await channel.get(poll_target(task_id), account.headers)
        replied.append(time.perf_counter())
        answer = orjson.loads(body)
        return status, answer["data"]["version"], answer["poll"]["reason"]

    async with channels(site.address, crowd) as opened:
        polls = [asyncio.create_task(poll(channel)) for channel in opened]
        await until(lambda: site.held == crowd, seconds=60)
        gc.collect()  # what the test itself has left is none of the server's time
        reads = site.metric("longpoll_board_reads_total")
        committed = time.perf_counter()
        sql("UPDATE public.image_generations SET status = 'processing' WHERE task_id = %s", (task_id,))
        answers = await asyncio.gather(*polls)
    assert set(answers) == {(200, 2, "change")}
    assert site.metric("longpoll_board_reads_total") - reads == 1
    assert site.metric("longpoll_missed_notify_repairs_total") == 0
    await until(lambda: site.leaks == 0)
    print_figure(
        "one commit wakes a crowd",
        waiters=crowd,
        reads=1,
        first_ms=round((min(replied) - committed) * 1000),
        spread_ms=round((max(replied) - min(replied)) * 1000),
    )


class Flood:
    """Sends notifications on the channel of changes, as fast as Postgres takes them, until the block ends."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flood")
        self.sent = 0
        self.malformed = 0
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        started = time.perf_counter()
        with closing(psycopg2.connect(self._dsn)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            while not self._stopping.is_set():
                self._send(cursor)
        self.seconds = time.perf_counter() - started

    def _send(self, cursor: psycopg2.extensions.cursor) -> None:
        # Payloads that are equal within a transaction would be merged.
        cursor.execute(
            "SELECT pg_notify('generation_changed', 'other-' || n || ':' || n) FROM generate_series(1, 200) AS n"
        )
        longest = ",".join(f"other-{number:06}:{number:06}" for number in range(371))
        cursor.execute("SELECT pg_notify('generation_changed', %s)", (f"{longest},{'o' * (7996 - len(longest))}:1",))
        for payload in MALFORMED:
            cursor.execute("SELECT pg_notify('generation_changed', %s)", (payload,))
        self.sent += 201 + len(MALFORMED)
        self.malformed += len(MALFORMED)


async def test_a_flood_of_notifications_makes_no_waiter_late(
    open_site: Any, account: Account, sql: Sql, dsn: str
) -> None:
    """Without a sweep: a waiter that is woken at all has been woken by its notification."""
    site = await open_site(polling=NO_SWEEP, database={"heartbeat_seconds": 60.0})
    oracle = Oracle(hold_seconds=30)
    task_ids = add_tasks(sql, account.user_id, 20)
    async with Pollers(oracle, [site.address], token=account.token) as pollers:
        pollers.follow(task_ids, clients=10)
        await until(lambda: site.held == 200)
        with Flood(dsn) as flood, Updates(oracle, dsn, task_ids, rate=20, seed=1) as updates:
            await until(lambda: len(oracle.commits) >= 80 and flood.sent >= 10_000, seconds=60)
        await asyncio.to_thread(updates.end_all)
        await pollers.until_done()
    figures = oracle.check(read_states(dsn, task_ids))
    assert await site.app[keys.LISTENER].barrier()
    assert site.metric("longpoll_malformed_notifications_total") == flood.malformed
    assert site.metric("longpoll_missed_notify_repairs_total") == 0
    assert not oracle.broken
    assert not oracle.refusals
    print_figure("notify flood", **figures, notifications_a_second=round(flood.sent / flood.seconds))
