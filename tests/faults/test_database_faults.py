"""Postgres crashes, is gone, or says nothing: polls are held all the same, and what else is asked is told to come again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from server.web import keys
from tests.faults import postgres
from tests.faults.load import print_figure
from tests.faults.postgres import MortalPostgres
from tests.faults.proxy import Proxy, proxy_to
from tests.faults.scene import CLIENTS, LATE_SECONDS, followed_tasks
from tests.support.facts import until
from tests.support.people import Enter, Person, Start

mortal, dsn = postgres.mortal, postgres.dsn

# The pool and the listener each pause for one to two seconds between attempts, after some quicker ones.
CONNECTS_PER_SECOND = 2.0
CONNECTS_AT_FIRST = 20


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    """Stands between the server and its database, and counts who wants to connect."""
    async with proxy_to(dsn) as between:
        yield between


async def begin(start: Start, enter: Enter, dsn: str, *, hold_seconds: float, timeout: float = 5.0) -> Person:
    """Start a server whose users may hold many polls; log somebody in."""
    client = await start(
        dsn,
        database={"heartbeat_seconds": 0.25, "timeout_seconds": timeout},
        polling={"hold_seconds": hold_seconds, "sweep_seconds": 0.5, "max_held_per_user": 2 * CLIENTS},
    )
    return await enter(client)


async def answer(person: Person, path: str) -> int:
    async with person.http.get(path) as reply:
        return reply.status


async def is_ready(person: Person) -> bool:
    return await answer(person, "/readyz") == 200


async def create(person: Person) -> int:
    """Ask for a task; returns the status of the reply, which says when to come again if it is a 503."""
    async with person.http.post("/api/generate", json={"prompt": "a lake"}) as reply:
        if reply.status == 503:
            assert float(reply.headers["Retry-After"]) > 0
        return reply.status


@contextlib.asynccontextmanager
async def creations(person: Person) -> AsyncIterator[Counter[int]]:
    """Ask for tasks all the time, five at once; counts the replies by their status."""
    statuses: Counter[int] = Counter()

    async def ask_for_ever() -> None:
        while True:
            statuses[await create(person)] += 1
            await asyncio.sleep(0.02)  # the pace of the requests

    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(ask_for_ever()) for _ in range(5)]
        yield statuses
        for task in asking:
            task.cancel()


def forget_when_sessions_were_read(person: Person) -> None:
    """Let every session be one that was looked up an hour ago, and not since: the listener would have told of its end."""
    for known in person.app[keys.SESSIONS]._known.values():
        known.read_at -= 3600


@pytest.mark.parametrize("crashes", [1, pytest.param(15, marks=pytest.mark.slow)])
async def test_a_database_that_crashes_under_load_fails_no_poll_and_is_found_again(
    start: Start, enter: Enter, dsn: str, mortal: MortalPostgres, crashes: int
) -> None:
    person = await begin(start, enter, dsn, hold_seconds=8.0)
    recoveries = []
    async with followed_tasks(person, dsn, hold_seconds=8.0) as scene, creations(person) as statuses:
        async with scene.updates():
            for _ in range(crashes):
                await scene.until_told()
                await mortal.crash()
                await mortal.come_back()
                back_at, accepted = time.monotonic(), statuses[202]
                await until(lambda: is_ready(person))
                await until(lambda accepted=accepted: statuses[202] > accepted)
                recoveries.append(time.monotonic() - back_at)
            await scene.until_told()
        figures = scene.check()
        assert not scene.oracle.refusals
        assert statuses.keys() <= {202, 503}
        errors = {"creations": statuses[202], "creations_refused": statuses[503]}
        print_figure("database crashed", crashes=crashes, recovery_s=round(max(recoveries), 2), **errors, **figures)


@pytest.mark.parametrize("outage_seconds", [1, pytest.param(60, marks=pytest.mark.slow)])
async def test_without_a_database_polls_are_held_and_time_out_as_ever(
    start: Start, enter: Enter, dsn: str, mortal: MortalPostgres, proxy: Proxy, outage_seconds: float
) -> None:
    person = await begin(start, enter, proxy.dsn(dsn), hold_seconds=1.0)
    async with followed_tasks(person, dsn, hold_seconds=1.0) as scene:
        forget_when_sessions_were_read(person)
        await mortal.shut_down()
        down_at, accepted = time.monotonic(), proxy.accepted
        await scene.until_answered("timeout")
        while time.monotonic() < down_at + outage_seconds:
            await scene.until_answered("timeout")  # each client has asked again, and was known and held again
        assert await answer(person, "/readyz") == 503
        assert await answer(person, "/healthz") == 200
        assert await create(person) == 503
        seconds, connects = time.monotonic() - down_at, proxy.accepted - accepted
        await mortal.come_back()
        back_at = time.monotonic()
        async with scene.updates():  # nobody hears of these, at first
            await until(lambda: is_ready(person))
            recovery = time.monotonic() - back_at
            await scene.until_told()
        figures = scene.check()
        assert not scene.oracle.refusals
        assert connects <= CONNECTS_AT_FIRST + CONNECTS_PER_SECOND * seconds
        assert await create(person) == 202
        rates = {"connects": connects, "connects_per_second": round(connects / seconds, 2)}
        print_figure("database down", seconds=round(seconds, 1), **rates, recovery_s=round(recovery, 2), **figures)


@pytest.mark.parametrize("silence_seconds", [0, pytest.param(60, marks=pytest.mark.slow)])
async def test_a_database_that_says_nothing_makes_no_poll_longer(
    start: Start, enter: Enter, dsn: str, proxy: Proxy, silence_seconds: float
) -> None:
    """Connections stay open, new ones are accepted, no answer comes: each statement waits out its time."""
    person = await begin(start, enter, proxy.dsn(dsn), hold_seconds=1.0, timeout=LATE_SECONDS)
    async with followed_tasks(person, dsn, hold_seconds=1.0) as scene:
        forget_when_sessions_were_read(person)
        proxy.pause()
        silent_at = time.monotonic()
        creation = asyncio.create_task(create(person))
        await scene.until_answered("timeout")
        await scene.until_answered("timeout")
        while time.monotonic() < silent_at + silence_seconds:
            await scene.until_answered("timeout")
        assert await creation == 503
        seconds = time.monotonic() - silent_at
        proxy.resume()
        resumed_at = time.monotonic()
        async with scene.updates():
            await until(lambda: is_ready(person))
            recovery = time.monotonic() - resumed_at
            await scene.until_told()
        figures = scene.check()
        assert not scene.oracle.refusals
        print_figure("database silent", seconds=round(seconds, 1), recovery_s=round(recovery, 2), **figures)
