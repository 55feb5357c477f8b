"""Decoding of uploads in threads, with a bound on how many wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from aiohttp import web

from server.errors import Unavailable

T = TypeVar("T")

# A decoded image of 16 megapixels takes 64 MiB; what waits here takes at most 10 MiB each.
_THREADS: Final = 2
_MAX_WAITING: Final = 16


class Uploads:
    """A few threads, and a bound on how much may wait for them."""

    def __init__(self) -> None:
        """Start with idle threads."""
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="upload")
        self._waiting = 0

    async def run(self, work: Callable[[bytes], T], content: bytes) -> T:
        """Do the work in a thread.

        Raises:
            Unavailable: too much is waiting already.
        """
        if self._waiting >= _MAX_WAITING:
            raise Unavailable("Too many images are being read just now.", retry_after=2)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work, content)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Stop the threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)


UPLOADS: Final = web.AppKey("uploads", Uploads)
