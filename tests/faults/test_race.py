"""Reading, registering, committing and notifying in any order whatever: no wait outlives a newer version.

The loop runs what is ready in a random order, one step at a time, and its clock stands still while anything can run. So
every `await` of the board, of the polls and of the storage is a place where everybody else may come first. Nobody may
need the clock to be told of the last version: that would have been the sweep, or the end of the hold.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from server.telemetry.metrics import Metrics
from server.waiting.answers import Answer, Question
from server.waiting.batches import BatchPolling, BatchQuestion
from server.waiting.board import Board
from server.waiting.places import Places
from server.waiting.polling import Polling
from server.waiting.waiters import Reason, Waiters
from tests.faults.load import print_figure
from tests.unit.waiting.conftest import SWEEP_SECONDS, ClockworkLoop, Queue, State, answer_by_task, answer_parked

TASKS = ("a", "b")
LAST = 4
# A batch gathers changes for 20 to 50 ms; a sweep comes after 5 s.
AT_ONCE_SECONDS = 1.0


class UnfairLoop(ClockworkLoop):
    """Of all that is ready, one thing runs, chosen at random; asyncio itself would take them in turn."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance

    def _run_once(self) -> None:
        loop: Any = self
        ready = list(loop._ready)
        loop._ready.clear()
        if ready:
            loop._ready.append(ready.pop(self._chance.randrange(len(ready)) if len(ready) > 1 else 0))
        super()._run_once()
        loop._ready.extendleft(reversed(ready))


class Script(random.Random):
    """Chance that follows a list, and when that has ended, always takes the first: what asyncio would have done."""

    def __init__(self, steps: Sequence[int]) -> None:
        super().__init__(0)
        self._steps = iter(steps)

    def _randbelow(self, below: int) -> int:
        return next(self._steps, 0) % below


class Storage:
    """A database as far as a race can tell: a read sees what is committed at some moment between question and answer."""

    def __init__(self, chance: random.Random) -> None:
        self.rows = {task_id: State(task_id) for task_id in TASKS}
        self.notifications: deque[str] = deque()
        self._chance = chance

    async def pause(self) -> None:
        for _ in range(self._chance.randrange(4)):
            await asyncio.sleep(0)

    async def read(self, task_ids: Sequence[str]) -> Sequence[State]:
        await self.pause()
        found = [self.rows[task_id] for task_id in task_ids]
        await self.pause()
        return found

    async def read_versions(self, task_ids: Sequence[str]) -> dict[str, int]:
        await self.pause()
        return {task_id: self.rows[task_id].version for task_id in task_ids}

    async def barrier(self) -> bool:
        return True

    async def commit_all(self) -> None:
        for version in range(2, LAST + 1):
            for task_id in self._chance.sample(TASKS, len(TASKS)):
                await self.pause()
                self.rows[task_id] = State(task_id, version)
                self.notifications.append(f"{task_id}:{version}")  # in the order of the commits, as Postgres does

    async def deliver_all(self, notice: Callable[[str], None]) -> None:
        for _ in range((LAST - 1) * len(TASKS)):
            while not self.notifications:
                await asyncio.sleep(0)
            await self.pause()
            notice(self.notifications.popleft())


@dataclass(frozen=True)
class Server:
    """What takes part in the race; a test may put a broken part in."""

    board: type[Board[State]] = Board
    polling: type[Polling[State]] = Polling


class Race:
    """One interleaving of everybody: two who ask for one task each, parked or not, one who asks for both, one who comes and leaves."""

    def __init__(self, server: Server, chance: random.Random) -> None:
        self.chance = chance
        self.storage = Storage(chance)
        self.metrics = _metrics
        self.board = server.board(
            read=self.storage.read,
            read_versions=self.storage.read_versions,
            barrier=self.storage.barrier,
            sweep_seconds=SWEEP_SECONDS,
            linger_seconds=chance.choice((0.0, 60.0)),
            metrics=self.metrics,
            batch_size=chance.choice((1, 1000)),
        )
        self.waiters = Waiters(max_held=100, max_held_per_user=100)
        rest: dict[str, Any] = {"jitter_seconds": 0.0, "clock": lambda: asyncio.get_running_loop().time()}
        clock = rest["clock"]
        places = Places(Queue().read, self.metrics, clock=clock, wall_clock=clock)
        self.polling = server.polling(self.board, self.waiters, places, **rest)
        self.batches = BatchPolling(self.board, self.waiters, places, **rest)
        self.late = 0

    async def run(self) -> int:
        """Return how many were told too late, or by the clock alone."""
        loop = asyncio.get_running_loop()
        began, board = loop.time(), asyncio.create_task(self.board.run())
        self.board.on_listener_restored()
        leaving = asyncio.create_task(self._follow("a"))
        parks = self.chance.choice((False, True))
        following = (self._follow("a", parks=parks), self._follow("b", parks=parks), self._follow_both())
        told = [asyncio.create_task(each) for each in following]
        other = [self.storage.commit_all(), self.storage.deliver_all(self.board.on_notification), self._end(leaving)]
        await asyncio.gather(*other)
        for each in told:
            self.late += (await each) - began > AT_ONCE_SECONDS
        board.cancel()
        await asyncio.wait([board])
        assert len(self.waiters) == len(self.waiters._deadlines) == 0, "a waiter is left"
        assert sum(watched.watchers for watched in self.board._tasks.values()) == 0, "somebody still watches"
        return self.late

    async def _follow(self, task_id: str, *, parks: bool = False) -> float:
        """Poll until the last version was told; returns when that was."""
        seen = self.chance.choice((0, 1))
        while seen != LAST:
            await self.storage.pause()
            question = Question(task_id, "alice", seen, seconds=30.0)
            answer = await (answer_parked if parks else answer_by_task)(self.polling, question)
            assert answer.snapshot is not None
            assert answer.snapshot.version >= seen, "a step back"
            seen = answer.snapshot.version
        return asyncio.get_running_loop().time()

    async def _follow_both(self) -> float:
        seen = dict.fromkeys(TASKS, 1)
        while set(seen.values()) != {LAST}:
            await self.storage.pause()
            answer = await self.batches.answer(BatchQuestion(seen, "alice", seconds=30.0))
            for each in answer.changed:
                assert each.version >= seen[each.task_id], "a step back"
                seen = {**seen, each.task_id: each.version}
        return asyncio.get_running_loop().time()

    async def _end(self, leaving: asyncio.Task[float]) -> None:
        for _ in range(self.chance.randrange(40)):
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])


_metrics = Metrics()  # a registry takes longer to make than a race to run


def lost(chance: random.Random, server: Server | None = None) -> int:
    """Run one interleaving; returns how many were told too late."""
    with asyncio.Runner(loop_factory=lambda: UnfairLoop(chance)) as runner:
        return runner.run(Race(server or Server(), chance).run())


@pytest.mark.parametrize("interleavings", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_wait_outlives_a_newer_version(interleavings: int) -> None:
    late = {seed: number for seed in range(interleavings) if (number := lost(random.Random(seed)))}
    print_figure("read/register race", interleavings=interleavings, lost=sum(late.values()))
    assert not late, "the keys are the seeds"


@hypothesis.given(strategies.lists(strategies.integers(0, 255), max_size=300))
@hypothesis.settings(max_examples=100, deadline=None, database=None, derandomize=True)
def test_nor_does_one_in_the_interleavings_that_hypothesis_thinks_of(steps: list[int]) -> None:
    assert lost(Script(steps)) == 0


# The race can be lost: what follows has one guard less ------------------------------------------------------------------


class RegistersLate(Polling[State]):
    """Reads first, and watches then."""

    async def answer(self, question: Question) -> tuple[Answer[State], float]:
        with self.board.watch(question.task_id) as watched:
            snapshot = await self.board.current(watched)
        assert snapshot is not None
        if question.version is not None and snapshot.version != question.version:
            return Answer(snapshot, Reason.IMMEDIATE, changed=True), 0.0
        await asyncio.sleep(0)
        with self.board.watch(question.task_id) as watched:
            watched.snapshot, watched.known, watched.validated = snapshot, True, watched.invalidations
            with self.waiters.hold(question.user_id, None, question.seconds) as hold:
                while watched.snapshot is snapshot:
                    await watched.event.wait()
        return Answer(watched.snapshot, hold.reason or Reason.CHANGE, changed=watched.snapshot is not snapshot), 0.0


class DeafWhileReading(Board[State]):
    """Takes what is notified during a read for something that the read will have seen."""

    reading = False

    def __init__(self, *, read: Any, **rest: Any) -> None:
        async def read_deaf(task_ids: Any) -> Any:
            self.reading = True
            try:
                return await read(task_ids)
            finally:
                self.reading = False

        super().__init__(read=read_deaf, **rest)

    def invalidate(self, task_id: str) -> None:
        if not self.reading:
            super().invalidate(task_id)


@pytest.mark.parametrize(
    "broken",
    [Server(polling=RegistersLate), Server(board=DeafWhileReading)],
    ids=lambda server: (server.polling if server.board is Board else server.board).__name__,
)
def test_the_race_is_lost_without_a_guard(broken: Server) -> None:
    assert any(lost(random.Random(seed), broken) for seed in range(3000))
