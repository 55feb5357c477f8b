"""Waiting for facts: a test that sleeps is slow on a quick machine, and fails on a slow one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

_TICK_SECONDS = 0.01
_LONGEST_TICK_SECONDS = 0.05


async def until(condition: Callable[[], Any] | Callable[[], Awaitable[Any]], seconds: float = 15) -> Any:
    """Wait for a fact: return what the condition returns as soon as that is true; fail if it never is."""
    async with asyncio.timeout(seconds):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.005)


class Stopwatch:
    """Measures how long the block takes. Time in which the machine stood still, or had none for us, doesn't count.

    Of each tick of the loop no more counts than a moment, or what this process has computed meanwhile.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    async def __aenter__(self) -> Self:
        self._ticking = asyncio.create_task(self._tick())
        await asyncio.sleep(0)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._ticking

    async def _tick(self) -> None:
        now, computed = time.monotonic(), time.process_time()
        try:
            while True:
                await asyncio.sleep(_TICK_SECONDS)
                now, computed = self._count(now, computed)
        finally:
            self._count(now, computed)

    def _count(self, before: float, computed_before: float) -> tuple[float, float]:
        now, computed = time.monotonic(), time.process_time()
        self.seconds += min(now - before, max(_LONGEST_TICK_SECONDS, computed - computed_before))
        return now, computed
