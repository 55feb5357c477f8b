"""How full the queue is in which Postgres keeps notifications until every listener has read them."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Final

from server.errors import StorageError
from server.storage.database import Database
from server.telemetry import logs
from server.telemetry.metrics import Metrics

SAMPLE_SECONDS: Final = 60.0
# So full it gets only behind a session that listens and doesn't read, such as one idle in a transaction.
FILLING_USAGE: Final = 0.1


@dataclass(frozen=True, slots=True)
class _Sample:
    usage: float


class NotificationQueue:
    """Samples the queue each minute: once it is full, every update that notifies fails.

    Asking is half of the cure: it makes Postgres discard what all have read (PostgreSQL documentation, NOTIFY).

    Attributes:
        usage: the share that was occupied when it was last asked for, 0..1.
    """

    def __init__(self, database: Database, metrics: Metrics) -> None:
        """Ask this database, and have the metrics tell."""
        self._database = database
        self.usage = 0.0
        metrics.gauge("longpoll_notification_queue_usage", "Share of it in use, asked each minute", lambda: self.usage)

    async def run(self) -> None:
        """Sample for ever."""
        while True:
            with contextlib.suppress(StorageError):  # logged where it is raised
                await self.sample()
            await asyncio.sleep(SAMPLE_SECONDS)

    async def sample(self) -> None:
        """Ask once, and say so if the queue is filling.

        Raises:
            StorageError: it can't be asked.
        """
        sample = await self._database.fetch_one("notification_queue", _Sample, retry=True)
        assert sample is not None
        self.usage = sample.usage
        if self.usage >= FILLING_USAGE:
            logs.log.warning(logs.QUEUE_FILLING, usage=round(self.usage, 3))
