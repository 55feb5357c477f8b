"""Waking under pressure: thousands at once, and through a flood of notifications that mean nothing here."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Self

import orjson
import psycopg2
import pytest

from server.web import keys
from tests.faults import sites
from tests.faults.bystanders import bystanders
from tests.faults.load import (
    Channel,
    Oracle,
    Pollers,
    Updates,
    add_tasks,
    print_figure,
    read_states,
)
from tests.faults.sites import Account, Site, channels, poll_target
from tests.support.facts import until
from tests.support.postgres import Sql

config, account, open_site = sites.config, sites.account, sites.open_site

NOTIFICATIONS_A_SECOND = 5_000
NO_SWEEP = {"sweep_seconds": 300.0}
MALFORMED = ("x", "", "task", "task:", "task:five", "task:-1", "task:" + "9" * 20, "x" * 7999)
WELL_FORMED = ("other-%s:%s", "other-%s:-")


@pytest.mark.parametrize("crowd", [1000, pytest.param(5000, marks=pytest.mark.slow)])
async def test_one_commit_wakes_a_crowd_by_one_read(
    open_site: Any, account: Account, sql: Sql, dsn: str, crowd: int
) -> None:
    """Among those who wait for other tasks; of reads are counted those that fetched this one."""
    site = await open_site(polling=NO_SWEEP)
    (task_id,) = add_tasks(sql, account.user_id, 1)
    reads = count_reads(site, task_id)
    replied: list[float] = []

    async def poll(channel: Channel) -> tuple[int, int, str]:
        status, body = await channel.get(poll_target(task_id), account.headers)
        replied.append(time.perf_counter())
        answer = orjson.loads(body)
        return status, answer["data"]["version"], answer["poll"]["reason"]

    async with bystanders(site.address, sql, dsn) as others, channels(site.address, crowd) as opened:
        polls = [asyncio.create_task(poll(channel)) for channel in opened]
        await until(lambda: site.held_by(account.user_id) == crowd, seconds=60)
        gc.collect()  # what the test itself has left is none of the server's time
        reads.clear()
        committed = time.perf_counter()
        sql("UPDATE public.image_generations SET status = 'processing' WHERE task_id = %s", (task_id,))
        answers = await asyncio.gather(*polls)
    assert set(answers) == {(200, 2, "change")}
    assert reads == [task_id]
    assert site.metric("longpoll_missed_notify_repairs_total") == 0
    await until(lambda: site.leaks == 0)
    print_figure(
        "one commit wakes a crowd",
        woken=crowd,
        reads=len(reads),
        first_ms=round((min(replied) - committed) * 1000),
        spread_ms=round((max(replied) - min(replied)) * 1000),
        **others.figures,
    )


def count_reads(site: Site, task_id: str) -> list[str]:
    """Return a list to which the task's name is added whenever the board reads it."""
    board, reads = site.app[keys.BOARD], []  # type: ignore[var-annotated]
    read = board._read

    async def read_and_count(task_ids: Sequence[str]) -> Any:
        reads.extend(each for each in task_ids if each == task_id)
        return await read(task_ids)

    board._read = read_and_count
    return reads


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


@pytest.mark.parametrize("commits", [80, pytest.param(1200, marks=pytest.mark.slow)])
async def test_a_flood_of_notifications_makes_no_waiter_late(
    open_site: Any, account: Account, sql: Sql, dsn: str, commits: int
) -> None:
    """Without a sweep: a waiter that is woken at all has been woken by its notification."""
    site = await open_site(polling=NO_SWEEP, database={"heartbeat_seconds": 60.0})
    oracle = Oracle(hold_seconds=30)
    task_ids = add_tasks(sql, account.user_id, 20)
    async with Pollers(oracle, [site.address], token=account.token) as pollers:
        pollers.follow(task_ids, clients=10)
        await until(lambda: site.held == 200)
        with Flood(dsn) as flood, Updates(oracle, dsn, task_ids, rate=20, seed=1) as updates:
            await until(lambda: len(oracle.commits) >= commits and flood.sent >= 10_000, seconds=120)
        await asyncio.to_thread(updates.end_all)
        await pollers.until_done()
    figures = oracle.check(read_states(dsn, task_ids))
    assert await site.app[keys.LISTENER].barrier()
    assert site.metric("longpoll_malformed_notifications_total") == flood.malformed
    assert site.metric("longpoll_missed_notify_repairs_total") == 0
    assert not oracle.broken
    assert not oracle.refusals
    assert {reply.reason for reply in oracle.replies} <= {"change", "immediate"}, "a waiter was not told in its time"
    assert flood.sent / flood.seconds >= NOTIFICATIONS_A_SECOND
    print_figure("notify flood", **figures, notifications_a_second=round(flood.sent / flood.seconds))
