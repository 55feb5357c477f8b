"""The board when reading fails: for a while, by a bug, or because the database is an older one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from server.errors import BoardStopped, DatabaseUnavailable, StorageError
from server.waiting.waiters import Reason
from tests.unit.waiting.conftest import SWEEP_SECONDS, Scene, settle


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


async def end_the_board(scene: Scene) -> None:
    """Let one of its loops end by a bug of the board's own."""
    scene.board._tell = None  # type: ignore[method-assign, assignment]
    scene.storage.pending[0].finish()
    assert scene.running is not None
    with pytest.raises(ExceptionGroup):
        await scene.running
    del scene.board._tell


@pytest.mark.parametrize("arrive", [_in_the_read_under_way, _in_the_next_batch])
async def test_a_board_that_ends_leaves_no_poll_hanging(scene: Scene, arrive: Callable[[Scene], object]) -> None:
    poll = await arrive(scene)  # type: ignore[misc]
    await end_the_board(scene)
    with pytest.raises(BoardStopped):
        await poll
    with pytest.raises(BoardStopped):
        await scene.ask("later", 1)


async def test_a_board_that_is_run_again_tells_what_it_had_not_told(scene: Scene) -> None:
    poll = await scene.hold(version=1)
    scene.storage.paused = True
    scene.change(version=2)
    await settle()
    await end_the_board(scene)
    assert not poll.done()
    scene.storage.paused = False
    scene.running = asyncio.create_task(scene.board.run())
    assert (await poll).reason is Reason.CHANGE


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("NUL"), StorageError("a bad row")])
async def test_a_task_that_cannot_be_read_fails_alone(scene: Scene, error: Exception) -> None:
    names = [f"t{number}" for number in range(20)]
    for name in names:
        scene.storage.put(name)
    scene.storage.poison["t7"] = error
    asked = {name: scene.ask(name, 0) for name in names}
    await settle()
    for name in set(names) - {"t7"}:
        assert (await asked[name]).snapshot == scene.storage.rows[name]
    with pytest.raises(StorageError):
        await asked["t7"]
    assert max(len(read.task_ids) for read in scene.storage.reads) == 20
    assert len(scene.storage.reads) <= 2 * 5 + 1, "halved, not read one by one"
    assert scene.metric("longpoll_failed_reads_total") == 5


async def test_a_held_task_that_cannot_be_read_delays_nobody(scene: Scene) -> None:
    """The pause before it is tried again isn't everybody's."""
    scene.storage.put("bad")
    held, bad = await scene.hold(version=1), await scene.hold("bad", 1)
    scene.storage.poison["bad"] = RuntimeError("a bug")
    scene.change("bad", 2)
    scene.change(version=2)
    started = asyncio.get_running_loop().time()
    assert (await held).snapshot == scene.storage.rows["t"]
    again = await scene.hold(version=2)
    scene.change(version=3)
    assert (await again).snapshot == scene.storage.rows["t"]
    assert asyncio.get_running_loop().time() == started
    assert not bad.done()
    scene.storage.poison.clear()
    assert (await bad).snapshot == scene.storage.rows["bad"]
    assert asyncio.get_running_loop().time() <= started + 1, "tried again within a second"


async def test_reads_that_all_fail_are_not_tried_one_by_one(scene: Scene) -> None:
    scene.storage.broken = StorageError("permission denied")
    asked = [scene.ask(f"t{number}", 0) for number in range(1000)]
    for each in asked:
        with pytest.raises(StorageError, match="permission denied"):
            await each
    assert len(scene.storage.reads) <= 128


async def test_somebody_who_cannot_be_told_keeps_nobody_else_waiting(scene: Scene) -> None:
    class Broken:
        def set(self) -> None:
            raise RuntimeError("a bug")

    scene.storage.put("other")
    poll, other = await scene.hold(version=1), await scene.hold("other", 1)
    watched = scene.board.enter("t")
    watched.follow(Broken())
    scene.change(version=2)
    scene.change("other", 2)
    assert (await other).snapshot == scene.storage.rows["other"]
    assert (await poll).snapshot == scene.storage.rows["t"]
    assert scene.metric("longpoll_unhandled_errors_total") == 1
    watched.unfollow(Broken())
    scene.board.leave(watched)


async def test_a_restored_database_tells_of_lower_versions(scene: Scene) -> None:
    scene.storage.put(version=9)
    poll = await scene.hold(version=9)
    scene.board.on_listener_lost()
    scene.storage.put(version=3)
    scene.board.on_listener_restored()
    answer = await poll
    assert answer.snapshot == scene.storage.rows["t"]
    assert answer.reason is Reason.RESET
