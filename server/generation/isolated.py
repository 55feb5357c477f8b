"""A generator in a process of its own: what it does to itself, it does to nobody else.

    worker ── generate(request) ──▶ IsolatedGenerator ── socket ──▶ server/generation/child.py ──▶ the generator

One that blocks, crashes, eats memory or falls silent costs its task an attempt. The process is started before it is
needed and used again; when it ends, another one is started: at once if it has worked, with growing pauses if not.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator
from typing import Final

from server.config import GenerationSettings
from server.errors import GenerationError, GeneratorLost, MalformedFrame
from server.generation import frames
from server.generation.frames import Frame, Kind
from server.generation.generator import GenerationRequest, Picture, Step
from server.generation.generator_process import Cause, GeneratorProcess, Recipe
from server.telemetry import logs
from server.telemetry.metrics import Metrics

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 10.0
# Steps that come faster are taken at this pace: a flood of them must not keep the event loop from everybody else.
_STEP_SECONDS: Final = 0.005


class IsolatedGenerator:
    """A `Generator` whose work is done elsewhere, one picture at a time, while `run` runs."""

    def __init__(self, name: str, recipe: Recipe, settings: GenerationSettings, metrics: Metrics) -> None:
        """Take how it is made; no process is started yet."""
        self.name = name
        self._recipe = recipe
        self._silent_seconds = settings.silent_seconds
        self._memory_mb = settings.memory_mb
        self._metrics = metrics
        self._process: GeneratorProcess | None = None
        self._free = asyncio.Event()  # set while there is a process with nothing to do; one request takes it
        self._settling: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether there is a process that can be used, or is."""
        return self._process is not None

    async def ready(self) -> None:
        """Wait until there is a process with nothing to do."""
        await self._free.wait()

    async def run(self) -> None:
        """Keep a process running until canceled; then end it."""
        pause = 0.0
        while True:
            if await self._keep_one():
                pause = 0.0
                continue
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS) or _FIRST_PAUSE_SECONDS
            await asyncio.sleep(pause)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step | Picture, None]:
        """Yield what the process yields; see `Generator.generate`.

        When it is canceled or closed, the process is told, and killed if it doesn't stop within `GRACE_SECONDS`. Nobody
        waits for that.

        Raises:
            GenerationError: as the generator raises it; retryable if it failed unexpectedly.
            GeneratorLost: the process ended, or had to be ended.
        """
        process = await self._take_process()
        process.at_work = process.used = True
        process.send(frames.request_frame(request))
        try:
            while True:
                piece = self._read_piece(process, request, await self._read(process))
                yield piece
                if isinstance(piece, Picture):
                    return
                await asyncio.sleep(_STEP_SECONDS)
        finally:
            if process.at_work and not process.ended.is_set():
                self._settling = asyncio.create_task(self._settle(process), name="generator settling")

    async def _take_process(self) -> GeneratorProcess:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._silent_seconds):
                while True:
                    await self._free.wait()
                    self._free.clear()  # behind no await: it is ours
                    if self._process is not None and self._process.is_alive:
                        return self._process
        raise GeneratorLost("The generator can't be started just now")

    async def _read(self, process: GeneratorProcess) -> Frame:
        try:
            return await process.read(self._silent_seconds)
        except GeneratorLost:
            raise GeneratorLost(self._told(process)) from None

    def _told(self, process: GeneratorProcess) -> str:
        """Return what the owner of the task is told."""
        if process.cause is Cause.MEMORY:
            return f"The generator used more than {self._memory_mb} MB of memory"
        if process.cause is Cause.SILENT:
            return f"The generator said nothing for {self._silent_seconds:g} seconds"
        return "The generator stopped unexpectedly"

    def _read_piece(self, process: GeneratorProcess, request: GenerationRequest, frame: Frame) -> Step | Picture:
        """Return the piece of a frame. One that ends the request frees the process."""
        try:
            piece = frames.read_outcome(frame)
        except MalformedFrame as error:
            process.end(Cause.MALFORMED)
            raise GeneratorLost(self._told(process)) from error
        if isinstance(piece, Step):
            return piece
        self._release(process)
        if isinstance(piece, Picture):
            return piece
        if isinstance(piece, GenerationError):
            raise piece
        logs.log.error(logs.GENERATOR_CRASHED, task_id=request.task_id, trace=piece)
        raise GenerationError("The generator failed unexpectedly")

    async def _settle(self, process: GeneratorProcess) -> None:
        if await process.settle():
            self._release(process)

    def _release(self, process: GeneratorProcess) -> None:
        process.at_work = False
        if process is self._process and process.cause is None:
            self._free.set()

    async def _keep_one(self) -> bool:
        """Start a process and wait until it has ended; returns whether it has worked meanwhile."""
        try:
            process = await GeneratorProcess.start(self._recipe)
        except OSError as error:
            self._metrics.generator_deaths.labels("unstartable").inc()
            logs.log.error(logs.GENERATOR_DIED, cause="unstartable", error=str(error))
            return False
        logs.log.info(logs.GENERATOR_STARTED, generator=self.name, pid=process.pid)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._greet(process))
                await process.watch(self._memory_mb * 2**20)
        finally:
            self._process = None
            self._free.clear()
            await process.close()
        self._note_death(process)
        return process.used

    async def _greet(self, process: GeneratorProcess) -> None:
        """Have it used once it says that it is ready."""
        with contextlib.suppress(GeneratorLost):
            if (await process.read(self._silent_seconds)).kind is not Kind.READY:
                process.end(Cause.MALFORMED)
                return
            self._process = process
            self._free.set()

    def _note_death(self, process: GeneratorProcess) -> None:
        code = process.code or 0
        self._metrics.generator_deaths.labels(str(process.cause)).inc()
        logs.log.error(
            logs.GENERATOR_DIED,
            pid=process.pid,
            cause=str(process.cause),
            code=process.code,
            signal=signal.Signals(-code).name if code < 0 and -code in signal.valid_signals() else None,
            at_work=process.at_work,
        )
