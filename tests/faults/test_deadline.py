"""A change at the very moment at which holds end: told now or told by the next poll, and nobody is left behind."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import closing
from typing import Any

import orjson
import psycopg2
import pytest

from server.waiting.timer_wheel import GRAIN_SECONDS
from server.web import keys
from tests.faults import sites
from tests.faults.bystanders import bystanders
from tests.faults.load import Channel, add_tasks, print_figure
from tests.faults.sites import Account, Site, channels, poll_target
from tests.support.facts import until
from tests.support.postgres import Sql

config, account, open_site = sites.config, sites.account, sites.open_site

HOLD_SECONDS = 0.4
SPREAD_SECONDS = 0.005
TASKS = 60
TOGETHER = 10


def commit_around(dsn: str, task_ids: list[str], moment: float) -> None:
    """Change the tasks, ten in a transaction, at random times within 5 ms of that moment."""
    times = sorted(moment + random.uniform(-1, 1) * SPREAD_SECONDS for _ in range(TASKS // TOGETHER))
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for number, at in enumerate(times):
            batch = task_ids[number * TOGETHER : (number + 1) * TOGETHER]
            time.sleep(max(at - time.monotonic(), 0))  # in a thread; the loop's clock is this one
            cursor.execute("UPDATE public.image_generations SET stage = 'sky' WHERE task_id = ANY (%s)", (batch,))


async def ask(channel: Channel, account: Account, task_id: str, version: int) -> dict[str, Any]:
    status, body = await channel.get(poll_target(task_id, version, "&c=page"), account.headers)
    assert status == 200, body
    answer: dict[str, Any] = orjson.loads(body)
    return answer


class Rounds:
    """Polls that all end at one moment, and changes around it."""

    def __init__(self, site: Site, account: Account, sql: Sql, dsn: str, crowd: list[Channel]) -> None:
        self._site = site
        self._account = account
        self._sql = sql
        self._dsn = dsn
        self._crowd = crowd
        self._aim = 0.0
        self.reasons: Counter[str] = Counter()
        self.played = 0

    @property
    def has_met(self) -> bool:
        """Whether changes have come on both sides of the deadline."""
        return min(self.reasons["timeout"], self.reasons["change"]) >= 5

    async def play(self) -> None:
        self.played += 1
        task_ids = add_tasks(self._sql, self._account.user_id, TASKS)
        asked = await self._ask_all(task_ids, 0)
        assert {each["poll"]["reason"] for each in asked} == {"immediate"}  # from here on, asking costs no read
        deadline = await _beginning_of_a_slot() + HOLD_SECONDS
        commits = asyncio.create_task(asyncio.to_thread(commit_around, self._dsn, task_ids, deadline + self._aim))
        answers = await self._ask_all(task_ids, 1)
        await commits
        assert await self._site.app[keys.LISTENER].barrier()
        told = sum(answer["data"]["version"] == 2 for answer in answers)
        self._aim += 4 * SPREAD_SECONDS * (told / TASKS - 0.5)  # how long a commit takes is up to the machine
        for channel, answer, task_id in zip(self._crowd, answers, task_ids, strict=True):
            seen, reason = answer["data"]["version"], answer["poll"]["reason"]
            self.reasons[reason] += 1
            assert (seen, reason) in {(1, "timeout"), (2, "change"), (2, "timeout")}
            if seen == 1:
                later = await ask(channel, self._account, task_id, 1)
                assert (later["data"]["version"], later["poll"]["reason"]) == (2, "immediate")

    async def _ask_all(self, task_ids: list[str], version: int) -> list[dict[str, Any]]:
        pairs = zip(self._crowd, task_ids, strict=True)
        return await asyncio.gather(*(ask(channel, self._account, each, version) for channel, each in pairs))


@pytest.mark.parametrize("at_least", [6, pytest.param(60, marks=pytest.mark.slow)])
async def test_a_change_at_the_deadline_is_told_now_or_by_the_next_poll(
    open_site: Any, account: Account, sql: Sql, dsn: str, at_least: int
) -> None:
    """As many rounds as it takes for changes to have come on both sides of the deadline."""
    site = await open_site(polling={"hold_seconds": HOLD_SECONDS, "jitter_seconds": 0.0, "sweep_seconds": 300.0})
    async with (
        bystanders(site.address, sql, dsn, hold_seconds=HOLD_SECONDS) as others,
        channels(site.address, TASKS) as crowd,
    ):
        rounds = Rounds(site, account, sql, dsn, crowd)
        while rounds.played < at_least or not rounds.has_met:
            assert rounds.played < at_least + 40, f"no change has met its deadline: {rounds.reasons}"
            await rounds.play()
        await until(lambda: site.held_by(account.user_id) == 0)
    await until(lambda: site.held == 0)
    assert site.leaks == 0
    assert site.metric("longpoll_missed_notify_repairs_total") == 0
    print_figure(
        "change at the deadline",
        rounds=rounds.played,
        polls=rounds.played * TASKS,
        **rounds.reasons,
        leaks=0,
        **others.figures,
    )


async def _beginning_of_a_slot() -> float:
    """Wait until the deadlines' next slot begins: polls that come now all end together. Returns that moment."""
    loop = asyncio.get_running_loop()
    slot = int(loop.time() / GRAIN_SECONDS) + 1
    await asyncio.sleep(slot * GRAIN_SECONDS - loop.time())
    return slot * GRAIN_SECONDS
