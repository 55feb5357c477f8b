"""The figures that operators ask for first, logged now and then for those who read logs rather than graphs."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from server.telemetry import logs
from server.telemetry.metrics import Metrics


class Totals(NamedTuple):
    """The counters at one moment of the monotonic clock."""

    at: float
    polls: float
    timeouts: float
    requests: float
    errors: float
    tasks: float
    failed: float
    seconds: float


class Snapshots:
    """Rates and means of the interval between two snapshots."""

    def __init__(self, metrics: Metrics) -> None:
        """The first interval begins now."""
        self._metrics = metrics
        self._last = self._count()

    def take(self) -> dict[str, float | None]:
        """Return the figures since the last call. A mean or a rate of nothing is None; an error is a reply of 500 or more."""
        now, last = self._count(), self._last
        self._last = now
        new = Totals(*(after - before for after, before in zip(now, last, strict=True)))
        return {
            "interval_seconds": round(new.at, 3),
            "polls_per_second": _share(new.polls, new.at),
            "poll_timeouts": new.timeouts,
            "poll_timeout_rate": _share(new.timeouts, new.polls),
            "requests_per_second": _share(new.requests, new.at),
            "error_rate": _share(new.errors, new.requests),
            "tasks_processed": new.tasks,
            "task_failure_rate": _share(new.failed, new.tasks),
            "mean_processing_seconds": _share(new.seconds, new.tasks),
            "mean_processing_seconds_since_start": _share(now.seconds, now.tasks),
        }

    def _count(self) -> Totals:
        polls, requests = self._metrics.polls.counts, self._metrics.requests.counts
        errors = sum(count for (_route, _method, status), count in requests.items() if int(status) >= 500)
        tasks, failed, seconds = self._metrics.ended_tasks()
        at, timeouts = time.monotonic(), polls.get(("timeout",), 0)
        return Totals(at, sum(polls.values()), timeouts, sum(requests.values()), errors, tasks, failed, seconds)


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None


async def log_snapshots(metrics: Metrics, every_seconds: float) -> None:
    """Log all plain figures every so many seconds, for ever."""
    snapshots = Snapshots(metrics)
    while True:
        await asyncio.sleep(every_seconds)
        logs.log.info(logs.METRICS_SNAPSHOT, **metrics.summary(), **snapshots.take())
