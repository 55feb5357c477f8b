"""Polls that wait without a task: called up by news, answered in their turn, together with those who wait for the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from server.waiting.answers import Answer, Question, Until
from server.waiting.parked_polls import ANSWERED_AT_ONCE, ParkedPoll
from server.waiting.waiters import Reason
from tests.unit.waiting.conftest import Scene, State, playing, settle


class Audience:
    """Whoever is told something, in which order, and in which turn of the loop."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.told: dict[Any, Answer[State]] = {}
        self.turns: list[int] = []
        self.broken: set[Any] = set()

    def park(self, name: Any, version: int = 1, **rest: Any) -> ParkedPoll[State]:
        """Park a poll of somebody with this name."""

        def tell(answer: Answer[State], _held_seconds: float) -> None:
            assert name not in self.told, "told twice"
            self.told[name] = answer
            if name in self.broken:
                raise RuntimeError(name)

        poll = self.scene.polling.park_at_once(Question("t", "alice", version, 30.0, **rest), version, tell)
        assert poll is not None
        return poll

    async def listen(self) -> None:
        """Let the loop turn until nobody is told anything more, and note how many were told in each turn."""
        while not self.turns or self.turns[-1]:
            before = len(self.told)
            await asyncio.sleep(0)
            self.turns.append(len(self.told) - before)
        self.turns.pop()


@pytest.fixture
async def audience() -> AsyncIterator[Audience]:
    """Nobody yet; what is known of the task is fresh, so that polls can be parked at once."""
    async with playing(Scene()) as scene:
        scene.storage.put()
        await scene.ask(version=0)
        yield Audience(scene)
        assert not scene.polling._parked._woken
        assert len(scene.waiters) == 0
        assert scene.board._tasks["t"].watchers == 0


def learn(audience: Audience, version: int, **columns: str) -> None:
    """Have the board know a new state from now on, and tell everybody who follows the task."""
    scene = audience.scene
    scene.board._apply(scene.board._tasks["t"], scene.storage.put(version=version, **columns), repairing=False)


async def test_who_has_waited_longest_is_told_first(audience: Audience) -> None:
    for name in range(1000):
        audience.park(name)
    learn(audience, 2)
    await audience.listen()
    assert list(audience.told) == list(range(1000))


async def test_of_a_crowd_so_many_are_told_in_a_turn_that_others_get_theirs(audience: Audience) -> None:
    for name in range(1000):
        audience.park(name)
    learn(audience, 2)
    await audience.listen()
    assert audience.turns == [ANSWERED_AT_ONCE] * 3 + [1000 - 3 * ANSWERED_AT_ONCE]


async def test_the_ends_of_a_crowds_time_are_spread_in_the_same_way(audience: Audience) -> None:
    for name in range(1000):
        audience.park(name)
    for hold in list(audience.scene.waiters):
        hold.expire()
    await audience.listen()
    assert max(audience.turns) == ANSWERED_AT_ONCE
    assert {answer.reason for answer in audience.told.values()} == {Reason.TIMEOUT}


async def test_who_has_waited_for_the_same_gets_the_same_answer(audience: Audience) -> None:
    for name in range(3):
        audience.park(name)
    learn(audience, 2)
    await audience.listen()
    first, second, third = audience.told.values()
    assert first is second is third


async def test_who_has_waited_for_something_else_does_not(audience: Audience) -> None:
    """Neighbours in the queue that differ in one thing each: what they wait for, what they have seen, why they end."""
    audience.park("any change")
    audience.park("another status", until=Until.STATUS)
    audience.park("the end", until=Until.TERMINAL)
    last = audience.park("time over", until=Until.TERMINAL)
    learn(audience, 2)
    last.expire()
    await audience.listen()
    assert audience.told == {
        "any change": Answer(audience.scene.storage.rows["t"], Reason.CHANGE, changed=True),
        "time over": Answer(audience.scene.storage.rows["t"], Reason.TIMEOUT, changed=True),
    }
    audience.park("came later", version=2, until=Until.STATUS)
    learn(audience, 3, status="processing")
    await audience.listen()
    assert audience.told["another status"].changed
    assert audience.told["came later"] == Answer(audience.scene.storage.rows["t"], Reason.CHANGE, changed=True)
    learn(audience, 4, status="completed")
    await audience.listen()
    assert audience.told["the end"].reason is Reason.CHANGE


async def test_those_who_have_seen_another_state_are_judged_by_theirs(audience: Audience) -> None:
    """A database is restored to the state that one of two has seen, and the other has seen a later one."""
    audience.park("seen 1", until=Until.STATUS)
    learn(audience, 2)
    audience.park("seen 2", version=2, until=Until.STATUS)
    await audience.listen()
    learn(audience, 1)
    await audience.listen()
    assert audience.told == {"seen 2": Answer(audience.scene.storage.rows["t"], Reason.RESET, changed=True)}
    learn(audience, 2, status="processing")
    await audience.listen()
    assert audience.told["seen 1"].reason is Reason.CHANGE


async def test_what_is_told_is_what_is_known_when_it_is_told(audience: Audience) -> None:
    """Called up twice, told once."""
    audience.park("somebody")
    learn(audience, 2)
    learn(audience, 3)
    await audience.listen()
    assert audience.told["somebody"] == Answer(audience.scene.storage.rows["t"], Reason.CHANGE, changed=True)


async def test_who_leaves_after_being_called_up_is_told_nothing(audience: Audience) -> None:
    leaving, _staying = audience.park("leaving"), audience.park("staying")
    learn(audience, 2)
    leaving.abandon()
    leaving.abandon()
    leaving.finish(Reason.DRAIN)
    await audience.listen()
    assert list(audience.told) == ["staying"]


async def test_the_first_reason_to_end_a_poll_stands(audience: Audience) -> None:
    poll = audience.park("somebody")
    poll.finish(Reason.DEGRADED)
    poll.finish(Reason.DRAIN)
    await audience.listen()
    poll.finish(Reason.DRAIN)
    await audience.listen()
    assert audience.told["somebody"].reason is Reason.DEGRADED


async def test_one_that_cannot_be_told_keeps_nobody_else_waiting(audience: Audience) -> None:
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
    for name in range(600):
        audience.park(name)
    audience.broken = {0, 300, 599}
    learn(audience, 2)
    await settle()
    assert set(audience.told) == set(range(600))
    assert [str(error["exception"]) for error in errors] == ["0", "300", "599"]


async def test_one_poll_that_cannot_be_judged_keeps_no_other_waiting(audience: Audience) -> None:
    """Nor those that are called up later: a queue that isn't looked at any more would hold everybody for good."""
    failed: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failed.append(context["exception"]))
    for name in range(10):
        audience.park(name)
    bad = audience.park("bad")
    bad.seen = None  # type: ignore[assignment]
    for name in range(10, 20):
        audience.park(name)
    learn(audience, 2)
    await settle()
    assert sorted(audience.told) == list(range(20))
    assert len(failed) == 1
    audience.park("later", version=2)
    learn(audience, 3)
    await settle()
    assert "later" in audience.told
    bad.abandon()
