"""The record of each request, which becomes one log line and some metrics."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from server import config
from server.telemetry import logs
from server.telemetry.metrics import Metrics

POLL_ROUTES: Final = frozenset({"/api/generate/status", "/api/generate/status/batch"})
CLIENT_GONE: Final = "client_gone"
CLIENT_CLOSED_REQUEST: Final = 499  # the client has gone, and nobody reads the reply
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET_ROUTES: Final = frozenset(
    {"/healthz", "/readyz", "/metrics", "/static/{filename}", "/static/{folder}/{filename}"}
)


Held: TypeAlias = tuple[str | None, float, Sequence[float]]
"""How a poll ended, for how many seconds it was held, and when the changes that it told of were committed.

The times are of the database's clock, in seconds since 1970. None for how it ended: the request wasn't one for a poll, but held all the same.
"""


class RequestRecord:
    """The fields of a request's log line, filled in while it is handled. Each held poll keeps one."""

    __slots__ = ("held", "request_id", "started", "task_id", "user_id")

    def __init__(self, user_id: str | None = None, task_id: str | None = None) -> None:
        """Begin with a random request id: unique, but not secret."""
        self.request_id = random.getrandbits(64).to_bytes(8).hex()
        self.user_id = user_id
        self.task_id = task_id
        self.held: Held = None, 0.0, ()
        self.started = time.perf_counter()


class RequestLog:
    """Logs and counts finished requests."""

    def __init__(self, metrics: Metrics, logging: config.LoggingSettings, clock_offset: Callable[[], float]) -> None:
        """`clock_offset` returns by how many seconds the database's clock is behind ours."""
        self.metrics = metrics
        self._logging = logging
        self._clock_offset = clock_offset
        self._finished: list[tuple[RequestRecord, str, str, str, int, float]] = []

    def request_finished(
        self, record: RequestRecord, method: str, route: str, path: str, status: int, seconds: float
    ) -> None:
        """Record a reply. `seconds`: the duration of the request, the hold included.

        Logging and counting are deferred to the next iteration of the loop, behind the other replies of this one.
        """
        if not self._finished:
            asyncio.get_running_loop().call_soon(self._write_down)
        self._finished.append((record, method, route, path, status, seconds))

    def _write_down(self) -> None:
        finished, self._finished = self._finished, []
        groups: defaultdict[tuple[str, str, int, str | None], list[float]] = defaultdict(list)
        holds: list[float] = []
        changes: list[float] = []
        lines = []
        for record, method, route, path, status, seconds in finished:
            outcome, held, told = record.held
            took = seconds - held
            groups[route, method, status, outcome].append(took)
            if outcome is not None:
                holds.append(held)
                if held:
                    changes += told
            if self._is_logged(route, status, outcome):
                lines.append(_line(record, method, route, path, status, took))
        self._count(groups)
        self.metrics.hold_seconds.observe(holds)
        now = time.time() - self._clock_offset()
        self.metrics.wake_latency_seconds.observe([max(now - changed_at, 0.0) for changed_at in changes])
        logs.log_replies(lines)

    def _count(self, groups: Mapping[tuple[str, str, int, str | None], list[float]]) -> None:
        for (route, method, status, outcome), took in groups.items():
            known = method if method in _METHODS else "other"  # strangers must not invent time series
            self.metrics.requests.counts[route, known, status] += len(took)
            self.metrics.request_seconds.observe(took, label=route)
            if outcome is not None:
                self.metrics.polls.counts[outcome,] += len(took)

    def _is_logged(self, route: str, status: int, outcome: str | None) -> bool:
        if outcome == "timeout":
            return random.random() < self._logging.timeout_sample
        return outcome is not None or route not in _QUIET_ROUTES or status >= 400


def _line(record: RequestRecord, method: str, route: str, path: str, status: int, took: float) -> dict[str, object]:
    outcome, held, _ = record.held
    return {
        "request_id": record.request_id,
        "method": method,
        "path": path,
        "status": status,
        "user_id": record.user_id,
        "task_id": record.task_id,
        "outcome": outcome,
        "held_ms": int(held * 10_000 + 0.5) / 10,  # `round` takes twice as long
        "took_ms": int(took * 10_000 + 0.5) / 10,
        "event": logs.POLL_FINISHED if route in POLL_ROUTES else logs.REQUEST_FINISHED,
    }
