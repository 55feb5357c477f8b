"""One poll for many tasks: a page holds one connection however many tasks it shows."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from server.waiting.board import Board
from server.waiting.places import Places
from server.waiting.waiters import Credential, Reason, Waiters
from server.waiting.watched_task import Snapshot, Watched

S = TypeVar("S", bound=Snapshot)

# Changes that come close together go into one answer; for so long it is held back after the first.
GATHER_SECONDS: Final = (0.020, 0.050)


@dataclass(frozen=True, slots=True)
class BatchQuestion:
    """What a client asks: the version it has seen of each task, and how long it waits for any of them to differ.

    `gather`: mere progress is told no sooner than so many seconds after the poll began. `impossible`: ids that no task
    can have; they are told as not found, and never read. `credential`: as in `Question`. `places`: for tasks of whose moves
    in the queue the client wants to be told, the place that it was told last.
    """

    versions: Mapping[str, int]
    user_id: str
    seconds: float = 0.0
    client: str | None = None
    gather: float = 0.0
    impossible: Sequence[str] = ()
    credential: Credential | None = None
    places: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchAnswer(Generic[S]):
    """Those that differ from what the client has seen, the ids of those that don't, and of those it doesn't have.

    `moved`: those of which only the place differs from the one that the client has named. `prompt`: those of the changed that nothing was gathered before; the others may have waited on purpose.
    """

    changed: Sequence[S]
    unchanged: Sequence[str]
    not_found: Sequence[str]
    reason: Reason
    prompt: Sequence[S] = ()
    held_seconds: float = 0.0
    finished: bool = False
    moved: Sequence[S] = ()


class BatchPolling(Generic[S]):
    """Answers polls for many tasks. One waiter stands under all of them, and is gone from all of them afterwards."""

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
        """Join the board, the waiters and the places, as `Polling` does."""
        self._board = board
        self._waiters = waiters
        self._places = places
        self._jitter_seconds = jitter_seconds
        self._chance = chance
        self._clock = clock

    async def answer(self, question: BatchQuestion) -> BatchAnswer[S]:
        """Return as soon as any task differs from what the client has seen, and at the latest when the hold ends.

        Raises:
            StorageError: a task can't be read, and this process knows nothing of it.
        """
        arrival = self._waiters.arrive()
        with contextlib.ExitStack() as stack:
            tasks = [stack.enter_context(self._board.watch(task_id)) for task_id in question.versions]
            await self._refresh(question, tasks)
            ahead = [each for each in tasks if _is_ahead(question, each)]
            if ahead:
                # Another server may have told of versions whose notifications haven't reached us yet.
                await self._board.refresh(ahead, force=True)
            reason = self._reason_not_to_wait(question, tasks, arrival)
            if reason is not None:
                await self._places.refresh(*(own for each in tasks if (own := _own(question, each)) is not None))
                reason = self._reason_not_to_wait(question, tasks, arrival)  # by now more may be known
            if reason is None:
                return await self._wait(question, tasks, arrival)
            return self._answer(question, () if reason is Reason.REVOKED else tasks, reason)

    def _answer(
        self, question: BatchQuestion, tasks: Sequence[Watched[S]], reason: Reason, held_seconds: float = 0.0
    ) -> BatchAnswer[S]:
        moved = {each.task_id for each in tasks if self._is_elsewhere(question, each)}
        return _answer(question, tasks, reason, held_seconds, moved)

    def _is_elsewhere(self, question: BatchQuestion, watched: Watched[S]) -> bool:
        """Whether a task has another place than the one that the client has named."""
        own, seen = _own(question, watched), question.places.get(watched.task_id)
        return seen is not None and own is not None and self._places.place(own) not in {None, seen}

    async def _refresh(self, question: BatchQuestion, tasks: Sequence[Watched[S]]) -> None:
        # As in `Polling`: what isn't known to be the client's own is read, whether somebody else has it or nobody.
        foreign = [each for each in tasks if _own(question, each) is None]
        own = [each for each in tasks if _own(question, each) is not None]
        if foreign and own:  # together, so that they share one read
            await asyncio.gather(self._board.refresh(foreign, force=True), self._board.refresh(own))
        else:
            await self._board.refresh(tasks, force=bool(foreign))

    def _reason_not_to_wait(self, question: BatchQuestion, tasks: Sequence[Watched[S]], arrival: int) -> Reason | None:
        if self._waiters.is_revoked(question.credential):
            return Reason.REVOKED
        if any(_is_ahead(question, each) for each in tasks):
            return Reason.RESET
        if _is_urgent(question, tasks) or question.seconds <= 0:
            return Reason.IMMEDIATE
        ended = all(each.snapshot is not None and each.snapshot.terminal for each in tasks)
        if ended or (_is_news(question, tasks) and not question.gather):
            return Reason.IMMEDIATE
        if any(self._is_elsewhere(question, each) and self._is_next(each) for each in tasks):
            return Reason.PLACE
        return self._waiters.reason_not_to_hold(_client(question), arrival)

    def _is_next(self, watched: Watched[S]) -> bool:
        return watched.snapshot is not None and self._places.place(watched.snapshot) == 1

    async def _wait(self, question: BatchQuestion, tasks: Sequence[Watched[S]], arrival: int) -> BatchAnswer[S]:
        started = self._clock()
        seconds = question.seconds - self._chance() * min(self._jitter_seconds, question.seconds / 10)
        moved = False
        with (
            self._placing(question, tasks),
            self._waiters.hold(question.user_id, _client(question), seconds, arrival, question.credential) as hold,
        ):
            while not _is_news(question, tasks) and not (moved := self._has_moved(question, tasks, started)):
                with _following(tasks) as event:
                    await event.wait()
            if not moved:
                await self._gather(question, tasks, started + question.gather)
        held = self._clock() - started
        if hold.reason is Reason.REVOKED:
            return _answer(question, (), Reason.REVOKED, held)
        reason = hold.reason or (Reason.PLACE if moved else Reason.TIMEOUT)
        if any(_is_ahead(question, each) for each in tasks):
            reason = Reason.RESET
        elif _is_news(question, tasks):
            reason = Reason.CHANGE
        return self._answer(question, tasks, reason, held)

    def _has_moved(self, question: BatchQuestion, tasks: Sequence[Watched[S]], since: float) -> bool:
        """Whether a task has another place than the one that the client has named, and it is time to tell."""
        return any(self._places.is_news(question.places.get(each.task_id), each.snapshot, since) for each in tasks)

    @contextlib.contextmanager
    def _placing(self, question: BatchQuestion, tasks: Sequence[Watched[S]]) -> Iterator[None]:
        """Have places read for those of the tasks that wait."""
        waiting = [each for each in tasks if each.snapshot is not None and each.snapshot.status == "pending"]
        for each in waiting:
            self._places.enter(each, question.places.get(each.task_id))
        try:
            yield
        finally:
            for each in waiting:
                self._places.leave(each)

    async def _gather(self, question: BatchQuestion, tasks: Sequence[Watched[S]], until: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(until - self._clock()):
                while not _is_urgent(question, tasks):
                    with _following(tasks) as event:
                        await event.wait()
        shortest, longest = GATHER_SECONDS
        await asyncio.sleep(shortest + self._chance() * (longest - shortest))


def _client(question: BatchQuestion) -> tuple[str, str, str] | None:
    return (question.user_id, "", question.client) if question.client else None


@contextlib.contextmanager
def _following(tasks: Sequence[Watched[S]]) -> Iterator[asyncio.Event]:
    event = asyncio.Event()
    for each in tasks:
        each.follow(event)
    try:
        yield event
    finally:
        for each in tasks:
            each.unfollow(event)


def _own(question: BatchQuestion, watched: Watched[S]) -> S | None:
    snapshot = watched.snapshot
    return snapshot if snapshot is not None and snapshot.user_id == question.user_id else None


def _is_ahead(question: BatchQuestion, watched: Watched[S]) -> bool:
    own = _own(question, watched)
    return own is not None and question.versions[watched.task_id] > own.version


def _is_news(question: BatchQuestion, tasks: Sequence[Watched[S]]) -> bool:
    """Whether anything is to be told: a task that differs, or one that isn't there (any more)."""
    return bool(question.impossible) or any(
        (own := _own(question, each)) is None or own.version != question.versions[each.task_id] for each in tasks
    )


def _is_urgent(question: BatchQuestion, tasks: Sequence[Watched[S]]) -> bool:
    """Whether there is news that isn't mere progress."""
    return bool(question.impossible) or any(_is_more_than_progress(question, each) for each in tasks)


def _is_more_than_progress(question: BatchQuestion, watched: Watched[S]) -> bool:
    """Whether a task has another status, as far as we know, or is no more."""
    own, seen = _own(question, watched), question.versions[watched.task_id]
    return own is None or (own.version != seen and not watched.status_since <= seen < own.version)


def _answer(
    question: BatchQuestion,
    tasks: Sequence[Watched[S]],
    reason: Reason,
    held_seconds: float = 0.0,
    moved: Collection[str] = (),
) -> BatchAnswer[S]:
    owned = [(each.task_id, _own(question, each)) for each in tasks]
    found = [own for _, own in owned if own is not None]
    changed = [own for own in found if own.version != question.versions[own.task_id]]
    same = [own for own in found if own.version == question.versions[own.task_id]]
    urgent = {each.task_id for each in tasks if _is_more_than_progress(question, each)}
    return BatchAnswer(
        changed=changed,
        moved=[own for own in same if own.task_id in moved],
        unchanged=[own.task_id for own in same if own.task_id not in moved],
        not_found=[*(task_id for task_id, own in owned if own is None), *question.impossible],
        reason=reason,
        prompt=[own for own in changed if own.task_id in urgent] if question.gather else changed,
        held_seconds=held_seconds,
        finished=all(own.terminal for own in found),
    )
