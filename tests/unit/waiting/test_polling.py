"""One poll: every reason to answer, and none to answer too early or too late."""

from __future__ import annotations

import asyncio

import pytest

from server.waiting.answers import Answer, Until
from server.waiting.waiters import Reason
from tests.unit.waiting.conftest import Scene, State, TimedAnswer, playing, settle


def told(answer: Answer[State]) -> tuple[int | None, Reason, bool]:
    return answer.snapshot.version if answer.snapshot else None, answer.reason, answer.changed


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (4, (5, Reason.IMMEDIATE, True)),
        (0, (5, Reason.IMMEDIATE, True)),
        (6, (5, Reason.RESET, True)),
        (10**30, (5, Reason.RESET, True)),
    ],
)
async def test_a_client_with_another_version_is_answered_at_once(
    scene: Scene, version: int, expected: tuple[int, Reason, bool]
) -> None:
    scene.storage.put(version=5)
    answer = await scene.ask(version=version)
    assert told(answer) == expected
    assert answer.held_seconds == 0


@pytest.mark.parametrize("version", [1, None])
async def test_a_client_that_has_seen_the_latest_is_told_of_the_next(scene: Scene, version: int | None) -> None:
    poll = await scene.hold(version=version)
    await asyncio.sleep(12)
    scene.change(version=2)
    answer = await poll
    assert told(answer) == (2, Reason.CHANGE, True)
    assert answer.held_seconds == 12


async def test_a_hold_ends_with_the_current_state(scene: Scene) -> None:
    answer = await scene.ask(version=1)
    assert told(answer) == (1, Reason.TIMEOUT, False)
    assert 29.9 - 1e-6 <= answer.held_seconds <= 30


@pytest.mark.parametrize(("chance", "earliest", "latest"), [(0.0, 29.9, 30.0), (0.5, 29.4, 29.5), (1.0, 28.9, 29.0)])
async def test_jitter_ends_a_hold_earlier_never_later(
    scene: Scene, chance: float, earliest: float, latest: float
) -> None:
    scene.chance = chance
    held = (await scene.ask(version=1)).held_seconds
    assert earliest - 1e-6 <= held <= latest + 1e-6


async def test_jitter_takes_no_more_than_a_tenth_of_a_short_hold(scene: Scene) -> None:
    scene.chance = 1.0
    assert (await scene.ask(version=1, seconds=2)).held_seconds >= 1.7 - 1e-6


@pytest.mark.parametrize("seconds", [0, -1])
@pytest.mark.parametrize("version", [1, None])
async def test_no_wait_is_an_instant_snapshot(scene: Scene, version: int | None, seconds: float) -> None:
    assert told(await scene.ask(version=version, seconds=seconds)) == (1, Reason.IMMEDIATE, False)


@pytest.mark.parametrize("until", list(Until))
@pytest.mark.parametrize(("version", "changed"), [(5, False), (4, True), (None, False)])
async def test_a_task_that_has_ended_is_never_waited_for(
    scene: Scene, version: int | None, until: Until, *, changed: bool
) -> None:
    scene.storage.put(version=5, status="completed")
    assert told(await scene.ask(version=version, until=until)) == (5, Reason.IMMEDIATE, changed)


async def test_another_users_task_is_as_unknown_as_one_that_is_not_there(scene: Scene) -> None:
    assert (
        await scene.ask("t", 1, user="bob")
        == await scene.ask("nothing", 1, user="bob")
        == TimedAnswer(None, Reason.IMMEDIATE)
    )
    assert await scene.ask("t", 99, user="bob") == TimedAnswer(None, Reason.IMMEDIATE)


async def test_until_status_is_not_woken_by_progress(scene: Scene) -> None:
    poll = await scene.hold(version=1, until=Until.STATUS)
    for version in (2, 3):
        scene.change(version=version)
        await settle()
    assert not poll.done()
    scene.change(version=4, status="processing")
    assert told(await poll) == (4, Reason.CHANGE, True)


async def test_until_terminal_is_woken_by_the_end_alone(scene: Scene) -> None:
    poll = await scene.hold(version=1, until=Until.TERMINAL)
    scene.change(version=2, status="processing")
    await settle()
    assert not poll.done()
    scene.change(version=3, status="completed")
    assert told(await poll) == (3, Reason.CHANGE, True)


async def test_until_terminal_that_times_out_tells_what_has_changed_so_far(scene: Scene) -> None:
    poll = await scene.hold(version=1, until=Until.TERMINAL)
    scene.change(version=2, status="processing")
    assert told(await poll) == (2, Reason.TIMEOUT, True)


@pytest.mark.parametrize("until", list(Until))
async def test_a_deleted_task_ends_every_wait(scene: Scene, until: Until) -> None:
    poll = await scene.hold(version=1, until=until)
    await asyncio.sleep(1)
    scene.delete()
    answer = await poll
    assert answer == TimedAnswer(None, Reason.CHANGE, changed=True, deleted=True, held_seconds=1)
    assert await scene.ask(version=1) == TimedAnswer(None, Reason.IMMEDIATE), "from now on it is unknown"
    assert len(scene.board) == 0


@pytest.mark.parametrize("until", list(Until))
async def test_a_task_that_comes_back_as_somebody_elses_is_deleted_for_who_waited(scene: Scene, until: Until) -> None:
    poll = await scene.hold(version=1, until=until)
    scene.change(version=2, user_id="bob")
    answer = await poll
    assert answer.deleted
    assert answer.held_seconds < 1, "it says so at once"
    assert answer.snapshot is None


async def test_a_version_ahead_of_ours_is_looked_up_before_it_is_called_a_reset(scene: Scene) -> None:
    """Another server was faster: it has told the client of a version whose notification hasn't reached us yet."""
    await scene.ask(version=0)
    scene.storage.put(version=2)
    poll = await scene.hold(version=2)
    scene.board.on_notification("t:2")
    await settle()
    assert not poll.done()
    scene.change(version=3)
    assert told(await poll) == (3, Reason.CHANGE, True)


async def test_a_restored_database_says_so_to_who_waited(scene: Scene) -> None:
    scene.storage.put(version=7)
    polls = [await scene.hold(version=7, until=until) for until in Until]
    scene.board.on_listener_lost()
    scene.storage.put(version=2)
    scene.board.on_listener_restored()
    await settle()  # and not only when the hold ends
    for poll in polls:
        answer = await poll
        assert told(answer) == (2, Reason.RESET, True)
        assert answer.held_seconds < 1, "it says so at once"


async def test_an_end_under_a_number_that_a_crash_took_back_is_told_at_once(scene: Scene) -> None:
    """The client has seen a version 7 that was lost; the version 7 that there is now is another one."""
    scene.storage.put(version=7, status="processing")
    polls = [await scene.hold(version=7, until=until) for until in Until]
    scene.board.on_listener_lost()
    scene.storage.put(version=7, status="completed")
    scene.board.on_listener_restored()
    await settle()
    for poll in polls:
        assert poll.done()
        assert told(await poll) == (7, Reason.CHANGE, False)


async def test_a_drain_ends_holds_and_refuses_new_ones(scene: Scene) -> None:
    poll = await scene.hold(version=1)
    scene.waiters.drain(0)
    assert told(await poll) == (1, Reason.DRAIN, False)
    assert told(await scene.ask(version=1)) == (1, Reason.DRAIN, False)
    assert told(await scene.ask(version=0)) == (1, Reason.IMMEDIATE, True)


async def test_a_poll_that_is_still_reading_when_the_drain_begins_is_not_held(scene: Scene) -> None:
    scene.storage.paused = True
    poll = scene.ask(version=1)
    await settle()
    scene.waiters.drain(0)
    scene.storage.pending[0].finish()
    assert told(await poll) == (1, Reason.DRAIN, False)


@pytest.mark.usefixtures("path")
async def test_over_the_process_cap_the_state_is_answered_at_once() -> None:
    async with playing(Scene(max_held=1)) as scene:
        scene.storage.put()
        poll = await scene.hold(version=1)
        assert told(await scene.ask(version=1)) == (1, Reason.DEGRADED, False)
        assert told(await scene.ask(version=0)) == (1, Reason.IMMEDIATE, True)
        scene.change()
        await poll


@pytest.mark.usefixtures("path")
async def test_over_the_users_cap_the_oldest_poll_ends() -> None:
    async with playing(Scene(max_held_per_user=1)) as scene:
        scene.storage.put()
        oldest = await scene.hold(version=1)
        newest = scene.ask(version=1)
        assert told(await oldest) == (1, Reason.DEGRADED, False)
        scene.change()
        assert told(await newest) == (2, Reason.CHANGE, True)


async def test_the_same_page_asking_again_supersedes_its_older_poll(scene: Scene) -> None:
    older = await scene.hold(version=1, client="page")
    newer = scene.ask(version=1, client="page")
    assert told(await older) == (1, Reason.SUPERSEDED, False)
    scene.change()
    assert told(await newer) == (2, Reason.CHANGE, True)


async def test_a_change_in_the_tick_of_the_deadline_is_told(scene: Scene) -> None:
    """The snapshot is there and the Event is set, and before the waiter runs its time is over."""
    poll = await scene.hold(version=1)
    (hold,) = scene.waiters
    scene.storage.paused = True
    scene.change()
    await settle()
    scene.storage.pending[0].finish()
    while not poll.done() and not hold.reason:
        if scene.board._tasks["t"].snapshot == scene.storage.rows["t"]:
            hold.expire()
        await asyncio.sleep(0)
    assert told(await poll) == (2, Reason.CHANGE, True)


async def test_a_change_in_the_tick_after_the_deadline_is_told_too(scene: Scene) -> None:
    """Its time is over, and before the poll has its turn the snapshot comes."""
    poll = await scene.hold(version=1)
    (hold,) = scene.waiters
    hold.expire()
    scene.board._apply(scene.board._tasks["t"], scene.storage.put(version=2), repairing=False)
    assert told(await poll) == (2, Reason.CHANGE, True)


async def test_a_client_that_leaves_takes_its_waiter_along(scene: Scene) -> None:
    polls = [await scene.hold(version=1) for _ in range(3)]
    for poll in polls:
        poll.cancel()
    await settle()
    assert len(scene.waiters) == 0
    assert scene.board._tasks["t"].watchers == 0
    assert all(poll.cancelled() for poll in polls)


async def test_a_client_that_leaves_does_not_disturb_the_read_of_the_others(scene: Scene) -> None:
    scene.storage.paused = True
    leaving, staying = scene.ask(version=0), scene.ask(version=0)
    await settle()
    leaving.cancel()
    await settle()
    (read,) = scene.storage.pending
    assert not read.answer.cancelled()
    read.finish()
    assert told(await staying) == (1, Reason.IMMEDIATE, True)
