"""What is known of one task, and those who want to know more."""

from __future__ import annotations

import asyncio
from typing import Final, Generic, Protocol, TypeVar

# So many are told in one turn of the loop: who asks for something else meanwhile must not wait for a crowd's answers.
SLICE: Final = 256


class Snapshot(Protocol):
    """What the board must know of a task's state; the rest is its reader's."""

    @property
    def task_id(self) -> str:
        """The name clients use."""

    @property
    def user_id(self) -> str:
        """The owner."""

    @property
    def version(self) -> int:
        """Grows with every visible change."""

    @property
    def status(self) -> str:
        """For those who wait for nothing less than a new status."""

    @property
    def terminal(self) -> bool:
        """Whether this state is final."""


S = TypeVar("S", bound=Snapshot)


class Follower(Protocol):
    """Somebody who is told of every change of a task: an `asyncio.Event`, or what looks like one."""

    def set(self) -> None:
        """Be told."""


class Watched(Generic[S]):
    """One task that is watched, or was lately."""

    __slots__ = (
        "_event",
        "_follower",
        "_others",
        "doubts",
        "known",
        "settled",
        "snapshot",
        "status_since",
        "task_id",
        "watchers",
    )

    def __init__(self, task_id: str) -> None:
        """Begin with knowing nothing."""
        self.task_id = task_id
        self.snapshot: S | None = None
        self.status_since = 0  # the lowest version that we know to have the snapshot's status
        self.known = False
        self.doubts = 1
        self.settled = 0
        self.watchers = 0
        self._event: asyncio.Event | None = None
        # Most tasks have one follower, and a set for each would cost more than all the rest here.
        self._follower: Follower | None = None
        self._others: set[Follower] | None = None

    @property
    def stale(self) -> bool:
        """Whether anything was heard of the task since the read began that told what we know."""
        return self.settled < self.doubts

    @property
    def event(self) -> asyncio.Event:
        """The Event of the next change. Take it before comparing, wait on it after."""
        if self._event is None:
            self._event = asyncio.Event()
        return self._event

    def release(self) -> None:
        """Wake everybody who waits for a change: the Event is taken out and set, never cleared."""
        event, self._event = self._event, None
        if event is not None:
            event.set()
        first = self._follower
        if self._others is not None:
            _tell([*self._others] if first is None else [first, *self._others])
        elif first is not None:
            first.set()

    def follow(self, follower: Follower) -> None:
        """Have somebody told of every change, until `unfollow`; a crowd is told in slices, so not all at once."""
        if self._follower is None:
            self._follower = follower
        elif self._others is None:
            self._others = {follower}
        else:
            self._others.add(follower)

    def unfollow(self, follower: Follower) -> None:
        """Tell that one no more."""
        if self._follower is follower:
            self._follower = None
        elif self._others is not None:
            self._others.discard(follower)
            if not self._others:
                self._others = None


def _tell(followers: list[Follower]) -> None:
    for follower in followers[:SLICE]:
        follower.set()
    if len(followers) > SLICE:
        asyncio.get_running_loop().call_soon(_tell, followers[SLICE:])
