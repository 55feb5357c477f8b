"""Tasks that are read with one statement, and the isolation of one that can't be read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from server.errors import BoardStopped, DatabaseUnavailable, StorageError
from server.telemetry import logs
from server.telemetry.metrics import Metrics
from server.waiting.watched_task import Snapshot, Watched

# Enough to isolate two or three bad tasks among 1,000; if more reads fail, the cause isn't a single task.
_MOST_READS: Final = 64

S = TypeVar("S", bound=Snapshot)


class ReadBatch(Generic[S]):
    """Tasks that will be read together.

    Attributes:
        repairing: tasks whose notification seems to have been missed.
        invalidations: of each task, the number of invalidations that this read covers.
        found: the snapshots; a task that is neither here nor in `errors` doesn't exist.
        errors: why a task couldn't be read.
        done: set when all observers have been told.
    """

    __slots__ = ("done", "errors", "found", "invalidations", "repairing", "tasks")

    def __init__(self) -> None:
        """Begin without tasks."""
        self.tasks: dict[str, Watched[S]] = {}
        self.repairing: set[str] = set()
        self.invalidations: dict[str, int] = {}
        self.found: dict[str, S] = {}
        self.errors: dict[str, StorageError] = {}
        self.done = asyncio.Event()

    @property
    def unavailable(self) -> bool:
        """Whether a read failed because the database can't be reached."""
        return any(isinstance(error, DatabaseUnavailable) for error in self.errors.values())

    async def read(self, read: Callable[[Sequence[str]], Awaitable[Sequence[S]]], metrics: Metrics) -> None:
        """Read the tasks with one call. If it fails while the database can be reached, halve them until the bad one is alone.

        The halves are read one after the other, so versions can't go back.
        """
        self.invalidations = {task_id: watched.invalidations for task_id, watched in self.tasks.items()}
        parts, reads = [list(self.tasks)], 0
        while parts:
            task_ids, reads = parts.pop(), reads + 1
            metrics.board_reads.inc()
            try:
                self.found.update({snapshot.task_id: snapshot for snapshot in await read(task_ids)})
            except asyncio.CancelledError:
                self.stop()
                raise
            except Exception as error:  # noqa: BLE001 - any error fails this read alone
                metrics.failed_reads.inc()
                logs.log.warning(logs.READ_FAILED, tasks=len(task_ids), error=str(error), kind=type(error).__name__)
                half = len(task_ids) // 2
                if half and reads < _MOST_READS and not isinstance(error, DatabaseUnavailable):
                    parts += [task_ids[half:], task_ids[:half]]
                else:
                    self._fail(task_ids, error)

    def stop(self) -> None:
        """Fail the batch for whoever waits for it, unless it is done."""
        if not self.done.is_set():
            self._fail(list(self.tasks), board_stopped())
            self.done.set()

    def _fail(self, task_ids: Sequence[str], error: Exception) -> None:
        failure = error if isinstance(error, StorageError) else StorageError(f"reading ended by {error!r}")
        self.errors.update(dict.fromkeys(task_ids, failure))


def board_stopped() -> BoardStopped:
    """Return what is raised for a read that won't be made: the process stops, or the board is being restarted."""
    return BoardStopped("nothing is read at this moment: the board has stopped")
