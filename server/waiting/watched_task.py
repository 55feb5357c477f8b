"""One watched task: its latest snapshot, and the observers of its changes."""

from __future__ import annotations

import asyncio
from typing import Generic, Protocol, TypeVar


class Snapshot(Protocol):
    """What the board needs of a task's state."""

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
        """Compared for polls with `until=status`."""

    @property
    def terminal(self) -> bool:
        """Whether this state is final."""

    @property
    def turn(self) -> int:
        """While it waits: the lower, the sooner it is claimed."""

    @property
    def seconds_left(self) -> float | None:
        """Of one in work: what its progress promised at `updated_at`, or None."""

    @property
    def updated_at(self) -> float:
        """When this state was made, in seconds since 1970."""


S = TypeVar("S", bound=Snapshot)


class Follower(Protocol):
    """An observer of a task's changes: an `asyncio.Event`, or what has its `set`."""

    def set(self) -> None:
        """Called on every change. Must not block, follow or unfollow: the observers are being iterated."""


class Watched(Generic[S]):
    """One task that is watched, or was watched within the linger time."""

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
        """Begin without a snapshot, and stale."""
        self.task_id = task_id
        self.snapshot: S | None = None
        self.status_since = 0  # the lowest version that we know to have the snapshot's status
        self.known = False
        self.invalidations = 1
        self.validated = 0
        self.watchers = 0
        self._event: asyncio.Event | None = None
        # Most tasks have one follower, and a dictionary would cost more than all other slots. A dictionary, not a set: in order
        # of arrival memory is walked as it was laid out.
        self._follower: Follower | None = None
        self._others: dict[Follower, None] | None = None

    @property
    def stale(self) -> bool:
        """Whether the task was invalidated after the read began that made the snapshot."""
        return self.validated < self.invalidations

    @property
    def event(self) -> asyncio.Event:
        """The Event of the next change. Get it before comparing, wait on it after."""
        if self._event is None:
            self._event = asyncio.Event()
        return self._event

    def release(self) -> None:
        """Wake all observers: the Event is replaced and set, never cleared."""
        event, self._event = self._event, None
        if event is not None:
            event.set()
        if self._follower is not None:
            self._follower.set()
        if self._others is not None:
            for follower in self._others:
                follower.set()

    def follow(self, follower: Follower) -> None:
        """Add an observer."""
        if self._follower is None:
            self._follower = follower
        elif self._others is None:
            self._others = {follower: None}
        else:
            self._others[follower] = None

    def unfollow(self, follower: Follower) -> None:
        """Remove an observer."""
        if self._follower is follower:
            self._follower = None
        elif self._others is not None:
            self._others.pop(follower, None)
            if not self._others:
                self._others = None
