"""One poll: compare first, then wait, look again, until there is a reason to answer."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from server.waiting.board import Board
from server.waiting.waiters import Hold, Reason, Waiters
from server.waiting.watched import Snapshot, Watched

S = TypeVar("S", bound=Snapshot)


class Until(StrEnum):
    """What a poll waits for."""

    CHANGE = "change"
    STATUS = "status"
    TERMINAL = "terminal"


@dataclass(slots=True)  # not frozen: that would triple what making one costs, and each poll makes one
class Question:
    """What a client asks: the task, the version it has seen (None: whatever holds on arrival), how long it waits."""

    task_id: str
    user_id: str
    version: int | None = None
    seconds: float = 0.0
    until: Until = Until.CHANGE
    client: str | None = None

    def about(self, version: int) -> Question:
        """Return the same question by somebody who has seen this version."""
        return Question(self.task_id, self.user_id, version, self.seconds, self.until, self.client)


@dataclass(slots=True)
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
        self.board = board
        self.waiters = waiters
        self._jitter_seconds = jitter_seconds
        self._chance = chance
        self.clock = clock

    async def answer(self, question: Question) -> Answer[S]:
        """Return as soon as the task differs from what the client has seen, and at the latest when its hold ends.

        Raises:
            StorageError: the task can't be read, and this process knows nothing of it.
        """
        # All in one frame, without context managers where there is another way: each would be kept for every poll.
        watched = self.board.enter(question.task_id)  # before anything is read
        try:
            arrival = self.waiters.arrive()
            seen = await self._look(question, watched, arrival)
            if isinstance(seen, Answer):
                return seen
            started, seconds = self.clock(), self.jittered(question.seconds)
            with self.waiters.hold(question.user_id, _client(question), seconds, arrival) as hold:
                while not _is_enough(question.until, seen, watched.snapshot):
                    await watched.event.wait()
            latest = watched.snapshot
            reason = Reason.CHANGE if _is_enough(question.until, seen, latest) else hold.reason or Reason.TIMEOUT
            return _conclude(seen, latest, reason, self.clock() - started)
        finally:
            self.board.leave(watched)

    async def answer_or_park(self, question: Question, tell: Callable[[Answer[S]], None]) -> Answer[S] | ParkedPoll[S]:
        """Return the answer if there is one now; else a poll that waits without this task, and calls `tell` once.

        Raises:
            StorageError: the task can't be read, and this process knows nothing of it.
        """
        with self.board.watch(question.task_id) as watched:  # before anything is read
            arrival = self.waiters.arrive()
            found = await self._look(question, watched, arrival)
            if isinstance(found, Answer):
                return found
            # Nothing is awaited between the look and the parking: no change can come between the two.
            return ParkedPoll(self, question, watched, found, arrival, tell)

    def park_at_once(self, question: Question, tell: Callable[[Answer[S]], None]) -> ParkedPoll[S] | None:
        """Park a poll for which there is surely nothing new; None if that takes a read, or there is an answer now."""
        watched = self.board.recall(question.task_id)
        seen = watched.snapshot if watched is not None else None
        if watched is None or seen is None or seen.user_id != question.user_id:
            return None
        arrival = self.waiters.arrive()
        if self._reason_not_to_wait(question, seen, arrival) is not None:
            return None
        return ParkedPoll(self, question, watched, seen, arrival, tell)

    async def _look(self, question: Question, watched: Watched[S], arrival: int) -> Answer[S] | S:
        """Return the answer, or the state that the client must wait to see changed."""
        snapshot = await self.board.current(watched)
        if snapshot is not None and question.version is not None and question.version > snapshot.version:
            # Another server may have told of a version whose notification hasn't reached us yet.
            snapshot = await self.board.current(watched, anew=True)
        if snapshot is None or snapshot.user_id != question.user_id:
            return Answer(None, Reason.IMMEDIATE)
        reason = self._reason_not_to_wait(question, snapshot, arrival)
        if reason is None:
            return snapshot
        return Answer(snapshot, reason, question.version is not None and snapshot.version != question.version)

    def _reason_not_to_wait(self, question: Question, snapshot: S, arrival: int) -> Reason | None:
        if question.version is not None and question.version > snapshot.version:
            return Reason.RESET
        if snapshot.terminal or question.seconds <= 0 or question.version not in (None, snapshot.version):
            return Reason.IMMEDIATE
        return self.waiters.reason_not_to_hold(_client(question), arrival)

    def jittered(self, seconds: float) -> float:
        """Return a bit less than that, at random."""
        return seconds - self._chance() * min(self._jitter_seconds, seconds / 10)


class ParkedPoll(Hold, Generic[S]):
    """A poll that waits without a task: whoever has news for it calls it, and it calls `tell` with its answer, once.

    What a coroutine keeps in its frame stands in these few slots, and a wake costs a function call.
    """

    __slots__ = ("_polling", "_seen", "_started", "_tell", "_until", "_watched")

    def __init__(
        self,
        polling: Polling[S],
        question: Question,
        watched: Watched[S],
        seen: S,
        arrival: int,
        tell: Callable[[Answer[S]], None],
    ) -> None:
        """Begin to wait; `seen` is what the watched task is now."""
        super().__init__(question.user_id, _client(question), polling.jittered(question.seconds), arrival)
        self._polling = polling
        self._until = question.until
        self._seen = seen
        self._tell: Callable[[Answer[S]], None] | None = tell
        self._started = polling.clock()
        self._watched = polling.board.enter(watched.task_id)
        watched.follow(self)
        polling.waiters.join(self)

    def set(self) -> None:
        """Look at the task, which has changed."""
        latest = self._watched.snapshot
        if self._tell is not None and _is_enough(self._until, self._seen, latest):
            self._finish(latest, Reason.CHANGE)

    def end(self, reason: Reason) -> None:
        """Answer now, with this reason unless the task has changed."""
        if self._tell is not None:
            self.reason, latest = reason, self._watched.snapshot
            self._finish(latest, Reason.CHANGE if _is_enough(self._until, self._seen, latest) else reason)

    def abandon(self) -> float:
        """Wait no longer, and tell nobody: the client has gone. Returns for how many seconds it was held."""
        if self._tell is not None:
            self._leave()
        return self._polling.clock() - self._started

    def _finish(self, latest: S | None, reason: Reason) -> None:
        tell = self._tell
        assert tell is not None, "told once"
        self._leave()
        tell(_conclude(self._seen, latest, reason, self._polling.clock() - self._started))

    def _leave(self) -> None:
        self._tell = None
        self._polling.waiters.leave(self)
        self._watched.unfollow(self)
        self._polling.board.leave(self._watched)


def _client(question: Question) -> tuple[str, str, str] | None:
    return (question.user_id, question.task_id, question.client) if question.client else None


def _conclude(seen: S, latest: S | None, reason: Reason, held: float) -> Answer[S]:
    """Return the answer to a poll that has waited: what was seen then, what is known now, and why it ended."""
    if latest is None or latest.user_id != seen.user_id:
        return Answer(None, Reason.CHANGE, changed=True, held_seconds=held, deleted=True)
    changed = latest.version != seen.version
    if latest.version < seen.version:
        return Answer(latest, Reason.RESET, changed, held)
    return Answer(latest, reason, changed, held)


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
