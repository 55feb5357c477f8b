"""The workers of one process, each with a process of its own for its generator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from server.config import GenerationSettings
from server.generation.generator_process import Recipe
from server.generation.isolated import IsolatedGenerator
from server.generation.turn import Turn
from server.generation.worker import Worker, worker_name
from server.runtime.background import Background
from server.storage.database import Database
from server.storage.images import FileImages
from server.storage.tasks import WorkQueue
from server.telemetry.metrics import Metrics


class Workers:
    """As many as the settings say, each with a name and a generator of its own."""

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
        recipe = _recipe(settings)
        self._generators = [
            IsolatedGenerator(settings.generator, recipe, settings, metrics) for _ in range(settings.workers)
        ]
        self._workers = [
            Worker(
                WorkQueue(
                    database,
                    worker_name(),
                    lease_seconds=settings.lease_seconds,
                    max_attempts=settings.max_attempts,
                    most_running=settings.max_running_per_user,
                ),
                generator,
                images,
                settings,
                metrics,
                result_url=result_url,
            )
            for generator in self._generators
        ]
        metrics.gauge(
            "longpoll_generator_processes",
            "Processes of generators that can be used",
            lambda: sum(generator.is_running for generator in self._generators),
        )

    def __len__(self) -> int:
        return len(self._workers)

    def wake(self, _payload: str = "") -> None:
        """Have them look into the queue: there may be a task."""
        for worker in self._workers:
            worker.wake()

    def start(self, background: Background, turn: Turn | None) -> None:
        """Have them work in the background. With a `turn`: once it has come."""
        for number, (worker, generator) in enumerate(zip(self._workers, self._generators, strict=True), 1):
            background.start(f"worker {number}", partial(_work_in_turn, worker, generator, turn))


def _recipe(settings: GenerationSettings) -> Recipe:
    if settings.generator == "procedural":
        return Recipe("server.generation.procedural:make", {"step_seconds": settings.step_seconds})
    return Recipe(settings.generator, {})


async def _work_in_turn(worker: Worker, generator: IsolatedGenerator, turn: Turn | None) -> None:
    if turn:
        await turn.come()
    async with asyncio.TaskGroup() as group:  # when the worker is told to stop, its generator is, behind it
        group.create_task(generator.run(), name="generator")
        await worker.run()
