"""Where the tasks that wait stand in the queue, and when they may be ready.

A place changes with every claim of somebody else's task, so it is no part of a task's version, and no read of a task counts the
queue. One statement a second tells the places of all tasks at the front of the queue, for everybody in this process; it is
made only while somebody waits for a task that waits itself, or when a reply needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeAlias

from server.telemetry import logs
from server.telemetry.metrics import Metrics
from server.waiting.watched_task import Snapshot, Watched

READ_SECONDS: Final = 1.0
MOST_PLACES: Final = 10_000
"""The queue is read no farther. Behind, a place is told as the next one: so far it is at least."""
GATHER_SECONDS: Final = 2.0
LONGEST_GATHER_SECONDS: Final = 10.0
_PLACES_PER_SECOND: Final = 50.0
# The loop's timers are early by so much at most: it must not skip every other second.
_SLACK_SECONDS: Final = 0.1
# A reply waits so long for places; then it does without, or with those of before.
_PATIENCE_SECONDS: Final = 0.5
# After that they are nobody's truth any more.
_LONGEST_AGE_SECONDS: Final = 10.0

Standing: TypeAlias = tuple[int | None, float | None]
"""The place (1 is next) and for how many seconds it takes still; None: unknown, or the task doesn't wait."""
NOWHERE: Final[Standing] = (None, None)


class QueueState(Protocol):
    """The beginning of the queue, as it was read."""

    @property
    def task_ids(self) -> list[str]:
        """In the order of claims."""

    @property
    def turns(self) -> list[int]:
        """Of the same tasks."""

    @property
    def mean_seconds(self) -> float | None:
        """What one of the last tasks took."""

    @property
    def workers(self) -> int:
        """How many are busy."""


class Places:
    """What this process knows of the queue. `run` keeps it up to date while anybody waits."""

    def __init__(
        self,
        read: Callable[[int], Awaitable[QueueState]],
        metrics: Metrics,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        """`read` returns the first so many tasks of the queue; `wall_clock`: seconds since 1970, as the database has them."""
        self._read = read
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._state: QueueState | None = None
        self._places: dict[str, int] = {}
        self._turns: list[int] = []
        self._tried_at = self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._waiting: Counter[Watched[Any]] = Counter()
        # Those whose place somebody wants to be told, and until when each pass looks at them.
        self._moving: dict[Watched[Any], float] = {}
        self._somebody = asyncio.Event()

    async def run(self) -> None:
        """Read the queue once a second while anybody waits for a task in it, and wake those whose place has changed."""
        while True:
            await self._somebody.wait()
            if not self._waiting:
                self._somebody.clear()  # only this loop waits on it
                continue
            await self._refresh()
            self._wake()
            await asyncio.sleep(READ_SECONDS)

    async def refresh(self, *tasks: Snapshot) -> None:
        """Have places that are no older than a second, if one of these tasks needs any. Never raises, never takes long."""
        if any(not task.terminal and task.seconds_left is None for task in tasks):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await self._refresh()

    def standing(self, task: Snapshot) -> Standing:
        """Return where a task stands now, as far as is known."""
        if task.terminal:
            return NOWHERE
        state = self._state if self._clock() - self._read_at < _LONGEST_AGE_SECONDS else None
        mean = state.mean_seconds if state is not None else None
        if task.status != "pending":
            whole = task.seconds_left if task.seconds_left is not None else mean
            return None, None if whole is None else max(0.0, whole - max(0.0, self._wall_clock() - task.updated_at))
        if state is None:
            return NOWHERE
        place = self._places.get(task.task_id) or self._place_of_new(task)
        return place, None if mean is None else mean * -(-place // max(1, state.workers))

    def place(self, task: Snapshot) -> int | None:
        """Return the place of a task that waits."""
        return self.standing(task)[0] if task.status == "pending" else None

    def is_news(self, seen: int | None, task: Snapshot | None, since: float) -> bool:
        """Whether somebody who has seen that place, and asks since then, is to be told of another one now.

        Mere moves are gathered, the longer the farther back the task stands; that it is next is told at once.
        """
        if seen is None or task is None:
            return False
        place = self.place(task)
        if place is None or place == seen:
            return False
        gather = min(GATHER_SECONDS + place / _PLACES_PER_SECOND, LONGEST_GATHER_SECONDS)
        return place == 1 or self._clock() - since >= gather

    def enter(self, watched: Watched[Any], seen: int | None) -> None:
        """Have places read while somebody waits for this task. `seen`: the place that they know, if they want to be told."""
        self._waiting[watched] += 1
        self._somebody.set()
        if seen is not None:
            self._moving[watched] = self._clock() + LONGEST_GATHER_SECONDS + 2 * READ_SECONDS

    def leave(self, watched: Watched[Any]) -> None:
        """End one `enter`."""
        self._waiting[watched] -= 1
        if self._waiting[watched] <= 0:
            del self._waiting[watched]
            self._moving.pop(watched, None)

    def _wake(self) -> None:
        now = self._clock()
        for watched, until in list(self._moving.items()):
            if now <= until:
                watched.release()

    async def _refresh(self) -> None:
        if self._reading is None or self._reading.done():
            if self._clock() - self._tried_at < READ_SECONDS - _SLACK_SECONDS:
                return
            self._reading = asyncio.create_task(self._read_once(), name="queue read")
        await asyncio.shield(self._reading)  # whoever asked first may leave before it is there

    async def _read_once(self) -> None:
        began = self._tried_at = self._clock()
        try:
            state = await self._read(MOST_PLACES)
        except Exception as error:  # noqa: BLE001 - replies do without places; the next read tries again
            self._metrics.failed_reads.inc()
            logs.log.warning(logs.READ_FAILED, tasks=0, error=str(error), kind=type(error).__name__)
            return
        before = self._places
        self._state, self._read_at, self._turns = state, began, list(state.turns)
        self._places = {task_id: place for place, task_id in enumerate(state.task_ids, 1)}
        until = self._clock() + LONGEST_GATHER_SECONDS + 2 * READ_SECONDS
        for watched in self._moving:
            if before.get(watched.task_id) != self._places.get(watched.task_id):
                self._moving[watched] = until

    def _place_of_new(self, task: Snapshot) -> int:
        """Return the place of a task that came after the last read, and remember it for those that come behind it."""
        place = bisect_right(self._turns, task.turn) + 1
        if place <= MOST_PLACES:
            self._places[task.task_id] = place
            self._turns.insert(place - 1, task.turn)
        return place
