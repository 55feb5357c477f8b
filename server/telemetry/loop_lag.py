"""Keeps the event loop's stops short, and tells of the longest.

A held poll is many small objects that live for 30 s and make no cycles. With its default thresholds the garbage
collector walks over all of them again and again: at 10,000 polls held by coroutines a full collection stops the loop
for 0.4 s. So it is run rarely, and what has lived for a while is taken out of its sight (`gc.freeze`).
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Final

# Young objects are looked at every so many allocations, old ones after so many looks; the defaults are 700, 10, 10.
THRESHOLDS: Final = (50_000, 20, 100)
FREEZE_SECONDS: Final = 2.0
# What is frozen as garbage stays garbage. So now and then, while few polls would have to be walked over, all is looked at.
THAW_SECONDS: Final = 600.0
_FEW_HELD: Final = 1000
_BEAT_SECONDS: Final = 0.05
_REMEMBERED_SECONDS: Final = 60.0


def tame_collector() -> None:
    """Begin: what exists now lives as long as the process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


async def keep_tame(held: Callable[[], int]) -> None:
    """Freeze what has lived for a while, for ever; `held` tells how many polls are held."""
    loop = asyncio.get_running_loop()
    thaw_at = loop.time() + THAW_SECONDS
    while True:
        await asyncio.sleep(FREEZE_SECONDS)
        if loop.time() >= thaw_at and held() < _FEW_HELD:
            gc.unfreeze()
            gc.collect()
            thaw_at = loop.time() + THAW_SECONDS
        else:
            gc.collect(0)  # the garbage of the last seconds, which are all that isn't frozen
        gc.freeze()


class Pulse:
    """Beats twenty times a second, and notices when a beat comes late: the loop stood still for so long."""

    def __init__(self) -> None:
        """Begin with no stop."""
        self._stops: list[tuple[float, float]] = []

    async def beat(self) -> None:
        """Beat for ever."""
        while True:
            due = time.monotonic() + _BEAT_SECONDS  # a loop's own clock may stand still within a turn (uvloop's does)
            await asyncio.sleep(_BEAT_SECONDS)
            now = time.monotonic()
            self.note(now, now - due)

    def note(self, now: float, late: float) -> None:
        """Remember by how many seconds a beat was late; a shorter stop than a later one needn't be known."""
        while self._stops and self._stops[-1][1] <= late:
            self._stops.pop()
        self._stops.append((now, late))
        while self._stops[0][0] < now - _REMEMBERED_SECONDS:
            del self._stops[0]

    @property
    def longest_stop_seconds(self) -> float:
        """For how long the loop stood still at most, within the last minute."""
        return self._stops[0][1] if self._stops else 0.0
