"""Measures for how long the event loop stands still."""

from __future__ import annotations

import asyncio
import time
from typing import Final

_BEAT_SECONDS: Final = 0.05
_REMEMBERED_SECONDS: Final = 60.0


class LoopLag:
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
