"""How much work there is: for operators, and for nobody's task in particular."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from server.errors import DatabaseUnavailable
from server.storage.database import Database


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many tasks wait, and how many are being made, in all processes together."""

    pending: int
    processing: int


# Counting takes no more than this share of anybody's time: with 200,000 tasks waiting it takes 10 to 50 ms.
_SHARE: Final = 0.01
_LONGEST_SECONDS: Final = 60.0


class BacklogCount:
    """Counts what isn't finished, at most once in a while, however many ask; the longer it takes, the more rarely."""

    def __init__(self, database: Database, *, every_seconds: float = 2.0) -> None:
        """Use this database; a count is good for so long, or for a hundred times as long as it took."""
        self._database = database
        self._every_seconds = every_seconds
        self._counting: asyncio.Future[Backlog | None] | None = None
        self._good_until = 0.0

    async def read(self) -> Backlog | None:
        """Return a count that isn't old, or None if Postgres can't be reached."""
        now = time.monotonic()
        if self._counting is None or (self._counting.done() and now >= self._good_until):
            self._counting = asyncio.ensure_future(self._count(now))
        return await asyncio.shield(self._counting)  # whoever asked first may leave before it is there

    async def _count(self, started: float) -> Backlog | None:
        self._good_until = started + self._every_seconds
        try:
            count = await self._database.fetch_one("count_unfinished", Backlog, retry=True)
        except DatabaseUnavailable:
            return None  # logged where it was raised
        now = time.monotonic()
        self._good_until = now + max(self._every_seconds, min((now - started) / _SHARE, _LONGEST_SECONDS))
        return count
