"""Everybody who waits: one hold for each poll, found again by user and by client.

A hold ends in one of two ways. Its task changes: then the task's Event is set, and nothing here takes part. Or
somebody has another reason to end this one poll: its time is over, the process stops, the same client polls again,
the user holds too many.
"""

from __future__ import annotations

import abc
import asyncio
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from types import TracebackType
from typing import Self

from server.waiting.deadlines import Deadlines


class Reason(StrEnum):
    """Why a poll was answered."""

    IMMEDIATE = "immediate"
    CHANGE = "change"
    TIMEOUT = "timeout"
    RESET = "reset"
    DRAIN = "drain"
    DEGRADED = "degraded"
    SUPERSEDED = "superseded"


class Hold(abc.ABC):
    """One poll that waits: whose it is, and why it ended, if somebody has ended it. `slot`: where its deadline stands."""

    __slots__ = ("arrival", "client", "reason", "slot", "user")

    def __init__(self, user: str, client: tuple[str, str, str] | None, arrival: int) -> None:
        """`client`: user, task and page that polls, if the page has a name. `arrival`: its number among all polls."""
        self.arrival = arrival
        self.user = user
        self.client = client
        self.reason: Reason | None = None
        self.slot = 0

    @abc.abstractmethod
    def end(self, reason: Reason) -> None:
        """End the hold, unless it has ended. It leaves in its own turn of the loop, not here."""

    def expire(self) -> None:
        """End the hold because its time is over."""
        self.end(Reason.TIMEOUT)


class TaskHold(Hold):
    """A poll that waits in the task that runs its handler. A context manager around the waiting.

    Works as `asyncio.timeout` does: `end` cancels the task, and leaving the block takes the cancellation back. What
    differs is that it can be ended for any reason, by anybody, and that all deadlines share one timer.
    """

    __slots__ = ("_cancelling", "_seconds", "_task", "_waiters")

    def __init__(
        self, waiters: Waiters, user: str, client: tuple[str, str, str] | None, seconds: float, arrival: int
    ) -> None:
        """Take note; entering the block begins the hold."""
        super().__init__(user, client, arrival)
        self._seconds = seconds
        self._waiters = waiters
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0

    def end(self, reason: Reason) -> None:
        """Cancel the task that waits, unless the hold has ended."""
        if self.reason is None and self._task is not None:
            self.reason = reason
            self._task.cancel()

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None, "a hold lives in a task"
        self._cancelling = self._task.cancelling()
        self._waiters.join(self, self._seconds)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        task, self._task = self._task, None
        self._waiters.leave([self])
        if self.reason is None or task is None:
            return False
        # Ours is taken back; if somebody else has canceled the task too (the client left), that goes on.
        return task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError)


class Waiters:
    """All holds of this process, and the rules on how many there may be."""

    def __init__(self, *, max_held: int, max_held_per_user: int, chance: Callable[[], float] = random.random) -> None:
        """Make an empty registry. `chance` gives numbers in 0..1."""
        self.max_held = max_held
        self.max_held_per_user = max_held_per_user
        self.draining = False
        self._chance = chance
        self._count = 0
        self._by_user: dict[str, dict[Hold, None]] = {}
        self._by_client: dict[tuple[str, str, str], Hold] = {}
        self._deadlines = Deadlines()
        self._arrivals = itertools.count(1)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Hold]:
        return itertools.chain.from_iterable(self._by_user.values())

    @property
    def users(self) -> int:
        """How many users hold at least one poll."""
        return len(self._by_user)

    @property
    def full(self) -> bool:
        """Whether this process holds as many polls as it may."""
        return self._count >= self.max_held

    def arrive(self) -> int:
        """Return the number of a poll that has just arrived: before it reads anything, which may take a while."""
        return next(self._arrivals)

    def reason_not_to_hold(self, client: tuple[str, str, str] | None, arrival: int) -> Reason | None:
        """Return why a poll with no news is answered all the same, or None if it may be held."""
        if self.draining:
            return Reason.DRAIN
        held = self._by_client.get(client) if client is not None else None
        if held is not None and held.arrival > arrival:
            return Reason.SUPERSEDED  # the same client has come again while this one was being read for
        return Reason.DEGRADED if self.full else None

    def hold(
        self, user: str, client: tuple[str, str, str] | None, seconds: float, arrival: int | None = None
    ) -> TaskHold:
        """Return a hold of at most that many seconds for the current task, to be entered; it arrives now if not before."""
        return TaskHold(self, user, client, seconds, self.arrive() if arrival is None else arrival)

    def join(self, hold: Hold, seconds: float) -> None:
        """Register a hold of at most that many seconds; an older one of the same client, or the user's oldest, may have to end."""
        if hold.client is not None:
            older = self._by_client.get(hold.client)
            if older is not None:
                older.end(Reason.SUPERSEDED)
            self._by_client[hold.client] = hold
        of_user = self._by_user.setdefault(hold.user, {})
        if len(of_user) >= self.max_held_per_user:
            self._make_room(of_user)
        of_user[hold] = None
        self._count += 1
        self._deadlines.add(hold, seconds)

    def leave(self, holds: Sequence[Hold]) -> None:
        """Forget holds that are over."""
        self._deadlines.remove(holds)
        by_user, by_client = self._by_user, self._by_client
        for hold in holds:
            of_user = by_user[hold.user]
            del of_user[hold]
            if not of_user:
                del by_user[hold.user]
            if hold.client is not None and by_client.get(hold.client) is hold:
                del by_client[hold.client]
        self._count -= len(holds)

    def drain(self, seconds: float) -> None:
        """End every hold at a random moment within that many seconds; new polls are to be answered at once."""
        self.draining = True
        loop = asyncio.get_running_loop()
        for hold in self:
            loop.call_later(self._chance() * seconds, hold.end, Reason.DRAIN)

    def _make_room(self, of_user: dict[Hold, None]) -> None:
        going_on = [hold for hold in of_user if hold.reason is None]  # the others are about to leave
        if len(going_on) >= self.max_held_per_user:
            going_on[0].end(Reason.DEGRADED)
