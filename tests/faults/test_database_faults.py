"""Postgres restarts, is gone, says nothing, or comes back older than it was: polls are held all the same."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from server import keys
from tests.conftest import Enter, Person, Start, until
from tests.faults.load import print_figure
from tests.faults.proxy import Proxy, proxy_to
from tests.faults.scene import CLIENTS, LATE_SECONDS, followed_tasks

# What the pool and the listener may try together while nobody answers: each pauses for up to 2 s between attempts.
CONNECTS_PER_SECOND = 3.0
CONNECTS_AT_FIRST = 20


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    """Stands between the server and its database."""
    async with proxy_to(dsn) as between:
        yield between


async def begin(
    start: Start, enter: Enter, dsn: str, *, hold_seconds: float, sweep_seconds: float = 0.5, timeout: float = 5.0
) -> Person:
    """Start a server whose users may hold many polls; log somebody in."""
    client = await start(
        dsn,
        database={"heartbeat_seconds": 0.25, "timeout_seconds": timeout},
        polling={"hold_seconds": hold_seconds, "sweep_seconds": sweep_seconds, "max_held_per_user": 2 * CLIENTS},
    )
    return await enter(client)


async def answer(person: Person, path: str) -> int:
    async with person.http.get(path) as reply:
        return reply.status


async def is_ready(person: Person) -> bool:
    return await answer(person, "/readyz") == 200


def forget_when_sessions_were_read(person: Person) -> None:
    """Let every session be one that was looked up an hour ago, and not since: the listener would have told of its end."""
    for known in person.app[keys.SESSIONS]._known.values():
        known.read_at -= 3600


async def refused_creation(person: Person) -> str | None:
    """Ask for a task, which must be refused; returns what Retry-After says."""
    async with person.http.post("/api/generate", json={"prompt": "a lake"}) as reply:
        assert reply.status == 503, await reply.text()
        return reply.headers.get("Retry-After")


@pytest.mark.parametrize("outage_seconds", [pytest.param(0, id="short"), pytest.param(60, marks=pytest.mark.slow)])
async def test_without_a_database_polls_are_held_and_time_out_as_ever(
    start: Start, enter: Enter, dsn: str, proxy: Proxy, outage_seconds: float
) -> None:
    person = await begin(start, enter, proxy.dsn(dsn), hold_seconds=1.0)
    async with followed_tasks(person, dsn, hold_seconds=1.0) as scene:
        forget_when_sessions_were_read(person)
        proxy.fail()
        failed_at, accepted = time.monotonic(), proxy.accepted
        await scene.until_answered("timeout")
        await scene.until_answered("timeout")  # twice: each client has asked again, and was known and held again
        while time.monotonic() < failed_at + outage_seconds:
            await scene.until_answered("timeout")
        assert await answer(person, "/readyz") == 503
        assert await answer(person, "/healthz") == 200
        assert float(await refused_creation(person) or 0) > 0
        seconds, connects = time.monotonic() - failed_at, proxy.accepted - accepted
        async with scene.updates():  # nobody hears of these, at first
            proxy.recover()
            recovered_at = time.monotonic()
            await until(lambda: is_ready(person))
            recovery = time.monotonic() - recovered_at
            await scene.until_told()
        figures = scene.check()
        assert not scene.oracle.refusals
        assert connects <= CONNECTS_AT_FIRST + CONNECTS_PER_SECOND * seconds
        await person.create()
        print_figure(
            "database down",
            seconds=round(seconds, 1),
            connects_per_second=round(connects / seconds, 2),
            recovery_s=round(recovery, 2),
            **figures,
        )


async def test_a_database_that_says_nothing_makes_no_poll_longer(
    start: Start, enter: Enter, dsn: str, proxy: Proxy
) -> None:
    """Connections stay open, new ones are accepted, no answer comes: each statement waits out its time."""
    person = await begin(start, enter, proxy.dsn(dsn), hold_seconds=1.0, timeout=LATE_SECONDS)
    async with followed_tasks(person, dsn, hold_seconds=1.0) as scene:
        forget_when_sessions_were_read(person)
        proxy.pause()
        began = time.monotonic()
        await scene.until_answered("timeout")
        await scene.until_answered("timeout")
        assert float(await refused_creation(person) or 0) > 0
        seconds = time.monotonic() - began
        proxy.resume()
        async with scene.updates():
            await until(lambda: is_ready(person))
            await scene.until_told()
        figures = scene.check()
        assert not scene.oracle.refusals
        print_figure("database silent", seconds=round(seconds, 1), **figures)
