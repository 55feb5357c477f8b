"""PgBouncer in transaction mode stands in front of Postgres: the start says what is wrong, and `listen_dsn` mends it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from server import app
from server.commands import serve
from server.config import Config
from server.errors import ConfigurationError
from server.storage import listener
from tests.faults.load import print_figure
from tests.faults.scene import CLIENTS, followed_tasks
from tests.support.people import Enter, Person, Start
from tests.support.pooler import pooler

HOLD_SECONDS = 8.0


@pytest.fixture
def pooled_dsn(dsn: str) -> Iterator[str]:
    """The way through PgBouncer; `dsn` is the direct one."""
    with pooler(dsn) as pooled:
        yield pooled


async def test_the_start_fails_and_names_the_pooler_and_the_way_out(
    config: Config, pooled_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it waits, a notification never comes: the pooler takes LISTEN, says yes, and drops it."""
    monkeypatch.setattr(listener, "_READY_SECONDS", 2.0)
    runner = serve.make_runner(app.build_app(config, pooled_dsn))
    with pytest.raises(ConfigurationError, match=r"transaction pooler .* drops LISTEN: give database\.listen_dsn"):
        await runner.setup()
    await runner.cleanup()


async def test_with_a_direct_way_to_listen_all_requests_work_and_no_identity_leaks(
    start: Start, enter: Enter, dsn: str, pooled_dsn: str
) -> None:
    """The pooler gives each transaction whatever connection is free, after somebody else had it."""
    client = await start(pooled_dsn, database={"listen_dsn": dsn}, generation={"workers": 1})
    alice, bob = await enter(client, "alice"), await enter(client, "bob")
    task_ids = await asyncio.gather(*(person.create() for person in (alice, bob) * 2))
    for number, task_id in enumerate(task_ids):
        owner, stranger = (bob, alice) if number % 2 else (alice, bob)
        assert (await owner.status(task_id, until="terminal"))["data"]["status"] == "completed"
        assert await answer(stranger, f"/api/generate/status?taskId={task_id}") == 404
        assert await answer(stranger, f"/api/generate/tasks/{task_id}/image") == 404
        assert await answer(owner, f"/api/generate/tasks/{task_id}/image") == 200
    async with bob.http.get("/api/generate/tasks") as reply:
        assert {each["taskId"] for each in (await reply.json())["items"]} == set(task_ids[1::2])
    async with alice.http.delete(f"/api/generate/tasks/{task_ids[0]}") as reply:
        assert reply.status == 204
    async with alice.http.post("/api/auth/logout") as reply:
        assert reply.ok
    assert await answer(alice, "/api/generate/tasks") == 401


async def answer(person: Person, path: str) -> int:
    async with person.http.get(path) as reply:
        return reply.status


@pytest.mark.parametrize("rounds", [2, pytest.param(60, marks=pytest.mark.slow)])
async def test_with_a_direct_way_to_listen_no_poll_waits_longer_for_the_pooler(
    start: Start, enter: Enter, dsn: str, pooled_dsn: str, rounds: int
) -> None:
    polling = {"hold_seconds": HOLD_SECONDS, "max_held_per_user": 2 * CLIENTS}
    person = await enter(await start(pooled_dsn, database={"listen_dsn": dsn}, polling=polling))
    async with followed_tasks(person, dsn, hold_seconds=HOLD_SECONDS) as scene:
        async with scene.updates():
            for _ in range(rounds):
                await scene.until_told()
        figures = scene.check()
        assert not scene.oracle.refusals
        assert scene.listener.healthy
        assert scene.repairs == 0
        print_figure("transaction pooler", **figures)
