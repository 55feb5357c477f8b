"""Workers: they claim tasks, have a generator make the picture, and write down how far it is.

At least once, with a fence: a worker holds a task by a lease that it keeps renewing. One that is killed or frozen
loses it, another takes the task over, and whatever the first one writes later is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from typing import Final, Self

from server.config import GenerationSettings
from server.errors import (
    DatabaseUnavailable,
    GenerationCanceled,
    GenerationError,
    LeaseLost,
    PicturesUnavailable,
    StorageError,
)
from server.generation.generator import SIZES, GenerationRequest, Generator, Picture, Step, hold_to_contract
from server.generation.picture import check_picture
from server.generation.queue_pause import LONGEST_SECONDS, QueuePause
from server.storage.image_store import ImageStore
from server.storage.images import reference_name, result_name
from server.storage.tasks import Claim, WorkQueue
from server.telemetry import logs
from server.telemetry.metrics import Metrics

# Progress is written at most this often for each task; each write is a commit with a notification.
_REPORT_SECONDS: Final = 1.0
_UNREACHABLE_PAUSE_SECONDS: Final = 1.0
_LONGEST_POSTPONEMENT_SECONDS: Final = 60.0


def worker_name() -> str:
    """Return a name that no other worker has."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


class Worker:
    """Processes one task at a time. `wake` tells it to look into the queue."""

    def __init__(
        self,
        queue: WorkQueue,
        generator: Generator,
        images: ImageStore,
        settings: GenerationSettings,
        metrics: Metrics,
        *,
        result_url: Callable[[str], str],
    ) -> None:
        """`result_url` returns the URL of a task's picture."""
        self._queue = queue
        self._generator = generator
        self._images = images
        self._settings = settings
        self._metrics = metrics
        self._result_url = result_url
        self._awake = asyncio.Event()
        self._pause = QueuePause()
        self._postponed = 0  # in a row

    def wake(self) -> None:
        """Look into the queue now."""
        self._awake.set()

    async def run(self) -> None:
        """Process tasks until canceled; then the current task is returned to the queue."""
        logs.log.info(logs.WORKER_STARTED)
        try:
            while True:
                try:
                    await self._rest_if_idle(worked=await self._work_once())
                except StorageError as error:
                    logs.log.warning(logs.WORKER_FAILED, error=str(error))
                    await asyncio.sleep(_UNREACHABLE_PAUSE_SECONDS)
        finally:
            logs.log.info(logs.WORKER_STOPPED)

    async def _rest_if_idle(self, *, worked: bool) -> None:
        if worked:
            self._pause.reset()
            return
        pause = self._pause.until(await self._queue.next_due())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._awake.wait()

    async def _work_once(self) -> bool:
        self._awake.clear()  # ours alone; a notification from here on makes us look once more
        for task_id, status in (await self._queue.rescue()).items():
            logs.log.warning(logs.TASK_RESCUED, task_id=task_id, status=status)
        if not self._images.usable:  # a worker elsewhere may have a folder that is
            await asyncio.sleep(_UNREACHABLE_PAUSE_SECONDS)
            return True
        if not await self._is_generator_ready():
            return True
        claim = await self._queue.claim()
        if claim is None:
            return False
        logs.log.info(logs.TASK_CLAIMED, task_id=claim.task_id, attempt=claim.attempt)
        started = time.monotonic()
        outcome = await self._do(claim)
        seconds = time.monotonic() - started
        self._metrics.task_processing_seconds.labels(outcome).observe(seconds)
        logs.log.info(
            logs.TASK_FINISHED,
            task_id=claim.task_id,
            attempt=claim.attempt,
            outcome=outcome,
            took_ms=round(seconds * 1000),
        )
        return True

    async def _is_generator_ready(self) -> bool:
        """Wait for it, for a while: a task that was claimed meanwhile would lose time, or an attempt."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_SECONDS):
                await self._generator.ready()
                return True
        return False

    async def _do(self, claim: Claim) -> str:
        """Make the picture of a claimed task and write its end; returns how it ended."""
        try:
            return await self._try(claim)
        except LeaseLost:
            self._metrics.leases_lost.inc()
            logs.log.warning(logs.LEASE_LOST, task_id=claim.task_id, attempt=claim.attempt)
            return "lost"
        except PicturesUnavailable:  # logged and counted where it was raised
            return await self._postpone(claim)
        except asyncio.CancelledError:
            with contextlib.suppress(StorageError, LeaseLost):
                await self._queue.release(claim)
                logs.log.info(logs.TASK_RELEASED, task_id=claim.task_id)
            raise

    async def _try(self, claim: Claim) -> str:
        try:
            async with _Lease(self._queue, claim, self._settings.lease_seconds / 3) as lease:
                picture = await self._generate(claim, lease)
                await asyncio.to_thread(check_picture, picture.content)
                await self._images.put(result_name(claim.task_id, claim.attempt), picture.content)
                canceled = await self._complete(claim)
        except GenerationCanceled:
            await self._queue.stop(claim)
            return "canceled"
        except (LeaseLost, StorageError):
            raise
        except GenerationError as error:
            return await self._retry_or_fail(claim, str(error), retryable=error.retryable)
        except Exception as error:  # noqa: BLE001 - a generator's fault ends its task, not the worker
            logs.log.error(logs.GENERATOR_CRASHED, task_id=claim.task_id, exc_info=error)
            return await self._retry_or_fail(claim, "The generator failed unexpectedly", retryable=True)
        self._postponed = 0
        if canceled:
            with contextlib.suppress(PicturesUnavailable):  # the task has ended; these go with it
                await self._images.delete_task(claim.task_id)
        return "canceled" if canceled else "completed"

    async def _complete(self, claim: Claim) -> bool:
        """Write the end, for as long as the task is ours: the picture is there, and isn't made twice for want of a row."""
        unheard = False
        while True:
            try:
                return await self._queue.complete(claim, self._result_url(claim.task_id))
            except LeaseLost:
                if not unheard:  # else an earlier try may have ended it, with this picture
                    with contextlib.suppress(PicturesUnavailable):
                        await self._images.delete(result_name(claim.task_id, claim.attempt))
                raise
            except DatabaseUnavailable as error:
                unheard = True
                logs.log.warning(logs.WORKER_FAILED, task_id=claim.task_id, error=str(error))
                await asyncio.sleep(_UNREACHABLE_PAUSE_SECONDS)

    async def _postpone(self, claim: Claim) -> str:
        """Give the task back, because its pictures can't be stored or read: that is no fault of its own."""
        doublings, self._postponed = self._postponed, min(self._postponed + 1, 16)
        delay = min(self._settings.retry_seconds * 2**doublings, _LONGEST_POSTPONEMENT_SECONDS)
        message = "Pictures can't be stored just now. This one will be tried again."
        await self._queue.release(claim, message=message, delay_seconds=delay)
        logs.log.warning(logs.TASK_RELEASED, task_id=claim.task_id, delay_seconds=delay)
        return "postponed"

    async def _retry_or_fail(self, claim: Claim, message: str, *, retryable: bool) -> str:
        if not retryable or claim.tries >= self._settings.max_attempts:
            await self._queue.fail(claim, message)
            return "failed"
        delay = self._settings.retry_seconds * 2 ** (claim.tries - 1)
        await self._queue.retry(claim, f"{message.rstrip('.')}. Trying again.", delay)
        self._metrics.task_retries.inc()
        logs.log.info(logs.TASK_RETRIED, task_id=claim.task_id, attempt=claim.attempt, delay_seconds=delay)
        return "retried"

    async def _generate(self, claim: Claim, lease: _Lease) -> Picture:
        request = GenerationRequest(
            task_id=claim.task_id,
            type=claim.type,
            prompt=claim.prompt,
            seed=claim.seed,
            size=SIZES[claim.size],
            reference=await self._reference(claim),
        )
        async with contextlib.aclosing(hold_to_contract(self._generator.generate(request))) as pieces:
            with lease.ending_work():
                async for piece in pieces:
                    if isinstance(piece, Picture):
                        return piece
                    lease.report(piece)
        raise GenerationError("The generator ended without a picture")

    async def _reference(self, claim: Claim) -> bytes | None:
        if not claim.has_reference:
            return None
        content = await self._images.get(reference_name(claim.task_id))
        if content is None:
            raise GenerationError("The reference image is gone", retryable=False)
        return content


class _Lease:
    """Keeps a claimed task beside the work: renews the lease, writes progress, and learns when to stop."""

    def __init__(self, queue: WorkQueue, claim: Claim, renew_seconds: float) -> None:
        self._queue = queue
        self._claim = claim
        self._renew_seconds = renew_seconds
        self._step: Step | None = None
        self._news = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._ended: GenerationError | None = None
        self._working: asyncio.Task[object] | None = None

    async def __aenter__(self) -> Self:
        self._keeping = asyncio.create_task(self._keep(), name="lease")
        return self

    async def __aexit__(self, *_error: object) -> None:
        assert self._keeping is not None
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)

    def report(self, step: Step) -> None:
        """Have a step written soon; of several within a second, the last.

        Raises:
            GenerationCanceled: the owner wants the task to stop.
            LeaseLost: it is another worker's now.
        """
        if self._ended is not None:
            raise self._ended
        if step.progress > 0:  # the claim has told of the beginning
            self._step = step
            self._news.set()

    @contextlib.contextmanager
    def ending_work(self) -> Iterator[None]:
        """Cancel the block as soon as the task isn't to be made any more, and raise why.

        Raises:
            GenerationCanceled: the owner wants the task to stop.
            LeaseLost: it is another worker's now.
        """
        working = self._working = asyncio.current_task()
        assert working is not None, "within a coroutine"
        try:
            yield
        except asyncio.CancelledError:
            if self._ended is None or working.uncancel() > 0:  # the worker itself was told to stop
                raise
            raise self._ended from None
        finally:
            self._working = None

    def _end(self, reason: GenerationError) -> None:
        self._ended = reason
        if self._working is not None:
            self._working.cancel()

    async def _keep(self) -> None:
        while self._ended is None:
            await asyncio.sleep(min(_REPORT_SECONDS, self._renew_seconds))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._renew_seconds):
                    await self._news.wait()
            self._news.clear()  # ours alone
            try:
                if await self._write():
                    self._end(GenerationCanceled())
            except LeaseLost as error:
                self._end(error)
            except StorageError:
                continue  # logged where it was raised; the next try comes before the lease runs out

    async def _write(self) -> bool:
        step, self._step = self._step, None
        if step is None:
            return await self._queue.renew(self._claim)
        return await self._queue.report(self._claim, step.progress, step.stage, step.message)
