"""Postgres comes back with less than it had: a backup was put back, or a crash took the latest commits with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.faults import postgres
from tests.faults.load import print_figure, read_states
from tests.faults.postgres import MortalPostgres
from tests.faults.proxy import Proxy, proxy_to
from tests.faults.scene import CLIENTS, TASKS, followed_tasks
from tests.support.facts import until
from tests.support.people import Enter, Person, Start

mortal, dsn = postgres.mortal, postgres.dsn

HOLD_SECONDS = 30.0  # nobody is told because a hold ends


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    """Stands between the server and its database."""
    async with proxy_to(dsn) as between:
        yield between


async def begin(start: Start, enter: Enter, dsn: str) -> Person:
    polling = {"hold_seconds": HOLD_SECONDS, "max_held_per_user": 2 * CLIENTS}
    return await enter(await start(dsn, database={"heartbeat_seconds": 0.25}, polling=polling))


async def test_a_database_put_back_from_a_backup_resets_every_client(
    start: Start, enter: Enter, dsn: str, mortal: MortalPostgres
) -> None:
    person = await begin(start, enter, dsn)
    async with followed_tasks(person, dsn, hold_seconds=HOLD_SECONDS) as scene:
        await mortal.shut_down()
        await mortal.back_up()
        await mortal.come_back()
        for number in (2, 3, 4):
            scene.change_all(f"status = 'processing', message = 'step {number}'")
            await scene.until_held_with(number)
        unknown = asyncio.create_task(created_and_polled(person))
        await until(lambda: person.held == CLIENTS + 1)
        await mortal.shut_down()
        await mortal.restore()
        await mortal.come_back()
        assert await unknown == 410
        await scene.until_held_with(1)
        resets = {reply.client for reply in scene.oracle.replies if reply.reason == "reset"}
        assert len(resets) == CLIENTS
        assert max(reply.at - reply.sent for reply in scene.oracle.replies) < HOLD_SECONDS / 2
        async with scene.updates():
            await scene.until_told()
        figures = scene.check()
        assert not scene.oracle.refusals
        print_figure("database restored", resets=len(resets), stuck=CLIENTS - len(resets), **figures)


async def created_and_polled(person: Person) -> int:
    """Create a task that no backup knows, and wait for it; returns the status of the reply."""
    async with person.poll(await person.create(), version=1) as reply:
        return int(reply.status)


async def test_another_state_under_a_number_that_a_crash_took_back_is_told(
    start: Start, enter: Enter, dsn: str, mortal: MortalPostgres, proxy: Proxy
) -> None:
    """Progress is committed without waiting for the disk: clients may know of a version that never was."""
    person = await begin(start, enter, proxy.dsn(dsn))
    async with followed_tasks(person, dsn, hold_seconds=HOLD_SECONDS) as scene:
        scene.change_all("status = 'processing'", settings="SET synchronous_commit = off;")
        await scene.until_held_with(2)
        proxy.fail()  # until it is all over the server sees nothing, or clients would be told of version 1 in between
        await mortal.crash()
        await mortal.come_back()
        assert set(read_states(dsn, scene.task_ids).values()) == {(1, "pending")}, "nothing was lost: no test"
        scene.change_all("status = 'completed', result = '/picture'")
        proxy.recover()
        await scene.pollers.until_done()
        figures = scene.check()
        ends = [reply.reason for reply in scene.oracle.replies if (reply.version, reply.status) == (2, "completed")]
        assert ends == ["change"] * CLIENTS
        assert figures["longest_poll_s"] < HOLD_SECONDS / 2, "told by the end of the hold"
        assert not scene.oracle.refusals
        print_figure("commits lost in a crash", lost=TASKS, stuck=CLIENTS - len(ends), **figures)
