"""Places in the queue: as of each reply, read once for everybody, and told only to who has named one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from server.errors import DatabaseUnavailable
from server.waiting.answers import Until
from server.waiting.batches import BatchAnswer, BatchQuestion
from server.waiting.places import LONGEST_GATHER_SECONDS, MOST_PLACES, NOWHERE
from server.waiting.waiters import Reason
from tests.unit.waiting.conftest import Scene, State, TimedAnswer, settle


@pytest.fixture
async def queue(scene: Scene) -> AsyncIterator[Scene]:
    """The scene, in which the task `t` stands behind two others, and places are kept up to date."""
    scene.queue.task_ids = ["a", "b", "t"]
    running = asyncio.create_task(scene.places.run())
    yield scene
    running.cancel()
    await asyncio.wait([running])


def now() -> float:
    return asyncio.get_running_loop().time()


async def told(poll: asyncio.Task[TimedAnswer]) -> tuple[Reason, int | None, bool]:
    answer = await poll
    return answer.reason, answer.standing[0], answer.changed


async def test_each_reply_says_where_the_task_stands_as_of_now(queue: Scene) -> None:
    assert await told(queue.ask(seconds=0)) == (Reason.IMMEDIATE, 3, False)
    queue.queue.task_ids = ["b", "t"]
    await asyncio.sleep(1)
    assert await told(queue.ask(seconds=0)) == (Reason.IMMEDIATE, 2, False)
    poll = await queue.hold()
    queue.queue.task_ids = ["t"]
    assert await told(poll) == (Reason.TIMEOUT, 1, False)


async def test_who_names_no_place_is_not_woken_by_one(queue: Scene) -> None:
    poll = await queue.hold(version=1)
    queue.queue.task_ids = ["t"]
    began = now()
    assert await told(poll) == (Reason.TIMEOUT, 1, False)
    assert now() - began == 30


async def test_a_move_is_told_no_sooner_than_two_seconds_after_the_poll_began(queue: Scene) -> None:
    began = now()
    poll = await queue.hold(version=1, place=3)
    queue.queue.task_ids = ["b", "t"]
    assert await told(poll) == (Reason.PLACE, 2, False)
    assert 2 <= now() - began <= 3.1
    again = now()
    assert await told(await queue.hold(version=1, place=3)) == (Reason.PLACE, 2, False)
    assert 2 <= now() - again <= 3.1


async def test_that_a_task_is_next_is_told_at_once(queue: Scene) -> None:
    began = now()
    poll = await queue.hold(version=1, place=3)
    queue.queue.task_ids = ["t"]
    assert await told(poll) == (Reason.PLACE, 1, False)
    assert now() - began <= 1.1
    assert await told(queue.ask(version=1, place=2)) == (Reason.PLACE, 1, False)
    assert await told(queue.ask(version=1, place=1)) == (Reason.TIMEOUT, 1, False)


async def test_far_back_moves_are_gathered_for_longer(queue: Scene) -> None:
    queue.queue.task_ids = [*(str(number) for number in range(5000)), "t"]
    began = now()
    assert await told(queue.ask(version=1, place=1)) == (Reason.PLACE, 5001, False)
    assert LONGEST_GATHER_SECONDS <= now() - began <= LONGEST_GATHER_SECONDS + 1.1


@pytest.mark.parametrize("until", [Until.STATUS, Until.TERMINAL])
async def test_a_change_comes_before_a_place(queue: Scene, until: Until) -> None:
    poll = await queue.hold(version=1, place=3)
    other = await queue.hold(version=1, until=until)
    queue.queue.task_ids = ["t"]
    queue.change(version=2)
    assert (await poll).reason is Reason.CHANGE
    queue.change(version=3, status="completed")
    assert (await other).reason is Reason.CHANGE


async def test_the_queue_is_read_once_a_second_for_everybody_and_for_nobody_not_at_all(queue: Scene) -> None:
    await asyncio.sleep(100)
    assert queue.queue.reads == 0
    polls = [await queue.hold(version=1, place=3) for _ in range(100)]
    await asyncio.sleep(9.5)
    assert queue.queue.reads <= 11
    queue.change(version=2, status="processing")
    await asyncio.wait(polls)
    reads = queue.queue.reads
    await asyncio.sleep(100)
    assert queue.queue.reads <= reads + 1
    assert not queue.places._waiting
    assert not queue.places._moving


async def test_tasks_that_came_since_stand_behind_each_other(queue: Scene) -> None:
    await queue.places.refresh(State("t"))
    new = [State("x", turn=250), State("y", turn=250), State("z", turn=10_000)]
    assert [queue.places.standing(task)[0] for task in new] == [3, 4, 6]


async def test_nobody_is_counted_beyond_the_bound(queue: Scene) -> None:
    queue.queue.task_ids = [str(number) for number in range(MOST_PLACES + 5)]
    await queue.places.refresh(State("t"))
    last = State("t", turn=100 * MOST_PLACES * 2)
    assert [queue.places.standing(last)[0] for _ in range(2)] == [MOST_PLACES + 1] * 2


@pytest.mark.parametrize("error", [DatabaseUnavailable("gone"), RuntimeError("a fault")])
async def test_a_queue_that_cannot_be_read_fails_no_poll(queue: Scene, error: Exception) -> None:
    queue.queue.broken = error
    assert await told(queue.ask(seconds=0)) == (Reason.IMMEDIATE, None, False)
    poll = await queue.hold(version=1, place=0)
    await asyncio.sleep(5)
    queue.queue.broken = None
    assert await told(poll) == (Reason.PLACE, 3, False)
    assert queue.metric("longpoll_failed_reads_total") >= 2


async def test_places_that_are_old_are_told_to_nobody(queue: Scene) -> None:
    await queue.places.refresh(State("t"))
    queue.queue.broken = DatabaseUnavailable("gone")
    await asyncio.sleep(11)
    assert queue.places.standing(State("t")) == NOWHERE


async def test_the_time_that_is_left_follows_from_place_history_and_workers(queue: Scene) -> None:
    queue.queue.mean_seconds, queue.queue.workers = 6.0, 2
    await queue.places.refresh(State("t"))
    assert [queue.places.standing(State(task_id))[1] for task_id in ("a", "b", "t")] == [6.0, 6.0, 12.0]
    running = State("r", status="processing", seconds_left=30.0, updated_at=now() - 10)
    assert queue.places.standing(running) == (None, 20.0)
    assert queue.places.standing(State("r", status="processing", updated_at=now() - 2)) == (None, 4.0)
    assert queue.places.standing(State("r", status="completed")) == NOWHERE


def ask_batch(queue: Scene, places: dict[str, int], seconds: float = 30.0) -> asyncio.Task[BatchAnswer[State]]:
    question = BatchQuestion({"t": 1, "b": 1}, "alice", seconds, places=places)
    return asyncio.create_task(queue.batches.answer(question))


async def test_a_batch_tells_which_of_its_tasks_have_moved(queue: Scene) -> None:
    queue.storage.put("b")
    poll = ask_batch(queue, {"t": 3})
    await settle()
    queue.queue.task_ids = ["b", "t"]
    answer = await poll
    assert (answer.reason, [each.task_id for each in answer.moved], answer.unchanged) == (Reason.PLACE, ["t"], ["b"])
    assert list(answer.changed) == []
    assert 2 <= answer.held_seconds <= 3.1
    answer = await ask_batch(queue, {"t": 2, "b": 2})
    assert (answer.reason, [each.task_id for each in answer.moved]) == (Reason.PLACE, ["b"])
    assert answer.held_seconds <= 0.1


async def test_a_batch_that_names_no_place_is_not_woken_by_one(queue: Scene) -> None:
    queue.storage.put("b")
    poll = ask_batch(queue, {})
    await settle()
    queue.queue.task_ids = ["t", "b"]
    answer = await poll
    assert (answer.reason, list(answer.moved), answer.held_seconds) == (Reason.TIMEOUT, [], 30)
