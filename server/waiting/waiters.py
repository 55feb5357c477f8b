"""Everybody who waits: one hold for each poll, found again by user and by client.

A hold ends in one of two ways. Its task changes: then the task's Event is set, and nothing here takes part. Or
somebody has another reason to end this one poll: its time is over, the process stops, the same client polls again,
the user holds too many, the credential that it came with is revoked or expires.
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
from typing import Final, Protocol, Self

from server.waiting.timer_wheel import GRAIN_SECONDS, TimerWheel

# A poll that was let in before a revocation may still be reading what it waits for; no read takes as long as this.
_REMEMBERED_SECONDS: Final = 60.0
_MOST_REMEMBERED: Final = 100_000


class Reason(StrEnum):
    """Why a poll was answered."""

    IMMEDIATE = "immediate"
    CHANGE = "change"
    TIMEOUT = "timeout"
    RESET = "reset"
    DRAIN = "drain"
    DEGRADED = "degraded"
    SUPERSEDED = "superseded"
    REVOKED = "revoked"  # answered without the state: whoever asked isn't signed in any more


class Credential(Protocol):
    """What a poll came with: a session or a token. All polls that came with the same one share one object."""

    @property
    def key(self) -> str:
        """Names it without being the secret."""

    @property
    def expires_at(self) -> float:
        """When it ends by itself, in seconds since 1970; infinity if it doesn't. It may be put off meanwhile."""


class Hold(abc.ABC):
    """One poll that waits: whose it is, and why it ended, if somebody has ended it. `slot`: where its deadline stands."""

    __slots__ = ("arrival", "client", "credential", "reason", "slot", "user")

    def __init__(
        self, user: str, client: tuple[str, str, str] | None, arrival: int, credential: Credential | None
    ) -> None:
        """`client`: user, task and page that polls, if the page has a name. `arrival`: its number among all polls."""
        self.arrival = arrival
        self.credential = credential
        self.user = user
        self.client = client
        self.reason: Reason | None = None
        self.slot = 0

    @abc.abstractmethod
    def finish(self, reason: Reason) -> None:
        """End the hold, unless it has ended. It leaves in its own turn of the loop, not here."""

    def expire(self) -> None:
        """End the hold because its time is over, or that of its credential."""
        credential = self.credential
        expired = credential is not None and credential.expires_at <= time.time() + GRAIN_SECONDS
        self.finish(Reason.REVOKED if expired else Reason.TIMEOUT)


class TaskHold(Hold):
    """A poll that waits in the task that runs its handler. A context manager around the waiting.

    Works as `asyncio.timeout` does: `end` cancels the task, and leaving the block takes the cancellation back. What
    differs is that it can be ended for any reason, by anybody, and that all deadlines share one timer.
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
        """Take note; entering the block begins the hold."""
        super().__init__(user, client, arrival, credential)
        self._seconds = seconds
        self._waiters = waiters
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0

    def finish(self, reason: Reason) -> None:
        """Cancel the task that waits, unless the hold has ended."""
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
        """Register a hold of at most that many seconds; an older one of the same client, or the user's oldest, may have to end.

        It ends with its credential at the latest.
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

    def is_revoked(self, credential: Credential | None) -> bool:
        """Whether this credential was revoked since the poll that came with it was let in."""
        return credential is not None and credential.key in self._revoked

    def revoke(self, key: str) -> None:
        """End every hold that came with this credential, and hold none that is still reading.

        Nothing is kept per poll for this. All holds are looked through instead: 0.1 µs each, and once for all the
        credentials that are revoked in the same turn of the loop.
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
        """End every hold that came with one of these credentials."""
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
        """End every hold at a random moment within that many seconds; new polls are to be answered at once."""
        self.draining = True
        loop = asyncio.get_running_loop()
        for hold in self:
            loop.call_later(self._chance() * seconds, hold.finish, Reason.DRAIN)

    def _make_room(self, of_user: dict[Hold, None]) -> None:
        going_on = [hold for hold in of_user if hold.reason is None]  # the others are about to leave
        if len(going_on) >= self.max_held_per_user:
            going_on[0].finish(Reason.DEGRADED)
