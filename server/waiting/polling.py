"""One poll: compare first, then wait, look again, until there is a reason to answer."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from server.waiting.board import Board, Snapshot, Watched
from server.waiting.waiters import Reason, Waiters

S = TypeVar("S", bound=Snapshot)


class Until(StrEnum):
    """What a poll waits for."""

    CHANGE = "change"
    STATUS = "status"
    TERMINAL = "terminal"


@dataclass(frozen=True, slots=True)
class Question:
    """What a client asks: the task, the version it has seen (None: whatever holds on arrival), how long it waits."""

    task_id: str
    user_id: str
    version: int | None = None
    seconds: float = 0.0
    until: Until = Until.CHANGE
    client: str | None = None


@dataclass(frozen=True, slots=True)
class Answer(Generic[S]):
    """The state that ends a poll, and why it ended. Snapshot None: there is no such task for this user.

    `deleted`: there was one when the poll began. `held_seconds` counts the waiting only.
    """

    snapshot: S | None
    reason: Reason
    changed: bool = False
    held_seconds: float = 0.0
    deleted: bool = False


class Polling(Generic[S]):
    """Answers polls from the board, and holds those for which there is nothing new."""

    def __init__(
        self,
        board: Board[S],
        waiters: Waiters,
        *,
        jitter_seconds: float,
        chance: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Join the board and the waiters. A hold ends up to `jitter_seconds` early, so that clients spread out."""
        self._board = board
        self._waiters = waiters
        self._jitter_seconds = jitter_seconds
        self._chance = chance
        self._clock = clock

    async def answer(self, question: Question) -> Answer[S]:
        """Return as soon as the task differs from what the client has seen, and at the latest when its hold ends.

        Raises:
            StorageError: the task can't be read, and this process knows nothing of it.
        """
        with self._board.watch(question.task_id) as watched:  # before anything is read
            snapshot = await self._board.current(watched)
            if snapshot is not None and question.version is not None and question.version > snapshot.version:
                # Another server may have told of a version whose notification hasn't reached us yet.
                snapshot = await self._board.current(watched, anew=True)
            if snapshot is None or snapshot.user_id != question.user_id:
                return Answer(None, Reason.IMMEDIATE)
            reason = self._reason_not_to_wait(question, snapshot)
            if reason is not None:
                changed = question.version is not None and snapshot.version != question.version
                return Answer(snapshot, reason, changed)
            return await self._wait(question, watched, snapshot)

    def _reason_not_to_wait(self, question: Question, snapshot: S) -> Reason | None:
        if question.version is not None and question.version > snapshot.version:
            return Reason.RESET
        if snapshot.terminal or question.seconds <= 0 or question.version not in (None, snapshot.version):
            return Reason.IMMEDIATE
        if self._waiters.draining:
            return Reason.DRAIN
        if self._waiters.full:
            return Reason.DEGRADED
        return None

    async def _wait(self, question: Question, watched: Watched[S], seen: S) -> Answer[S]:
        started = self._clock()
        client = (question.user_id, question.task_id, question.client) if question.client else None
        with self._waiters.hold(question.user_id, client, self._jittered(question.seconds)) as hold:
            while not _is_enough(question.until, seen, watched.snapshot):
                await watched.event.wait()
        held = self._clock() - started
        latest = watched.snapshot
        if latest is None or latest.user_id != seen.user_id:
            return Answer(None, Reason.CHANGE, changed=True, held_seconds=held, deleted=True)
        changed = latest.version != seen.version
        if latest.version < seen.version:
            return Answer(latest, Reason.RESET, changed, held)
        enough = _is_enough(question.until, seen, latest)
        return Answer(latest, Reason.CHANGE if enough else hold.reason or Reason.TIMEOUT, changed, held)

    def _jittered(self, seconds: float) -> float:
        return seconds - self._chance() * min(self._jitter_seconds, seconds / 10)


def _is_enough(until: Until, seen: Snapshot, latest: Snapshot | None) -> bool:
    """Whether what is known now is what the client waits for."""
    if latest is None or latest.terminal:
        return True
    if latest.version < seen.version:
        return True  # a restored database: the client must start again
    if until is Until.TERMINAL:
        return False
    if until is Until.STATUS:
        return latest.status != seen.status
    return latest.version != seen.version
