"""One poll for many tasks, in time that jumps: what is told at once, and what may wait for more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from server.waiting.batches import GATHER_SECONDS, BatchAnswer, BatchPolling, BatchQuestion
from server.waiting.waiters import Reason
from tests.unit.waiting.conftest import Scene, State, settle

SHORTEST = GATHER_SECONDS[0]

Ask = Callable[..., asyncio.Task[BatchAnswer[State]]]


@pytest.fixture
def ask(scene: Scene) -> Ask:
    """Begin a batch poll for tasks and the versions that were seen of them."""
    polling = BatchPolling(
        scene.board,
        scene.waiters,
        scene.places,
        jitter_seconds=1.0,
        chance=lambda: 0.0,
        clock=lambda: asyncio.get_running_loop().time(),
    )

    def begin(versions: Mapping[str, int], *, gather: float = 0.0, seconds: float = 30.0) -> asyncio.Task[BatchAnswer]:
        return asyncio.create_task(polling.answer(BatchQuestion(versions, "alice", seconds, gather=gather)))

    return begin


@pytest.fixture
async def working(scene: Scene, ask: Ask) -> None:
    """Two tasks in progress, whose states have been asked for before."""
    scene.storage.put("t", 2, status="processing")
    scene.storage.put("u", 2, status="processing")
    await ask({"t": 0, "u": 0})


def versions(answer: BatchAnswer[State]) -> dict[str, int]:
    return {state.task_id: state.version for state in answer.changed}


@pytest.mark.usefixtures("working")
async def test_progress_is_told_within_the_shortest_gathering_unless_the_client_asks_for_a_longer(
    scene: Scene, ask: Ask
) -> None:
    poll = ask({"t": 2, "u": 2})
    await asyncio.sleep(0.5)
    scene.change("t", 3, status="processing")
    answer = await poll
    assert (answer.reason, versions(answer)) == (Reason.CHANGE, {"t": 3})
    assert answer.held_seconds == pytest.approx(0.5 + SHORTEST)


@pytest.mark.usefixtures("working")
async def test_progress_that_is_gathered_comes_in_one_answer_when_the_poll_is_old_enough(
    scene: Scene, ask: Ask
) -> None:
    poll = ask({"t": 2, "u": 2}, gather=2.0)
    for version in (3, 4, 5):
        await asyncio.sleep(0.5)
        scene.change("t", version, status="processing")
    scene.change("u", 3, status="processing")
    answer = await poll
    assert versions(answer) == {"t": 5, "u": 3}
    assert answer.held_seconds == pytest.approx(2.0 + SHORTEST)


@pytest.mark.usefixtures("working")
async def test_progress_after_a_long_silence_needs_no_gathering(scene: Scene, ask: Ask) -> None:
    poll = ask({"t": 2}, gather=2.0)
    await asyncio.sleep(10)
    scene.change("t", 3, status="processing")
    assert (await poll).held_seconds == pytest.approx(10 + SHORTEST)


@pytest.mark.usefixtures("working")
async def test_progress_that_came_between_two_polls_is_gathered_too(scene: Scene, ask: Ask) -> None:
    scene.change("t", 3, status="processing")
    poll = ask({"t": 2}, gather=2.0)
    await asyncio.sleep(1)
    scene.change("t", 4, status="processing")
    answer = await poll
    assert (answer.reason, versions(answer)) == (Reason.CHANGE, {"t": 4})
    assert answer.held_seconds == pytest.approx(2.0 + SHORTEST)


@pytest.mark.usefixtures("working")
@pytest.mark.parametrize("status", ["completed", "pending"])
async def test_another_status_is_told_at_once_with_what_was_gathered(scene: Scene, ask: Ask, status: str) -> None:
    poll = ask({"t": 2, "u": 2}, gather=2.0)
    await settle()
    scene.change("u", 3, status="processing")
    await asyncio.sleep(0.5)
    scene.change("t", 3, status=status)
    answer = await poll
    assert versions(answer) == {"t": 3, "u": 3}
    assert answer.held_seconds == pytest.approx(0.5 + SHORTEST)


@pytest.mark.usefixtures("working")
async def test_another_status_that_came_between_two_polls_is_told_at_once(scene: Scene, ask: Ask) -> None:
    scene.change("t", 3, status="completed")
    answer = await ask({"t": 2}, gather=2.0)
    assert (answer.reason, answer.held_seconds) == (Reason.IMMEDIATE, 0)


@pytest.mark.usefixtures("working")
async def test_a_deletion_is_told_at_once(scene: Scene, ask: Ask) -> None:
    poll = ask({"t": 2, "u": 2}, gather=2.0)
    await asyncio.sleep(0.5)
    scene.delete("u")
    answer = await poll
    assert answer.not_found == ["u"]
    assert answer.held_seconds == pytest.approx(0.5 + SHORTEST)


async def test_what_may_be_another_status_is_told_at_once(scene: Scene, ask: Ask) -> None:
    """This server first read the task at version 2: which status version 1 had, it doesn't know."""
    scene.storage.put("t", 2, status="processing")
    assert (await ask({"t": 1}, gather=2.0)).reason is Reason.IMMEDIATE


@pytest.mark.usefixtures("working")
async def test_a_hold_that_ends_before_the_gathering_tells_what_there_is(scene: Scene, ask: Ask) -> None:
    poll = ask({"t": 2}, gather=2.0, seconds=1.0)
    await settle()
    scene.change("t", 3, status="processing")
    answer = await poll
    assert (answer.reason, versions(answer)) == (Reason.CHANGE, {"t": 3})
    assert answer.held_seconds <= 1.0 + 1e-6


@pytest.mark.usefixtures("working")
async def test_a_process_that_stops_does_not_gather(scene: Scene, ask: Ask) -> None:
    poll = ask({"t": 2}, gather=2.0)
    await settle()
    scene.change("t", 3, status="processing")
    await settle()
    scene.waiters.drain(0)
    assert (await poll).held_seconds == 0


@pytest.mark.usefixtures("working")
async def test_a_version_that_went_back_is_a_reset_at_once(scene: Scene, ask: Ask) -> None:
    poll = ask({"t": 2}, gather=2.0)
    await settle()
    scene.storage.put("t", 1, status="processing")
    scene.board.invalidate("t")
    answer = await poll
    assert (answer.reason, versions(answer)) == (Reason.RESET, {"t": 1})
    assert answer.held_seconds == pytest.approx(SHORTEST)
