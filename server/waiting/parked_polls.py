"""Polls that wait without a task: what a coroutine would keep in its frames stands in a few slots.

Whoever has news for such a poll calls it up, which costs next to nothing. It is looked at soon after, and answered with
what is known by then: so many in each turn of the loop, that nobody else must wait until a crowd has its replies. What a
crowd shares is found once: who has seen the same state of a task gets the same answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, TypeAlias, TypeVar

from server.waiting.answers import Answer, Question, Until, evaluate
from server.waiting.board import Board
from server.waiting.places import Places
from server.waiting.waiters import Hold, Reason, Waiters
from server.waiting.watched_task import Snapshot, Watched

S = TypeVar("S", bound=Snapshot)

OnAnswer: TypeAlias = Callable[[Answer[S], float], None]
"""Takes the answer, and for how many seconds the poll was held. Called once."""

ANSWERED_AT_ONCE: Final = 256


class ParkedPoll(Hold, Generic[S]):
    """One of them, until it is `done`: answered, or abandoned."""

    __slots__ = ("_parked", "done", "in_queue", "on_answer", "place", "seen", "started", "until", "watched")

    def __init__(
        self,
        parked: ParkedPolls[S],
        question: Question,
        arrival: int,
        watched: Watched[S],
        seen: S,
        on_answer: OnAnswer[S],
    ) -> None:
        """Make it; `seen` is what the watched task is now."""
        super().__init__(question.user_id, question.client_key, arrival, question.credential)
        self._parked = parked
        self.until = question.until
        self.place = question.place
        self.in_queue = seen.status == "pending"
        self.watched = watched
        self.seen = seen
        self.on_answer = on_answer
        self.started = parked.clock()
        self.done = False

    def set(self) -> None:
        """Be called up: the task has changed."""
        self._parked.wake(self)

    def finish(self, reason: Reason) -> None:
        """Be called up, to be answered with this reason unless the task has changed."""
        if self.reason is None:
            self.reason = reason
            self._parked.wake(self)

    def abandon(self) -> float:
        """Wait no longer, and tell nobody: the client has gone. Returns for how many seconds it was held."""
        if not self.done:
            self.done = True
            self._parked.forget([self])
        return self._parked.clock() - self.started


class ParkedPolls(Generic[S]):
    """All of them, and the queue of those that were called up."""

    def __init__(self, board: Board[S], waiters: Waiters, places: Places, clock: Callable[[], float]) -> None:
        """Begin with none. `clock` gives seconds."""
        self.clock = clock
        self._places = places
        self._board = board
        self._waiters = waiters
        self._woken: deque[ParkedPoll[S]] = deque()

    def park(
        self, question: Question, seconds: float, arrival: int, watched: Watched[S], seen: S, on_answer: OnAnswer[S]
    ) -> ParkedPoll[S]:
        """Return a poll that waits from now on, for that many seconds at most."""
        poll = ParkedPoll(self, question, arrival, watched, seen, on_answer)
        self._board.enter(watched.task_id)
        watched.follow(poll)
        if poll.in_queue:
            self._places.enter(watched, question.place)
        self._waiters.register(poll, seconds)
        return poll

    def forget(self, polls: Sequence[ParkedPoll[S]]) -> None:
        """Have everybody who knows of these polls forget them: they are over."""
        self._waiters.unregister(polls)
        for poll in polls:
            poll.watched.unfollow(poll)
            if poll.in_queue:
                self._places.leave(poll.watched)
            self._board.leave(poll.watched)

    def wake(self, poll: ParkedPoll[S]) -> None:
        """Look at this poll in one of the next turns of the loop. To be called up twice, or for nothing, does no harm."""
        if not self._woken:
            asyncio.get_running_loop().call_soon(self._answer_some)
        self._woken.append(poll)

    def _answer_some(self) -> None:
        ended: list[ParkedPoll[S]] = []
        answers: list[Answer[S]] = []
        try:
            self._find_ended(ended, answers)
        finally:  # an error over one poll must not keep the others waiting
            if self._woken:
                asyncio.get_running_loop().call_soon(self._answer_some)
            self.forget(ended)
            self._tell(zip(ended, answers, strict=True), self.clock())

    def _find_ended(self, ended: list[ParkedPoll[S]], answers: list[Answer[S]]) -> None:
        seen: S | None = None
        reason: Reason | None = None
        until, answer = Until.CHANGE, None
        for _ in range(min(len(self._woken), ANSWERED_AT_ONCE)):
            poll = self._woken.popleft()
            if poll.done:
                continue
            why = poll.reason
            if why is None and self._places.is_news(poll.place, poll.watched.snapshot, poll.started):
                why = Reason.PLACE
            if poll.seen is not seen or why is not reason or poll.until is not until:
                seen, reason, until = poll.seen, why, poll.until
                answer = evaluate(until, seen, poll.watched.snapshot, reason)
                if answer is not None and answer.snapshot is not None:
                    answer.standing = self._places.standing(answer.snapshot)
            if answer is not None:
                poll.done = True
                ended.append(poll)
                answers.append(answer)

    def _tell(self, ended: Iterator[tuple[ParkedPoll[S], Answer[S]]], now: float) -> None:
        try:
            for poll, answer in ended:
                poll.on_answer(answer, now - poll.started)
        except BaseException:  # the others must not wait for the end of their time because of one
            asyncio.get_running_loop().call_soon(self._tell, ended, now)
            raise
