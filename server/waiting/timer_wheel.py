"""Deadlines of many waiters with a single timer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

GRAIN_SECONDS = 0.1


class Expiring(Protocol):
    """An entry of the wheel. `slot` belongs to the wheel: the tenth of a second in which it expires."""

    slot: int

    def expire(self) -> None:
        """Called once, in the event loop, when the time is over."""


class TimerWheel:
    """A timer wheel: waiters that expire within the same tenth of a second share a slot.

    A timer of the event loop for each waiter would cost memory, and a heap entry that outlives the wait; here adding and
    removing are one set operation each. A waiter expires up to one grain early, never late.
    """

    def __init__(self) -> None:
        """Make an empty wheel; its one timer runs only while there are waiters."""
        self._slots: dict[int, set[Expiring]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_slot = 0

    def __len__(self) -> int:
        return sum(len(slot) for slot in self._slots.values())

    def add(self, waiter: Expiring, seconds: float) -> None:
        """Expire the waiter in that many seconds at the latest."""
        loop = asyncio.get_running_loop()
        waiter.slot = slot = int((loop.time() + seconds) / GRAIN_SECONDS)
        members = self._slots.get(slot)
        if members is None:
            members = self._slots[slot] = set()
        members.add(waiter)
        if self._timer is None or slot < self._timer_slot:
            self._wind(loop, slot)

    def remove(self, waiters: Iterable[Expiring]) -> None:
        """Remove these; one that has expired is not there any more, which is no error."""
        slots = self._slots
        for waiter in waiters:
            members = slots.get(waiter.slot)
            if members is not None:
                members.discard(waiter)
                if not members:
                    del slots[waiter.slot]

    def _wind(self, loop: asyncio.AbstractEventLoop, slot: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_slot = slot
        self._timer = loop.call_at(slot * GRAIN_SECONDS, self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        # A loop calls its timers up to its clock's resolution early: our own slot is due all the same.
        due = max(self._timer_slot, int(loop.time() / GRAIN_SECONDS))
        try:
            for slot in [slot for slot in self._slots if slot <= due]:
                self._expire(slot)
        finally:  # after an error of one waiter the others are still in their slots, and due
            if self._slots:
                self._wind(loop, min(self._slots))

    def _expire(self, slot: int) -> None:
        waiters = self._slots.pop(slot)
        try:
            while waiters:
                waiters.pop().expire()
        finally:
            if waiters:
                self._slots[slot] = waiters
