"""Supervised background tasks: one that dies is logged, counted and restarted with back-off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from server.telemetry import logs
from server.telemetry.metrics import Metrics

_CANCEL_AGAIN_SECONDS: Final = 1.0
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 10.0
# A task that has run for so long didn't die of its start: its next pause is the first again.
_SETTLED_SECONDS: Final = 60.0


class Background:
    """Runs tasks until it is closed. One that ends by an error is logged, counted, and started again after a pause.

    Attributes:
        dead: the tasks that wait to be started again, each with its error; while there is one, this process is unready.
    """

    def __init__(self, metrics: Metrics) -> None:
        """Supervise no task yet."""
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self.dead: dict[str, str] = {}

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run `work()` in a task of this name; call it again whenever it raises."""
        task = asyncio.create_task(self._keep_running(name, work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancel all tasks and wait until they are done."""
        self._closing = True
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            # Until Python 3.12, wait_for() swallows a cancellation that comes as its future is done: then again.
            await asyncio.wait(tasks, timeout=_CANCEL_AGAIN_SECONDS)

    async def _keep_running(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE_SECONDS
        while True:
            started = loop.time()
            try:
                await work()
            except asyncio.CancelledError as error:
                # A stray one, such as aiopg raises for a statement that Postgres canceled, is an error like others.
                if self._closing or _is_canceled():
                    raise
                died_of: BaseException = error
            except Exception as error:  # noqa: BLE001 - whatever it was: what runs here is needed
                died_of = error
            else:
                return
            pause = _FIRST_PAUSE_SECONDS if loop.time() - started > _SETTLED_SECONDS else pause
            self._note_death(name, died_of, pause)
            if self._closing:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            self._note_restart(name)

    def _note_death(self, name: str, error: BaseException, pause: float) -> None:
        self.dead[name] = repr(error)
        self._metrics.dead_background_tasks.set(len(self.dead))
        logs.log.error(logs.TASK_DIED, task=name, error=repr(error), pause_seconds=pause, exc_info=error)

    def _note_restart(self, name: str) -> None:
        with contextlib.suppress(KeyError):
            del self.dead[name]
        self._metrics.dead_background_tasks.set(len(self.dead))
        self._metrics.background_restarts.inc()


@contextlib.contextmanager
def counted_errors(metrics: Metrics) -> Iterator[None]:
    """Log and count unhandled errors of the loop's callbacks and of tasks that nobody awaits, while the block runs."""
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()

    def report(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        metrics.unhandled_errors.inc()
        logs.log.error(logs.ERROR_UNHANDLED, message=context["message"], exc_info=context.get("exception"))

    loop.set_exception_handler(report)
    try:
        yield
    finally:
        loop.set_exception_handler(before)


def _is_canceled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
