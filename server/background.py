"""Tasks that run beside the requests, and somebody who notices when one of them dies."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from server import logs
from server.metrics import Metrics

_CANCEL_AGAIN_SECONDS: Final = 1.0


class Background:
    """Runs tasks until it is closed. One that ends by an error is logged, counted, and makes this process unready."""

    def __init__(self, metrics: Metrics) -> None:
        """Begin with no tasks."""
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self.dead: dict[str, str] = {}

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it in a task of this name."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Cancel all and wait until they have ended."""
        self._closing = True
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            # Until Python 3.12, wait_for() swallows a cancellation that comes as its future is done: then again.
            await asyncio.wait(tasks, timeout=_CANCEL_AGAIN_SECONDS)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = _error(task)
        if error is None or (task.cancelled() and self._closing):
            return
        self.dead[task.get_name()] = repr(error)
        self._metrics.dead_background_tasks.set(len(self.dead))
        logs.log.error(logs.TASK_DIED, task=task.get_name(), error=repr(error), exc_info=error)


def _error(task: asyncio.Task[None]) -> BaseException | None:
    return asyncio.CancelledError("canceled by nobody here") if task.cancelled() else task.exception()
