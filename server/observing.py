"""What is kept of each request: one log line, and its place in the metrics."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from server import config, logs
from server.metrics import Metrics
from server.storage.tasks import Task
from server.storage.users import User

POLL_ROUTES: Final = frozenset({"/api/generate/status", "/api/generate/status/batch"})
CLIENT_GONE: Final = "client_gone"
STATUS_OF_NOBODY: Final = 499  # the client has gone, and nobody reads the reply
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET_ROUTES: Final = frozenset({"/healthz", "/readyz", "/metrics", "/static/{filename}"})


@dataclass(slots=True)
class Trace:
    """What the one log line of a request will say, filled in on the way."""

    request_id: str
    user: User | None = None
    task_id: str | None = None
    outcome: str | None = None
    held_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)


def new_request_id() -> str:
    """Return a number that stands for one request: nobody else's, but no secret either."""
    return f"{random.getrandbits(64):016x}"


class Observer:
    """Counts and logs. `clock_offset`: how far the database's clock is behind ours, in seconds."""

    def __init__(self, metrics: Metrics, logging: config.Logging, clock_offset: Callable[[], float]) -> None:
        """Count in these metrics."""
        self.metrics = metrics
        self._logging = logging
        self._clock_offset = clock_offset
        self._finished: list[tuple[Trace, str, str, str, int, float]] = []

    def request_finished(self, trace: Trace, method: str, route: str, path: str, status: int, seconds: float) -> None:
        """Take note of a reply; `seconds` are all that the request took, the time it was held among them.

        It is written down behind all replies of this turn of the loop: whoever waits for theirs is told first.
        """
        if not self._finished:
            asyncio.get_running_loop().call_soon(self._write_down)
        self._finished.append((trace, method, route, path, status, seconds))

    def poll_finished(self, trace: Trace, outcome: str, held_seconds: float, changed: Sequence[Task] = ()) -> None:
        """Take note of how a poll ended; `changed`: what it tells that the client hadn't seen."""
        trace.outcome, trace.held_seconds = outcome, held_seconds
        if held_seconds:
            now = time.time() - self._clock_offset()
            for task in changed:
                self.metrics.wake_latency_seconds.observe(max(now - task.updated_at, 0.0))

    def _write_down(self) -> None:
        finished, self._finished = self._finished, []
        metrics, lines, held = self.metrics, [], []
        took_by_route: defaultdict[str, list[float]] = defaultdict(list)
        for trace, method, route, path, status, seconds in finished:
            held_seconds, outcome = trace.held_seconds, trace.outcome
            took = seconds - held_seconds
            known = method if method in _METHODS else "other"  # strangers must not invent time series
            metrics.requests.counts[route, known, status] += 1
            took_by_route[route].append(took)
            if outcome is not None:
                metrics.polls.counts[outcome,] += 1
                held.append(held_seconds)
                if outcome == "timeout" and random.random() >= self._logging.timeout_sample:
                    continue
            elif route in _QUIET_ROUTES and status < 400:
                continue
            lines.append(
                {
                    "request_id": trace.request_id,
                    "method": method,
                    "path": path,
                    "status": status,
                    "user_id": trace.user.user_id if trace.user else None,
                    "task_id": trace.task_id,
                    "outcome": outcome,
                    "held_ms": _tenths(held_seconds * 1000),
                    "took_ms": _tenths(took * 1000),
                    "event": logs.POLL_FINISHED if route in POLL_ROUTES else logs.REQUEST_FINISHED,
                }
            )
        metrics.hold_seconds.observe(*held)
        for route, values in took_by_route.items():
            metrics.request_seconds.observe(*values, label=route)
        logs.log_replies(lines)


def _tenths(value: float) -> float:
    """Round to one digit: `round` takes twice as long, and each line has two."""
    return int(value * 10 + 0.5) / 10
