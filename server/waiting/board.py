"""The board: what this process knows of each watched task, and who is told when that changes.

The rules that lose no wake-up:

* A task is watched *before* anything is read, so that a notification between reading and waiting finds it.
* A notification is a hint. It makes what we know stale, and a read that began later makes it fresh: all tasks that
  became stale in one turn of the loop share one read. A notification during that read asks for a next one.
* An Event is set once and thrown away. Whoever waits next gets a new one.
* A read that fails, fails for the tasks it can't read alone: the others of its batch are read apart from them.
* While the listener isn't proven healthy, nothing counts as fresh, and what is waited for is read every second.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from server.telemetry import logs
from server.telemetry.metrics import Metrics
from server.waiting.reads import ReadBatch, board_stopped
from server.waiting.watched_task import Snapshot, Watched

UNHEALTHY_SWEEP_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = (0.1, 0.25, 0.5, 1.0)
_PATIENCE_SECONDS: Final = 0.5  # for reading anew what is known, while the listener isn't healthy
_TOLD_AT_ONCE: Final = 256  # tasks of a batch, in one turn of the loop
_LONGEST_VERSION: Final = 19  # digits of a bigint


S = TypeVar("S", bound=Snapshot)


class Board(Generic[S]):
    """All watched tasks of this process.

    `read` returns the snapshots of many tasks (one that is missing doesn't exist), `read_versions` only their versions.
    `barrier` waits until everything committed so far has been notified, and returns False if that can't be had.
    """

    def __init__(
        self,
        *,
        read: Callable[[Sequence[str]], Awaitable[Sequence[S]]],
        read_versions: Callable[[Sequence[str]], Awaitable[dict[str, int]]],
        barrier: Callable[[], Awaitable[bool]],
        sweep_seconds: float,
        linger_seconds: float,
        metrics: Metrics,
        batch_size: int = 1000,
    ) -> None:
        """Make an empty board. Nothing is read before `run` runs."""
        self._read = read
        self._read_versions = read_versions
        self._barrier = barrier
        self._sweep_seconds = sweep_seconds
        self._linger_seconds = linger_seconds
        self._batch_size = batch_size
        self._metrics = metrics
        self._tasks: dict[str, Watched[S]] = {}
        self._idle: dict[str, float] = {}
        self._batches: deque[ReadBatch[S]] = deque()
        self._told: asyncio.Queue[ReadBatch[S]] = asyncio.Queue(1)
        self._wanted = asyncio.Event()
        self._relisten = asyncio.Event()
        self._stopped = False
        self.listening = False

    def __len__(self) -> int:
        return len(self._tasks)

    async def run(self) -> None:
        """Run the read, publish and sweep loops. May be run again after an error has ended it."""
        self._stopped = False
        self._invalidate_all()  # what was about to be published is read again
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read_loop(), name="board reads")
                group.create_task(self._publish_loop(), name="board tells")
                group.create_task(self._sweep_loop(), name="board sweep")
        finally:
            self._stop()

    @contextlib.contextmanager
    def watch(self, task_id: str) -> Iterator[Watched[S]]:
        """Watch a task while the block runs, as `enter` and `leave` do."""
        watched = self.enter(task_id)
        try:
            yield watched
        finally:
            self.leave(watched)

    def enter(self, task_id: str) -> Watched[S]:
        """Watch a task: its snapshot is kept up to date until `linger_seconds` after the last `leave`."""
        watched = self._tasks.get(task_id)
        if watched is None:
            watched = self._tasks[task_id] = Watched(task_id)
        watched.watchers += 1
        self._idle.pop(task_id, None)
        return watched

    def leave(self, watched: Watched[S]) -> None:
        """End one watch. To be called once for each `enter`."""
        watched.watchers -= 1
        if not watched.watchers:
            self._retire(watched)

    async def current(self, watched: Watched[S], *, force: bool = False) -> S | None:
        """Return the task's state as of this call or later, or None if there is no such task: no query if it is fresh.

        If it can't be read just now, but was known before, that is returned: whoever waits on it is told when it is read.
        `force`: read it even if it is fresh, and take nothing less.

        Raises:
            StorageError: it can't be read, and nothing is known of it.
        """
        await self.refresh([watched], force=force)
        return watched.snapshot

    def peek(self, task_id: str) -> Watched[S] | None:
        """Return the watched task if its snapshot is fresh, without a read; else None."""
        watched = self._tasks.get(task_id)
        return watched if watched is not None and not self._stopped and self._is_fresh(watched) else None

    async def refresh(self, tasks: Sequence[Watched[S]], *, force: bool = False) -> None:
        """Make these fresh, as `current` does for one; they share their reads."""
        if self._stopped:
            raise board_stopped()  # snapshots are no longer kept up to date
        wanted = [each for each in tasks if force or not self._is_fresh(each)]
        if not wanted:
            return
        batches = [(each, self._enqueue(each)) for each in wanted]
        impatient = not force and not self.listening and all(each.known for each in wanted)
        # A silent database must not prolong polls: they wait on the known snapshot, and are told when the read returns.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS if impatient else None):
                for watched, batch in batches:
                    await batch.done.wait()
                    error = batch.errors.get(watched.task_id)
                    if error is not None and (force or not watched.known):
                        raise error

    def _is_fresh(self, watched: Watched[S]) -> bool:
        return self.listening and watched.known and not watched.stale

    def on_notification(self, payload: str) -> None:
        """Handle a notification: comma-separated ``id:version``, or ``id:-`` for a deletion."""
        malformed = 0
        for item in payload.split(","):
            task_id, colon, version = item.partition(":")
            if not colon or not (version == "-" or (version.isdecimal() and len(version) <= _LONGEST_VERSION)):
                malformed += 1
                continue
            watched = self._tasks.get(task_id)
            if watched is not None and _is_news(watched, version):
                self.invalidate(task_id)
        if malformed:
            self._metrics.malformed_notifications.inc(malformed)
            logs.log.warning(logs.NOTIFICATION_MALFORMED, items=malformed, payload=payload[:100])

    def invalidate(self, task_id: str) -> None:
        """Invalidate the cached snapshot after a write by this process, without waiting for the notification."""
        watched = self._tasks.get(task_id)
        if watched is not None:
            watched.invalidations += 1
            if watched.watchers:
                self._enqueue(watched)

    def on_listener_lost(self) -> None:
        """Called when the listener is unhealthy: from now on notifications may be missing."""
        self.listening = False
        self._relisten.set()

    def on_listener_restored(self) -> None:
        """Called when the listener is healthy again: what was missed is found by reading."""
        self.listening = True
        self._relisten.set()
        self._invalidate_all()

    def _invalidate_all(self) -> None:
        for watched in self._tasks.values():
            watched.invalidations += 1
        self._enqueue_watched()

    # Reading -------------------------------------------------------------------------------------------------------

    def _enqueue(self, watched: Watched[S], *, repairing: bool = False) -> ReadBatch[S]:
        if not self._batches or (
            len(self._batches[-1].tasks) >= self._batch_size and watched.task_id not in self._batches[-1].tasks
        ):
            self._batches.append(ReadBatch())
        batch = self._batches[-1]
        batch.tasks[watched.task_id] = watched
        if repairing:
            batch.repairing.add(watched.task_id)
        self._wanted.set()
        return batch

    def _enqueue_watched(self) -> None:
        for watched in self._tasks.values():
            if watched.watchers:
                self._enqueue(watched, repairing=True)

    async def _read_loop(self) -> None:
        failures = 0
        while True:
            await self._wanted.wait()
            if not self._batches:
                self._wanted.clear()  # only this loop waits on it
                continue
            # One read at a time: a later read never shows an older state, so versions can't go back.
            batch = self._batches.popleft()
            await batch.read(self._read, self._metrics)
            await self._enqueue_for_publishing(batch)  # the next read needn't wait for the publishing
            if batch.unavailable:
                await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
                failures += 1
                self._enqueue_failed(batch)
                continue
            failures = 0
            if batch.errors:
                # Only these tasks can't be read: the others' reads go on meanwhile.
                asyncio.get_running_loop().call_later(_RETRY_SECONDS[-1], self._enqueue_failed, batch)

    def _enqueue_failed(self, batch: ReadBatch[S]) -> None:
        for task_id in batch.errors:
            watched = batch.tasks[task_id]
            if watched.watchers and self._tasks.get(task_id) is watched:
                self._enqueue(watched, repairing=task_id in batch.repairing)

    async def _enqueue_for_publishing(self, batch: ReadBatch[S]) -> None:
        try:
            await self._told.put(batch)
        except asyncio.CancelledError:
            batch.stop()
            raise

    async def _publish_loop(self) -> None:
        while True:
            batch = await self._told.get()
            try:
                for number, (task_id, watched) in enumerate(batch.tasks.items(), 1):
                    if task_id not in batch.errors:
                        self._tell(batch, task_id, watched)
                    if not number % _TOLD_AT_ONCE:
                        await asyncio.sleep(0)  # let other work and the next read proceed
                batch.done.set()
            finally:
                batch.stop()  # unless it is done

    def _tell(self, batch: ReadBatch[S], task_id: str, watched: Watched[S]) -> None:
        watched.validated = batch.invalidations[task_id]
        try:
            self._apply(watched, batch.found.get(task_id), repairing=task_id in batch.repairing)
        except Exception as error:  # noqa: BLE001 - an observer failed: the others are told all the same
            self._metrics.unhandled_errors.inc()
            logs.log.error(logs.ERROR_UNHANDLED, task_id=task_id, exc_info=error)

    def _stop(self) -> None:
        self._stopped = True
        while not self._told.empty():
            self._told.get_nowait().stop()
        while self._batches:
            self._batches.popleft().stop()

    def _apply(self, watched: Watched[S], snapshot: S | None, *, repairing: bool) -> None:
        before, was_known = watched.snapshot, watched.known
        watched.snapshot, watched.known = snapshot, True
        if snapshot and not (before and before.status == snapshot.status and before.version <= snapshot.version):
            watched.status_since = snapshot.version
        if not was_known or _state(before) == _state(snapshot):
            return
        if repairing and watched.watchers:
            self._count_repair(watched.task_id, _version(before), _version(snapshot))
        watched.release()

    def _count_repair(self, task_id: str, known: int | None, found: int | None) -> None:
        self._metrics.missed_notify_repairs.inc()
        logs.log.warning(logs.WAKE_REPAIRED, task_id=task_id, known=known, found=found)

    # Sweeping ------------------------------------------------------------------------------------------------------

    async def _sweep_loop(self) -> None:
        while True:
            self._relisten.clear()  # ours alone, as above
            pause = self._sweep_seconds if self.listening else min(UNHEALTHY_SWEEP_SECONDS, self._sweep_seconds)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._relisten.wait()
                continue  # the listener's health has changed: begin a pause of the right length
            self._forget_idle()
            if not self.listening:
                self._enqueue_watched()
                continue
            try:
                await self._sweep()
            except Exception as error:  # noqa: BLE001 - the next sweep tries again
                self._metrics.failed_reads.inc()
                logs.log.warning(logs.SWEEP_FAILED, error=str(error), kind=type(error).__name__)

    async def _sweep(self) -> None:
        # Lingering ones too: the next poll is answered from their snapshot.
        watched = [each for each in self._tasks.values() if each.known and not each.stale]
        for start in range(0, len(watched), self._batch_size):
            known = {each: _version(each.snapshot) for each in watched[start : start + self._batch_size]}
            versions = await self._read_versions([each.task_id for each in known])
            suspects = [each for each in known if versions.get(each.task_id) != known[each]]
            # A notification may be in flight: only what is still unchanged behind the barrier was missed.
            if suspects and await self._barrier():
                for each in suspects:
                    if not each.stale and _version(each.snapshot) == known[each]:
                        self._repair(each, versions.get(each.task_id))

    def _repair(self, watched: Watched[S], found: int | None) -> None:
        watched.invalidations += 1
        if watched.watchers:
            self._enqueue(watched, repairing=True)
        else:
            self._count_repair(watched.task_id, _version(watched.snapshot), found)

    # Forgetting ----------------------------------------------------------------------------------------------------

    def _retire(self, watched: Watched[S]) -> None:
        if watched.snapshot is None or not self._linger_seconds:
            del self._tasks[watched.task_id]  # unknown ids cost no memory, however many are asked for
        else:
            self._idle[watched.task_id] = asyncio.get_running_loop().time() + self._linger_seconds

    def _forget_idle(self) -> None:
        now = asyncio.get_running_loop().time()
        for task_id, until in list(self._idle.items()):
            if until > now:
                break  # they stand in the order in which they fell idle
            del self._idle[task_id]
            del self._tasks[task_id]


def _version(snapshot: Snapshot | None) -> int | None:
    return None if snapshot is None else snapshot.version


def _state(snapshot: Snapshot | None) -> tuple[int, str] | None:
    """The version alone isn't enough: a crash may lose commits that nobody waited for, and their numbers come again."""
    return None if snapshot is None else (snapshot.version, snapshot.status)


def _is_news(watched: Watched[S], version: str) -> bool:
    """Whether a notification tells of a state that isn't the one we know."""
    if version == "-" or watched.snapshot is None:
        return True
    return int(version) > watched.snapshot.version
