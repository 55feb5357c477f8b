"""Tasks that run beside the requests, and somebody who notices when one of them dies."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from server import logs
from server.metrics import Metrics


class Background:
    """Runs tasks until it is closed. One that ends by an error is logged, counted, and makes this process unready."""

    def __init__(self, metrics: Metrics) -> None:
        """Begin with no tasks."""
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()
        self.dead: dict[str, str] = {}

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it in a task of this name."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Cancel all and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        self.dead[task.get_name()] = repr(error)
        self._metrics.dead_background_tasks.set(len(self.dead))
        logs.log.error(logs.TASK_DIED, task=task.get_name(), error=repr(error), exc_info=error)
