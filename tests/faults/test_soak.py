"""All faults at random, at once and for long, and every promise is kept through all of them.

`LONGPOLL_SOAK_SECONDS` says for how long, `LONGPOLL_SOAK_SEED` repeats the same torments.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from server.telemetry import logs
from tests.faults.load import Pollers, Updates, print_figure, read_states
from tests.faults.postgres import MortalPostgres, mortal_postgres
from tests.faults.proxy import proxy_to
from tests.faults.sites import read_metrics
from tests.faults.torments import Torments
from tests.faults.town import CLIENTS, HOLD_SECONDS, RATE, Town
from tests.faults.witness import double_results
from tests.support.facts import until

SECONDS = float(os.environ.get("LONGPOLL_SOAK_SECONDS") or 12)
SEED = int(os.environ.get("LONGPOLL_SOAK_SEED") or time.time())
# How much longer than its hold a poll may last while the database says nothing and the machine is busy.
LATE_SECONDS = 5.0
# What may be answered while the database is away, to who asks for what this process doesn't know.
UNAVAILABLE = 503


@pytest.fixture
def mortal(made_before: Path) -> Iterator[MortalPostgres]:
    with mortal_postgres(made_before) as postgres:
        yield postgres


@pytest.fixture
async def town(mortal: MortalPostgres, tmp_path: Path) -> AsyncIterator[Town]:
    async with proxy_to(mortal.dsn) as proxy:
        town = Town(mortal, proxy, tmp_path)
        try:
            for _ in range(2):
                town.start_server()
                town.start_worker()
            await town.until_it_runs()
            yield town
        finally:
            town.close()


@contextlib.asynccontextmanager
async def living(town: Town, pollers: Pollers, updates: Updates) -> AsyncIterator[None]:
    life = asyncio.create_task(town.live(pollers, updates))
    try:
        yield
    finally:
        life.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await life


async def nobody_is_held(town: Town) -> bool:
    """Whether two answers in a row, which come from either server, say so."""
    return all([(await read_metrics(town.address))["longpoll_held_connections"] == 0 for _ in range(6)])


async def test_every_promise_is_kept_whatever_breaks(town: Town) -> None:
    print_figure("soak begins", seconds=SECONDS, seed=SEED)
    began = time.monotonic()
    async with Pollers(town.oracle, [town.address], token=town.token) as pollers:
        torments = Torments(town, pollers, random.Random(SEED))
        with Updates(town.oracle, town.dsn, [], rate=RATE, ending=0.02) as updates:
            async with living(town, pollers, updates):
                await until(lambda: pollers.waiting >= CLIENTS, seconds=60)
                await torments.torment(SECONDS)
                await town.heal()
        await asyncio.to_thread(updates.end_all)
        await town.until_all_ended()
        await pollers.until_done(90)
    await until(lambda: nobody_is_held(town))
    changes = town.witness.changes()
    town.oracle.commits.clear()
    town.witness.testify(town.oracle)
    figures = town.oracle.check(read_states(town.dsn, town.task_ids), late_seconds=LATE_SECONDS)
    longest = max(reply.at - reply.sent for reply in town.oracle.replies)
    doubles = double_results(changes)
    print_figure(
        "soak",
        seconds=round(time.monotonic() - began),
        seed=SEED,
        tasks=len(town.task_ids),
        violations=0,
        double_results=len(doubles),
        repairs=town.said(logs.WAKE_REPAIRED),
        resets=sum(reply.reason == "reset" for reply in town.oracle.replies),
        longest_poll_s=round(longest, 2),
        slowest_stop_s=round(torments.slowest_stop, 2),
        creations={str(kind): count for kind, count in town.creations.items()},
        torments=dict(sorted(torments.done.items())),
        **figures,
    )
    assert doubles == []
    assert longest <= HOLD_SECONDS + LATE_SECONDS
    assert set(town.oracle.refusals) <= {UNAVAILABLE}
    assert town.said("Traceback") == 0
    assert town.said(logs.TASK_DIED) == 0
