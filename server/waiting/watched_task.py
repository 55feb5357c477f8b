"""What is known of one task, and those who want to know more."""

from __future__ import annotations

import asyncio
from typing import Generic, Protocol, TypeVar


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
        """Be told. To be quick about it, and to follow or unfollow nothing meanwhile."""


class Watched(Generic[S]):
    """One task that is watched, or was lately."""

    __slots__ = (
        "_event",
        "_follower",
        "_others",
        "invalidations",
        "known",
        "snapshot",
        "status_since",
        "task_id",
        "validated",
        "watchers",
    )

    def __init__(self, task_id: str) -> None:
        """Begin with knowing nothing."""
        self.task_id = task_id
        self.snapshot: S | None = None
        self.status_since = 0  # the lowest version that we know to have the snapshot's status
        self.known = False
        self.invalidations = 1
        self.validated = 0
        self.watchers = 0
        self._event: asyncio.Event | None = None
        # Most tasks have one follower, and a dictionary for each would cost more than all the rest here. Of many, who has
        # waited longest is told first; memory is then walked as it was laid out, which a set's order would not do.
        self._follower: Follower | None = None
        self._others: dict[Follower, None] | None = None

    @property
    def stale(self) -> bool:
        """Whether anything was heard of the task since the read began that told what we know."""
        return self.validated < self.invalidations

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
        if self._follower is not None:
            self._follower.set()
        if self._others is not None:
            for follower in self._others:
                follower.set()

    def follow(self, follower: Follower) -> None:
        """Have somebody told of every change, until `unfollow`."""
        if self._follower is None:
            self._follower = follower
        elif self._others is None:
            self._others = {follower: None}
        else:
            self._others[follower] = None

    def unfollow(self, follower: Follower) -> None:
        """Tell that one no more."""
        if self._follower is follower:
            self._follower = None
        elif self._others is not None:
            self._others.pop(follower, None)
            if not self._others:
                self._others = None
