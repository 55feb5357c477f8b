"""The workers of one process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from server.config import GenerationSettings
from server.generation.generator import Generator
from server.generation.turn import Turn
from server.generation.worker import Worker, worker_name
from server.runtime.background import Background
from server.storage.database import Database
from server.storage.images import FileImages
from server.storage.tasks import WorkQueue
from server.telemetry.metrics import Metrics


class Workers:
    """As many as the settings say, each with a name of its own; they share one generator and its threads."""

    def __init__(
        self,
        settings: GenerationSettings,
        database: Database,
        images: FileImages,
        metrics: Metrics,
        *,
        result_url: Callable[[str], str],
    ) -> None:
        """Make them; `start` has them work. `result_url`: where the picture of a task is found."""
        self._workers: list[Worker] = []
        if not settings.workers:
            return
        generator = _make_generator(settings)
        self._workers += [
            Worker(
                WorkQueue(
                    database, worker_name(), lease_seconds=settings.lease_seconds, max_attempts=settings.max_attempts
                ),
                generator,
                images,
                settings,
                metrics,
                result_url=result_url,
            )
            for _ in range(settings.workers)
        ]

    def __len__(self) -> int:
        return len(self._workers)

    def wake(self, _payload: str = "") -> None:
        """Have them look into the queue: there may be a task."""
        for worker in self._workers:
            worker.wake()

    def start(self, background: Background, turn: Turn | None) -> None:
        """Have them work in the background. With a `turn`: once it has come."""
        for number, worker in enumerate(self._workers, 1):
            background.start(f"worker {number}", partial(_work_in_turn, worker, turn))


def _make_generator(settings: GenerationSettings) -> Generator:
    from server.generation.procedural import ProceduralGenerator  # noqa: PLC0415 - who doesn't paint needs no NumPy

    executor = ThreadPoolExecutor(settings.workers, thread_name_prefix="generator")
    return ProceduralGenerator(settings.step_seconds, executor)


async def _work_in_turn(worker: Worker, turn: Turn | None) -> None:
    if turn:
        await turn.come()
    await worker.run()
