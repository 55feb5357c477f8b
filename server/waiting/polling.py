"""One poll: compare first, then wait, look again, until there is a reason to answer."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from server.waiting.answers import Answer, Question, evaluate
from server.waiting.board import Board
from server.waiting.parked_polls import OnAnswer, ParkedPoll, ParkedPolls
from server.waiting.places import Places
from server.waiting.waiters import Reason, Waiters
from server.waiting.watched_task import Snapshot, Watched

S = TypeVar("S", bound=Snapshot)


class Polling(Generic[S]):
    """Answers polls from the board, and holds those for which there is nothing new."""

    def __init__(
        self,
        board: Board[S],
        waiters: Waiters,
        places: Places,
        *,
        jitter_seconds: float,
        chance: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Join the board, the waiters and the places. A hold ends up to `jitter_seconds` early, so that clients spread out."""
        self.waiters = waiters
        self.board = board
        self._places = places
        self._parked = ParkedPolls(board, waiters, places, clock)
        self._jitter_seconds = jitter_seconds
        self._chance = chance
        self._clock = clock

    async def answer(self, question: Question) -> tuple[Answer[S], float]:
        """Return as soon as the task differs from what the client has seen, and at the latest when its hold ends.

        The second is for how many seconds it was held: of the waiting only.

        Raises:
            StorageError: the task can't be read, and this process knows nothing of it.
        """
        # All in one frame, without context managers where there is another way: each would be kept for every poll.
        watched = self.board.enter(question.task_id)  # before anything is read
        try:
            arrival = self.waiters.arrive()
            seen = await self._look(question, watched, arrival)
            if isinstance(seen, Answer):
                return seen, 0.0
            started = self._clock()
            if seen.status == "pending":
                self._places.enter(watched, question.place)
            try:
                reason = await self._hold(question, watched, seen, arrival)
            finally:
                if seen.status == "pending":
                    self._places.leave(watched)
            answer = evaluate(question.until, seen, watched.snapshot, reason)
            assert answer is not None, "there is a reason"
            return self._placed(answer), self._clock() - started
        finally:
            self.board.leave(watched)

    async def _hold(self, question: Question, watched: Watched[S], seen: S, arrival: int) -> Reason:
        """Wait, and return why that ended if it wasn't by a change."""
        started, seconds = self._clock(), self._jittered(question.seconds)
        with self.waiters.hold(question.user_id, question.client_key, seconds, arrival, question.credential) as hold:
            while evaluate(question.until, seen, watched.snapshot, None) is None:
                if self._places.is_news(question.place, watched.snapshot, started):
                    return Reason.PLACE
                await watched.event.wait()
        return hold.reason or Reason.TIMEOUT

    async def answer_or_park(self, question: Question, on_answer: OnAnswer[S]) -> Answer[S] | ParkedPoll[S]:
        """Return the answer if there is one now; else a poll that waits without this task.

        Raises:
            StorageError: the task can't be read, and this process knows nothing of it.
        """
        with self.board.watch(question.task_id) as watched:  # before anything is read
            arrival = self.waiters.arrive()
            found = await self._look(question, watched, arrival)
            if isinstance(found, Answer):
                return found
            # Nothing is awaited between the look and the parking: no change can come between the two.
            return self._parked.park(question, self._jittered(question.seconds), arrival, watched, found, on_answer)

    def park_at_once(self, question: Question, version: int, on_answer: OnAnswer[S]) -> ParkedPoll[S] | None:
        """Park this question of somebody who has seen that version; None if that takes a read, or there is an answer now."""
        watched = self.board.peek(question.task_id)
        seen = watched.snapshot if watched is not None else None
        if watched is None or seen is None or seen.user_id != question.user_id:
            return None
        arrival = self.waiters.arrive()
        if self._reason_not_to_wait(question, version, seen, arrival) is not None:
            return None
        return self._parked.park(question, self._jittered(question.seconds), arrival, watched, seen, on_answer)

    async def _look(self, question: Question, watched: Watched[S], arrival: int) -> Answer[S] | S:
        """Return the answer, or the state that the client must wait to see changed."""
        # Of somebody else's task we may know everything already. One that doesn't exist must be read for: so is this one,
        # or the time that it takes would tell the two apart.
        own = _own(question, watched.snapshot)
        snapshot = _own(question, await self.board.current(watched, force=own is None))
        if snapshot is not None and question.version is not None and question.version > snapshot.version:
            # Another server may have told of a version whose notification hasn't reached us yet.
            snapshot = _own(question, await self.board.current(watched, force=True))
        if snapshot is None:
            return Answer(None, Reason.IMMEDIATE)
        reason = self._reason_not_to_wait(question, question.version, snapshot, arrival)
        if reason is not None and reason is not Reason.REVOKED:
            await self._places.refresh(snapshot)
            snapshot = _own(question, watched.snapshot)  # by now there may be a newer one, of which others were told
            if snapshot is None:
                return Answer(None, Reason.IMMEDIATE)
            reason = self._reason_not_to_wait(question, question.version, snapshot, arrival)
        if reason is None:
            return snapshot
        if reason is Reason.REVOKED:
            return Answer(None, reason)
        changed = question.version is not None and snapshot.version != question.version
        return self._placed(Answer(snapshot, reason, changed))

    def _placed(self, answer: Answer[S]) -> Answer[S]:
        """Say where the task stands, as of now."""
        if answer.snapshot is not None:
            answer.standing = self._places.standing(answer.snapshot)
        return answer

    def _reason_not_to_wait(self, question: Question, version: int | None, snapshot: S, arrival: int) -> Reason | None:
        if self.waiters.is_revoked(question.credential):
            return Reason.REVOKED
        if version is not None and version != snapshot.version:
            return Reason.RESET if version > snapshot.version else Reason.IMMEDIATE
        if snapshot.terminal or question.seconds <= 0:
            return Reason.IMMEDIATE
        if question.place not in {None, 1} and self._places.place(snapshot) == 1:
            return Reason.PLACE
        return self.waiters.reason_not_to_hold(question.client_key, arrival)

    def _jittered(self, seconds: float) -> float:
        """Return a bit less than that, at random."""
        return seconds - self._chance() * min(self._jitter_seconds, seconds / 10)


def _own(question: Question, snapshot: S | None) -> S | None:
    return snapshot if snapshot is not None and snapshot.user_id == question.user_id else None
