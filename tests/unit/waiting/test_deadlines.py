"""The wheel: never late, hardly early, and one timer however many wait."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from server.waiting.timer_wheel import GRAIN_SECONDS, TimerWheel


class Waiter:
    """Notes when it was told that its time is over."""

    def __init__(self, then: Any = None) -> None:
        self.expired_at: list[float] = []
        self.slot = 0
        self.then = then

    def expire(self) -> None:
        self.expired_at.append(asyncio.get_running_loop().time())
        if self.then is not None:
            self.then()


def now() -> float:
    return asyncio.get_running_loop().time()


def timers() -> int:
    loop: Any = asyncio.get_running_loop()
    return sum(not timer.cancelled() for timer in loop._scheduled)


async def test_a_deadline_is_never_late_and_at_most_one_grain_early() -> None:
    chance, deadlines = random.Random(1), TimerWheel()
    due: dict[Waiter, float] = {}
    for _ in range(2000):
        waiter = Waiter()
        seconds = chance.uniform(0, 30)
        due[waiter] = now() + seconds
        deadlines.add(waiter, seconds)
        await asyncio.sleep(chance.random() / 100)
    await asyncio.sleep(31)
    for waiter, deadline in due.items():
        assert len(waiter.expired_at) == 1
        assert deadline - GRAIN_SECONDS - 1e-6 <= waiter.expired_at[0] <= deadline + 1e-6
    assert len(deadlines) == 0


async def test_there_is_one_timer_however_many_wait() -> None:
    deadlines = TimerWheel()
    for number in range(1000):
        deadlines.add(Waiter(), 30 - number * 0.02)  # each earlier than the one before
    assert timers() == 1
    await asyncio.sleep(20)
    assert timers() == 1
    await asyncio.sleep(11)
    assert timers() == 0
    assert not deadlines._slots


async def test_all_waiters_of_one_slot_expire_in_one_turn() -> None:
    deadlines, waiters = TimerWheel(), [Waiter() for _ in range(500)]
    for waiter in waiters:
        deadlines.add(waiter, 5.05)
    assert len({waiter.slot for waiter in waiters}) == 1
    await asyncio.sleep(6)
    assert len({waiter.expired_at[0] for waiter in waiters}) == 1


async def test_who_is_removed_is_not_told() -> None:
    deadlines, leaving, staying = TimerWheel(), Waiter(), Waiter()
    deadlines.add(leaving, 5)
    deadlines.add(staying, 5)
    deadlines.remove([leaving])
    assert len(deadlines) == 1
    await asyncio.sleep(6)
    assert leaving.expired_at == []
    assert len(staying.expired_at) == 1


async def test_removing_after_the_deadline_or_twice_changes_nothing() -> None:
    deadlines, waiter = TimerWheel(), Waiter()
    deadlines.add(waiter, 1)
    await asyncio.sleep(2)
    deadlines.remove([waiter, waiter])
    deadlines.remove([waiter])
    assert len(deadlines) == 0


async def test_the_slots_of_those_who_left_are_forgotten() -> None:
    deadlines = TimerWheel()
    for number in range(300):
        waiter = Waiter()
        deadlines.add(waiter, 1 + number)
        deadlines.remove([waiter])
    assert not deadlines._slots
    await asyncio.sleep(2)
    assert timers() == 0


async def test_an_earlier_deadline_moves_the_timer_forward() -> None:
    deadlines, late, early = TimerWheel(), Waiter(), Waiter()
    begun = now()
    deadlines.add(late, 20)
    deadlines.add(early, 3)
    await asyncio.sleep(21)
    assert 2.9 - 1e-6 <= early.expired_at[0] - begun <= 3
    assert 19.9 - 1e-6 <= late.expired_at[0] - begun <= 20


async def test_a_waiter_that_is_added_while_another_expires_has_its_own_time() -> None:
    deadlines, second = TimerWheel(), Waiter()
    begun = now()
    deadlines.add(Waiter(then=lambda: deadlines.add(second, 2)), 1)
    await asyncio.sleep(5)
    assert 2.8 - 1e-6 <= second.expired_at[0] - begun <= 3
    assert timers() == 0


async def test_a_time_that_is_over_already_ends_in_the_next_turn() -> None:
    deadlines, waiter = TimerWheel(), Waiter()
    deadlines.add(waiter, 0)
    begun = now()
    await asyncio.sleep(GRAIN_SECONDS)
    assert len(waiter.expired_at) == 1
    assert waiter.expired_at[0] <= begun


async def test_a_timer_that_rings_a_little_early_does_not_ring_twice() -> None:
    """A loop calls its timers as early as its clock is coarse: 1 ns here, 16 ms on Windows."""
    deadlines, waiter = TimerWheel(), Waiter()
    loop: Any = asyncio.get_running_loop()
    loop._clock_resolution = 0.016
    deadlines.add(waiter, 5)
    await asyncio.sleep(waiter.slot * GRAIN_SECONDS - 0.008 - now())
    assert len(waiter.expired_at) == 1
    assert timers() == 0


async def test_one_waiter_that_fails_keeps_no_other_from_its_end() -> None:
    """Those of the same slot, and those of later ones."""
    deadlines, told = TimerWheel(), []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context["exception"]))

    def fail() -> None:
        raise RuntimeError("a bug")

    waiters = [Waiter(then=fail if number == 5 else None) for number in range(10)]
    for waiter in waiters:
        deadlines.add(waiter, 1)
    late = Waiter()
    deadlines.add(late, 3)
    await asyncio.sleep(4)
    assert [len(waiter.expired_at) for waiter in [*waiters, late]] == [1] * 11
    assert len(told) == 1
