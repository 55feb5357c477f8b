"""Lets requests begin one after the other, however many come at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

_BEGUN_AT_ONCE: Final = 32


class Turnstile:
    """Lets so many in each turn of the loop. A crowd would have all of aiohttp's objects made at once, and memory once taken is kept."""

    def __init__(self) -> None:
        """Begin with nobody waiting."""
        self._queue: deque[Callable[[], None]] = deque()

    def admit(self, begin: Callable[[], None]) -> None:
        """Call this in its turn."""
        self._queue.append(begin)
        if len(self._queue) == 1:
            asyncio.get_running_loop().call_soon(self._let_some_in)

    def _let_some_in(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(min(len(self._queue), _BEGUN_AT_ONCE)):
            loop.call_soon(self._queue.popleft())
        if self._queue:
            loop.call_soon(self._let_some_in)
