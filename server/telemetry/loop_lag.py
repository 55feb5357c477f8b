"""Measures for how long the event loop stands still."""

from __future__ import annotations

import asyncio
import time
from typing import Final

_BEAT_SECONDS: Final = 0.05
_REMEMBERED_SECONDS: Final = 60.0


class LoopLag:
    """Wakes up twenty times a second and measures how late: for so long the loop was blocked."""

    def __init__(self) -> None:
        """No stop has been measured yet."""
        self._stops: list[tuple[float, float]] = []

    async def beat(self) -> None:
        """Measure until canceled."""
        while True:
            due = time.monotonic() + _BEAT_SECONDS  # a loop's own clock may stand still within a turn (uvloop's does)
            await asyncio.sleep(_BEAT_SECONDS)
            now = time.monotonic()
            self.note(now, now - due)

    def note(self, now: float, late: float) -> None:
        """Record a delay in seconds, for the maximum of the last minute."""
        while self._stops and self._stops[-1][1] <= late:
            self._stops.pop()
        self._stops.append((now, late))
        while self._stops[0][0] < now - _REMEMBERED_SECONDS:
            del self._stops[0]

    @property
    def longest_stop_seconds(self) -> float:
        """The longest delay within the last minute, in seconds."""
        return self._stops[0][1] if self._stops else 0.0
