"""The board when reading fails: for a while, by a bug, or because the database is an older one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from server.errors import DatabaseUnavailable, StorageError
from server.waiting.waiters import Reason
from tests.waiting.conftest import SWEEP_SECONDS, Scene, settle


async def test_a_new_poll_is_told_that_its_task_cannot_be_read(scene: Scene) -> None:
    scene.storage.broken = DatabaseUnavailable("gone")
    with pytest.raises(DatabaseUnavailable, match="gone"):
        await scene.ask(version=1)
    assert len(scene.board) == 0


async def test_held_polls_outlast_a_broken_storage(scene: Scene) -> None:
    poll = await scene.hold(version=1)
    scene.storage.broken = DatabaseUnavailable("gone")
    scene.change(version=2)
    await asyncio.sleep(4)
    assert not poll.done()
    known = scene.ask(version=1)  # the state is known, if not fresh: it waits like the other
    await asyncio.sleep(2)
    assert not known.done()
    scene.storage.broken = None
    await asyncio.sleep(1)
    for each in (poll, known):
        assert (await each).snapshot == scene.storage.rows["t"]


async def test_a_failed_read_is_tried_again_with_growing_pauses(scene: Scene) -> None:
    poll = await scene.hold(version=1)
    scene.storage.reads.clear()
    scene.storage.broken = DatabaseUnavailable("gone")
    scene.change(version=2)
    await asyncio.sleep(10)
    assert len(scene.storage.reads) == 13, "at 0, 0.1, 0.35, 0.85, then each second"
    poll.cancel()
    await asyncio.sleep(2)
    scene.storage.reads.clear()
    await asyncio.sleep(5)
    assert not scene.storage.reads, "nobody waits for it any more"


async def test_the_sweep_outlasts_a_broken_storage(scene: Scene) -> None:
    poll = await scene.hold(version=1)
    scene.storage.broken = DatabaseUnavailable("gone")
    await asyncio.sleep(2 * SWEEP_SECONDS)
    scene.storage.broken = None
    scene.storage.put(version=2)
    assert (await poll).reason is Reason.CHANGE


async def _in_the_read_under_way(scene: Scene) -> asyncio.Task[object]:
    scene.storage.paused = True
    poll = scene.ask(version=1)
    await settle()
    return poll


async def _in_the_next_batch(scene: Scene) -> asyncio.Task[object]:
    await _in_the_read_under_way(scene)
    poll = scene.ask("another", 1)
    await settle()
    return poll


@pytest.mark.parametrize("arrive", [_in_the_read_under_way, _in_the_next_batch])
async def test_a_bug_in_reading_ends_the_board_and_leaves_no_poll_hanging(
    scene: Scene, arrive: Callable[[Scene], object]
) -> None:
    poll = await arrive(scene)  # type: ignore[misc]
    scene.storage.pending[0].fail(RuntimeError("a bug"))
    with pytest.raises(StorageError):
        await poll
    assert scene.running is not None
    with pytest.raises(ExceptionGroup) as caught:
        await scene.running
    assert caught.group_contains(RuntimeError, match="a bug")
    with pytest.raises(StorageError, match="stopped"):
        await scene.ask("later", 1)


async def test_a_restored_database_tells_of_lower_versions(scene: Scene) -> None:
    scene.storage.put(version=9)
    poll = await scene.hold(version=9)
    scene.board.lost()
    scene.storage.put(version=3)
    scene.board.restored()
    answer = await poll
    assert answer.snapshot == scene.storage.rows["t"]
    assert answer.reason is Reason.RESET
