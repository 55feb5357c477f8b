"""The registry of held polls: one `Hold` each, indexed by user and by client.

A hold ends in one of two ways. Its task changes: the task's Event is set, and this module takes no part. Or this one
poll is finished for another reason: its deadline, a drain, a newer poll of the same client, the cap of its user, a
credential that is revoked or has expired.
"""

from __future__ import annotations

import abc
import asyncio
import itertools
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from enum import StrEnum
from types import TracebackType
from typing import ClassVar, Final, Protocol, Self

from server.waiting.timer_wheel import GRAIN_SECONDS, TimerWheel

# How long a revocation is remembered for polls that were authenticated before it and are still reading.
_REMEMBERED_SECONDS: Final = 60.0
_MOST_REMEMBERED: Final = 100_000


class Reason(StrEnum):
    """Why a poll was answered."""

    IMMEDIATE = "immediate"
    CHANGE = "change"
    PLACE = "place"  # only for those who have named the place they have seen
    TIMEOUT = "timeout"
    RESET = "reset"
    DRAIN = "drain"
    DEGRADED = "degraded"
    SUPERSEDED = "superseded"
    REVOKED = "revoked"  # answered with 401, without the state


class Credential(Protocol):
    """The session or token that authenticated a poll. All its polls share one object."""

    @property
    def key(self) -> str:
        """Identifies it; the secret can't be derived from it."""

    @property
    def expires_at(self) -> float:
        """When it expires, in seconds since 1970; infinity if never. It may be extended while polls are held."""


class Hold(abc.ABC):
    """One held poll: its owner, and the reason if it was finished. `slot`: its deadline's slot on the timer wheel."""

    __slots__ = ("arrival", "client", "credential", "reason", "slot", "user")

    urgent: ClassVar[bool] = False
    """Whether a drain finishes it at once, instead of at a random moment that spreads the clients out."""

    def __init__(
        self, user: str, client: tuple[str, str, str] | None, arrival: int, credential: Credential | None
    ) -> None:
        """`client`: user, task and page, if the page has a name. `arrival`: the poll's number in order of arrival."""
        self.arrival = arrival
        self.credential = credential
        self.user = user
        self.client = client
        self.reason: Reason | None = None
        self.slot = 0

    @abc.abstractmethod
    def finish(self, reason: Reason) -> None:
        """Finish the hold with this reason, unless it is finished. It is unregistered later, in an iteration of its own."""

    def expire(self) -> None:
        """Finish the hold: its deadline has come, or its credential has expired."""
        credential = self.credential
        expired = credential is not None and credential.expires_at <= time.time() + GRAIN_SECONDS
        self.finish(Reason.REVOKED if expired else Reason.TIMEOUT)


class TaskHold(Hold):
    """A poll held by the task of its handler: a context manager around the wait.

    Works as `asyncio.timeout` does: `finish` cancels the task, and leaving the block takes the cancellation back. Unlike
    it, it can be finished for any reason, and all deadlines share one timer.
    """

    __slots__ = ("_cancelling", "_seconds", "_task", "_waiters")

    def __init__(
        self,
        waiters: Waiters,
        user: str,
        client: tuple[str, str, str] | None,
        seconds: float,
        arrival: int,
        credential: Credential | None,
    ) -> None:
        """Entering the block begins the hold."""
        super().__init__(user, client, arrival, credential)
        self._seconds = seconds
        self._waiters = waiters
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0

    def finish(self, reason: Reason) -> None:
        """Cancel the task that waits, unless the hold is finished."""
        if self.reason is None and self._task is not None:
            self.reason = reason
            self._task.cancel()

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None, "a hold lives in a task"
        self._cancelling = self._task.cancelling()
        self._waiters.register(self, self._seconds)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        task, self._task = self._task, None
        self._waiters.unregister([self])
        if self.reason is None or task is None:
            return False
        # Our cancellation is taken back; one that came from elsewhere (the client left) is raised on.
        return task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError)


class UrgentHold(TaskHold):
    """One that a drain finishes at once, such as a worker's: it is to go to another process before there is a task for it."""

    __slots__ = ()
    urgent: ClassVar[bool] = True


class Waiters:
    """All holds of this process, and the caps on their number."""

    def __init__(self, *, max_held: int, max_held_per_user: int, chance: Callable[[], float] = random.random) -> None:
        """Make an empty registry. `chance` gives numbers in 0..1."""
        self.max_held = max_held
        self.max_held_per_user = max_held_per_user
        self.draining = False
        self._chance = chance
        self._count = 0
        self._by_user: dict[str, dict[Hold, None]] = {}
        self._by_client: dict[tuple[str, str, str], Hold] = {}
        self._revoked: dict[str, float] = {}
        self._revoked_now: set[str] = set()
        self._deadlines = TimerWheel()
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
        """Return the next arrival number. To be called before the poll reads anything, which may take a while."""
        return next(self._arrivals)

    def reason_not_to_hold(self, client: tuple[str, str, str] | None, arrival: int) -> Reason | None:
        """Return why a poll is answered although its task hasn't changed, or None if it may be held."""
        if self.draining:
            return Reason.DRAIN
        held = self._by_client.get(client) if client is not None else None
        if held is not None and held.arrival > arrival:
            return Reason.SUPERSEDED  # a newer poll of the same client arrived during the read
        return Reason.DEGRADED if self.full else None

    def hold(
        self,
        user: str,
        client: tuple[str, str, str] | None,
        seconds: float,
        arrival: int | None = None,
        credential: Credential | None = None,
    ) -> TaskHold:
        """Return a hold of at most that many seconds for the current task, to be entered; it arrives now if not before."""
        return TaskHold(self, user, client, seconds, self.arrive() if arrival is None else arrival, credential)

    def register(self, hold: Hold, seconds: float) -> None:
        """Register a hold of at most that many seconds, and no longer than its credential is valid.

        An older poll of the same client is superseded; over the user's cap the oldest poll is degraded.
        """
        if hold.client is not None:
            older = self._by_client.get(hold.client)
            if older is not None:
                older.finish(Reason.SUPERSEDED)
            self._by_client[hold.client] = hold
        of_user = self._by_user.setdefault(hold.user, {})
        if len(of_user) >= self.max_held_per_user:
            self._make_room(of_user)
        of_user[hold] = None
        self._count += 1
        if hold.credential is not None:
            seconds = min(seconds, hold.credential.expires_at - time.time())
        self._deadlines.add(hold, seconds)

    def unregister(self, holds: Sequence[Hold]) -> None:
        """Forget holds that are done."""
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

    def is_revoked(self, credential: Credential | None) -> bool:
        """Whether this credential was revoked after its poll was authenticated."""
        return credential is not None and credential.key in self._revoked

    def revoke(self, key: str) -> None:
        """Finish every hold of this credential, and refuse to hold its polls that are still reading.

        There is no index by credential, which would cost memory for each poll: all holds are scanned, 0.1 µs each, once
        for all credentials that are revoked in the same iteration of the loop.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        if not self._revoked_now:
            loop.call_soon(self._finish_revoked)
        self._revoked_now.add(key)
        self._revoked.pop(key, None)
        self._revoked[key] = now
        while self._revoked[oldest := next(iter(self._revoked))] < now - _REMEMBERED_SECONDS or (
            len(self._revoked) > _MOST_REMEMBERED
        ):
            del self._revoked[oldest]

    def finish_those_of(self, keys: Collection[str], reason: Reason) -> None:
        """Finish every hold of these credentials."""
        for hold in self:
            if hold.credential is not None and hold.credential.key in keys:
                hold.finish(reason)

    def credentials(self) -> set[str]:
        """Return the keys of all credentials that hold a poll."""
        return {hold.credential.key for hold in self if hold.credential is not None}

    def _finish_revoked(self) -> None:
        keys, self._revoked_now = self._revoked_now, set()
        self.finish_those_of(keys, Reason.REVOKED)

    def drain(self, seconds: float) -> None:
        """Finish every hold at a random moment within that many seconds, or at once; new ones aren't begun."""
        self.draining = True
        loop = asyncio.get_running_loop()
        for hold in self:
            loop.call_later(0 if hold.urgent else self._chance() * seconds, hold.finish, Reason.DRAIN)

    def _make_room(self, of_user: dict[Hold, None]) -> None:
        going_on = [hold for hold in of_user if hold.reason is None]  # the others are about to be unregistered
        if len(going_on) >= self.max_held_per_user:
            going_on[0].finish(Reason.DEGRADED)
