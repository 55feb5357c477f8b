"""The figures of a run: their names, units and order, and how they are written to a file and compared."""

from __future__ import annotations

import datetime as dt
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import orjson

from server.errors import LoadTestError


class Kind(NamedTuple):
    """How a figure is called and measured."""

    label: str
    unit: str = ""
    digits: int = 0


KINDS: Final = {
    "clients": Kind("Clients"),
    "tasks": Kind("Tasks"),
    "held": Kind("Polls held"),
    "connects_per_second": Kind("Connects", "/s"),
    "kilobytes_per_held": Kind("Memory for each held poll (PSS)", "KB", 2),
    "idle_cpu_percent": Kind("CPU while they are held", "%", 1),
    "changes": Kind("Changes committed"),
    "changes_per_second": Kind("Changes", "/s", 1),
    "wakes": Kind("Wakes"),
    "wake_p50_ms": Kind("Wake, median", "ms", 2),
    "wake_p90_ms": Kind("Wake, 90 %", "ms", 2),
    "wake_p99_ms": Kind("Wake, 99 %", "ms", 2),
    "wake_max_ms": Kind("Wake, slowest", "ms", 2),
    "wake_sent_p50_ms": Kind("Wake, median, from sending the change", "ms", 2),
    "first_ms": Kind("First reply behind the commit", "ms", 1),
    "median_ms": Kind("Median reply", "ms", 1),
    "last_ms": Kind("Last reply", "ms", 1),
    "wakes_per_second": Kind("Wakes", "/s"),
    "cpu_us_per_wake": Kind("Server CPU for each wake", "µs", 1),
    "repolls_per_second": Kind("Next polls taken in", "/s"),
    "cpu_us_per_repoll": Kind("Server CPU for each next poll", "µs", 1),
    "replies_per_second": Kind("Replies", "/s"),
    "requests": Kind("Requests"),
    "statements": Kind("Statements sent to Postgres"),
    "cpu_us_per_reply": Kind("Server CPU for each reply and next poll", "µs", 1),
    "cpu_us_per_client_second": Kind("Server CPU for each client and second", "µs", 1),
    "reply_p50_ms": Kind("Reply to a poll that doesn't wait, median", "ms", 2),
    "reply_p99_ms": Kind("Reply to a poll that doesn't wait, 99 %", "ms", 2),
    "staleness_mean_ms": Kind("From commit until a client knows, mean", "ms", 1),
    "server_cpu_seconds": Kind("CPU of the server", "s", 2),
    "tester_cpu_seconds": Kind("CPU of this tester", "s", 2),
    "tester_stop_ms": Kind("Longest stop of this tester", "ms", 1),
    "errors": Kind("Errors"),
    "without_reason": Kind("Polls that ended for no reason"),
    "late": Kind("Late wakes"),
    "repaired": Kind("Wakes repaired by the sweep"),
    "foreign": Kind("Changes by somebody else"),
    "lost": Kind("Lost wakes"),
}


@dataclass(slots=True)
class Figures:
    """What a run has found out. Latencies in milliseconds, for the histogram and the plots; the rest by name."""

    url: str
    pattern: str
    values: dict[str, float] = field(default_factory=dict)
    wakes_ms: list[float] = field(default_factory=list)
    rounds: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    date: str = field(default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds"))
    machine: str = field(default_factory=lambda: f"{platform.platform()}, {os.cpu_count()} CPUs")

    @property
    def passed(self) -> bool:
        """Whether nothing went wrong: every poll was held and no wake was lost."""
        wrong = ("lost", "errors", "without_reason", "repaired")
        return not any(self.values.get(name) for name in wrong) and self.values["held"] == self.values["clients"]

    def describe(self) -> dict[str, Any]:
        """Return everything, for a file; the latencies as percentiles that a plot can be drawn from."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in {"values", "wakes_ms"}}
        figures = {name: round(value, 4) for name, value in self.values.items()}
        curve = {str(share): round(percentile(self.wakes_ms, share), 3) for share in _CURVE} if self.wakes_ms else {}
        return {**plain, "passed": self.passed, "figures": figures, "wake_percentiles_ms": curve}

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        path.write_bytes(orjson.dumps(self.describe(), option=orjson.OPT_INDENT_2))


@dataclass(frozen=True, slots=True)
class Earlier:
    """The figures of an earlier run, to compare with."""

    figures: dict[str, float]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what an earlier run has written.

        Raises:
            LoadTestError: it isn't such a file.
        """
        try:
            return cls({str(name): float(value) for name, value in orjson.loads(path.read_bytes())["figures"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoadTestError(f"{path} can't be compared with: it isn't what --json wrote ({error})") from error

    def ratio(self, name: str, value: float) -> float | None:
        """Return how many times the earlier figure this one is; None if there is none to compare with."""
        before = self.figures.get(name)
        return value / before if before else None


_CURVE: Final = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that so many percent of them don't exceed (the nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * share / 100) - 1, 0)]
