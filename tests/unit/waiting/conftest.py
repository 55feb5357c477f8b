"""A loop whose clock jumps, and a storage that answers when the test says so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from server.telemetry.metrics import Metrics
from server.waiting.answers import Answer, Question
from server.waiting.batches import BatchPolling
from server.waiting.board import Board
from server.waiting.places import Places
from server.waiting.polling import Polling
from server.waiting.waiters import Waiters

SWEEP_SECONDS = 5.0
LINGER_SECONDS = 60.0


class ClockworkLoop(asyncio.SelectorEventLoop):
    """An event loop in which nobody waits: when nothing is ready, the time is that of the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1_000_000.0
        self._end = self._now + 3600

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        loop: Any = self  # typeshed keeps what is behind the curtain to itself
        if not loop._ready:
            timers = [timer.when() for timer in loop._scheduled if not timer.cancelled()]
            assert timers or loop._stopping, "nothing is ready and no timer runs: this waits for ever"
            self._now = max(self._now, min(timers, default=self._now))
            assert self._now < self._end, "an hour has passed: what is waited for never happens"
        super()._run_once()  # type: ignore[misc]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Callable[[], Any]]:
    """Run the tests of this folder in that loop."""
    return {"clockwork": ClockworkLoop}


async def settle() -> None:
    """Let everything run that can run without the clock moving."""
    loop: Any = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(0)
        if not loop._ready:
            return


@dataclass(frozen=True)
class State:
    """A task as the board sees it."""

    task_id: str = "t"
    version: int = 1
    status: str = "pending"
    user_id: str = "alice"
    turn: int = 100
    seconds_left: float | None = None
    updated_at: float = 0.0

    @property
    def terminal(self) -> bool:
        return self.status == "completed"


class Read:
    """One read under way. It sees what was committed when it began, as a statement in Postgres does."""

    def __init__(self, task_ids: Sequence[str], rows: Mapping[str, State]) -> None:
        self.task_ids = list(task_ids)
        self.found = [rows[task_id] for task_id in task_ids if task_id in rows]
        self.answer: asyncio.Future[list[State]] = asyncio.get_running_loop().create_future()

    def finish(self) -> None:
        self.answer.set_result(self.found)

    def fail(self, error: BaseException) -> None:
        self.answer.set_exception(error)


@dataclass
class Storage:
    """What would be Postgres. With `paused`, a read ends when the test says so.

    `broken`: every call raises this; `poison`: reads raise this if the task is among theirs.
    """

    rows: dict[str, State] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    sweeps: list[list[str]] = field(default_factory=list)
    paused: bool = False
    broken: Exception | None = None
    poison: dict[str, Exception] = field(default_factory=dict)
    barrier_holds: bool = True
    on_barrier: Callable[[], None] = lambda: None

    def put(self, task_id: str = "t", version: int = 1, **columns: Any) -> State:
        """Commit a state, and tell nobody."""
        self.rows[task_id] = replace(State(task_id, version), **columns)
        return self.rows[task_id]

    @property
    def pending(self) -> list[Read]:
        return [read for read in self.reads if not read.answer.done()]

    async def read(self, task_ids: Sequence[str]) -> Sequence[State]:
        read = Read(task_ids, self.rows)
        self.reads.append(read)
        error = self.broken or next((self.poison[each] for each in task_ids if each in self.poison), None)
        if error is not None:
            read.fail(error)
        elif not self.paused:
            read.finish()
        return await read.answer

    async def read_versions(self, task_ids: Sequence[str]) -> dict[str, int]:
        self.sweeps.append(list(task_ids))
        if self.broken is not None:
            raise self.broken
        return {task_id: self.rows[task_id].version for task_id in task_ids if task_id in self.rows}

    async def barrier(self) -> bool:
        self.on_barrier()
        await asyncio.sleep(0)
        return self.barrier_holds


@dataclass(frozen=True)
class QueueState:
    """The queue as it was when a read of it began."""

    task_ids: list[str]
    turns: list[int]
    mean_seconds: float | None = None
    workers: int = 0


@dataclass
class Queue:
    """What would be the queue in Postgres. `broken`: reads raise this."""

    task_ids: list[str] = field(default_factory=list)
    mean_seconds: float | None = None
    workers: int = 0
    reads: int = 0
    broken: Exception | None = None

    async def read(self, most: int) -> QueueState:
        self.reads += 1
        if self.broken is not None:
            raise self.broken
        task_ids = self.task_ids[:most]
        turns = [100 * number for number in range(1, len(task_ids) + 1)]
        return QueueState(task_ids, turns, self.mean_seconds, self.workers)


@dataclass(slots=True)
class TimedAnswer(Answer[State]):
    """An answer, and how long it took."""

    held_seconds: float = 0.0


def timed(answer: Answer[State], held_seconds: float) -> TimedAnswer:
    return TimedAnswer(answer.snapshot, answer.reason, answer.changed, answer.deleted, answer.standing, held_seconds)


async def answer_by_task(polling: Polling[State], question: Question) -> TimedAnswer:
    """Answer a poll that is held by the task that asks."""
    return timed(*await polling.answer(question))


async def answer_parked(polling: Polling[State], question: Question) -> TimedAnswer:
    """Answer a poll that is held without a task; what is told to the parked poll is the answer of this one."""
    answer: asyncio.Future[TimedAnswer] = asyncio.get_running_loop().create_future()
    found = await polling.answer_or_park(question, lambda *rest: answer.set_result(timed(*rest)))
    if isinstance(found, Answer):
        return timed(found, 0.0)
    try:
        return await answer
    except asyncio.CancelledError:
        found.abandon()
        raise


class Scene:
    """A board that runs, polls that can be asked, and a storage to play with. `parks`: which way polls are held."""

    parks = False

    def __init__(self, *, linger_seconds: float = LINGER_SECONDS, batch_size: int = 1000, **caps: int) -> None:
        self.metrics = Metrics()
        self.storage = Storage()
        self.board: Board[State] = Board(
            read=self.storage.read,
            read_versions=self.storage.read_versions,
            barrier=self.storage.barrier,
            sweep_seconds=SWEEP_SECONDS,
            linger_seconds=linger_seconds,
            metrics=self.metrics,
            batch_size=batch_size,
        )
        self.waiters = Waiters(**{"max_held": 100_000, "max_held_per_user": 100_000, **caps}, chance=lambda: 0.5)
        self.chance = 0.0
        self.queue = Queue()
        self.places = Places(
            self.queue.read,
            self.metrics,
            clock=lambda: asyncio.get_running_loop().time(),
            wall_clock=lambda: asyncio.get_running_loop().time(),
        )
        self.polling = Polling(
            self.board,
            self.waiters,
            self.places,
            jitter_seconds=1.0,
            chance=lambda: self.chance,
            clock=lambda: asyncio.get_running_loop().time(),
        )
        self.batches = BatchPolling(
            self.board,
            self.waiters,
            self.places,
            jitter_seconds=1.0,
            chance=lambda: self.chance,
            clock=lambda: asyncio.get_running_loop().time(),
        )
        self.running: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Begin, with a listener that is proven healthy."""
        self.running = asyncio.create_task(self.board.run())
        self.board.on_listener_restored()

    async def stop(self) -> None:
        if self.running is not None:
            self.running.cancel()
            await asyncio.wait([self.running])

    def ask(
        self, task_id: str = "t", version: int | None = None, *, seconds: float = 30.0, user: str = "alice", **rest: Any
    ) -> asyncio.Task[TimedAnswer]:
        """Begin a poll."""
        question = Question(task_id, user, version, seconds, **rest)
        answer = answer_parked if self.parks else answer_by_task
        return asyncio.create_task(answer(self.polling, question))

    async def hold(self, task_id: str = "t", version: int | None = None, **rest: Any) -> asyncio.Task[TimedAnswer]:
        """Begin a poll and let it go on until it is held."""
        held = len(self.waiters)
        poll = self.ask(task_id, version, **rest)
        await settle()
        assert len(self.waiters) == held + 1, "not held"
        return poll

    def change(self, task_id: str = "t", version: int = 2, **columns: str) -> None:
        """Commit a state and deliver its notification."""
        self.storage.put(task_id, version, **columns)
        self.board.on_notification(f"{task_id}:{version}")

    def delete(self, task_id: str = "t") -> None:
        """Delete a task and deliver the notification."""
        del self.storage.rows[task_id]
        self.board.on_notification(f"{task_id}:-")

    def metric(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0

    @property
    def repairs(self) -> float:
        return self.metric("longpoll_missed_notify_repairs_total")


@contextlib.asynccontextmanager
async def playing(scene: Scene) -> AsyncIterator[Scene]:
    """Run a scene; nobody may be left waiting on it afterwards."""
    scene.run()
    await settle()
    try:
        yield scene
    finally:
        await scene.stop()
    assert len(scene.waiters) == 0, "a waiter is left"
    assert scene.waiters.users == 0


@pytest.fixture(params=["coroutine", "parked"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold polls in the one way and in the other: both keep the same promises."""
    monkeypatch.setattr(Scene, "parks", request.param == "parked")


@pytest.fixture
async def scene(path: None) -> AsyncIterator[Scene]:
    """A board that runs and one task, `t`, of version 1."""
    async with playing(Scene()) as scene:
        scene.storage.put("t")
        yield scene
