"""All metrics of a process, on one object that is made once and passed to whoever counts."""

from __future__ import annotations

import itertools
import math
import operator
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.utils import floatToGoString

CONTENT_TYPE = CONTENT_TYPE_LATEST

_HOLDS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 15, 20, 25, 28, 29, 30, 45, 60)
_WAKES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ANSWERS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_WORK = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_MOST_UNSORTED = 1000


class FastCounter:
    """A counter by labels. The library's own cost a microsecond each; on the way of a poll there are five.

    One thread counts: that of the event loop.
    """

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        """`name`: without `_total`."""
        self._name, self._text, self._labels = name, text, labels
        self.counts: defaultdict[tuple[str | int, ...], int] = defaultdict(int)
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield the samples for prometheus_client."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, count in self.counts.items():
            family.add_metric([str(value) for value in values], count)
        yield family


class FastHistogram:
    """A histogram by one label or none, counted as `FastCounter` counts.

    To sort a value into its bucket is left for later, when there are many, or somebody asks.
    """

    def __init__(
        self, name: str, text: str, bounds: Sequence[float], registry: CollectorRegistry, label: str | None = None
    ) -> None:
        """`bounds`: the inclusive upper bounds, ascending."""
        self._name, self._text, self._label, self._bounds = name, text, label, bounds
        self._counts: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(bounds) + 1))
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._unsorted: defaultdict[str, list[float]] = defaultdict(list)
        if not label:
            self._counts[""]  # shown before the first value, too
        registry.register(self)

    def observe(self, values: Sequence[float], label: str = "") -> None:
        """Observe these values."""
        unsorted = self._unsorted[label]
        unsorted += values
        if len(unsorted) >= _MOST_UNSORTED:
            self._sort()

    def _sort(self) -> None:
        for label, values in self._unsorted.items():
            values.sort()
            # How many are there up to each bound: so Prometheus counts, too.
            counts = [*map(bisect_right, itertools.repeat(values), self._bounds), len(values)]
            self._counts[label] = [*map(operator.add, self._counts[label], counts)]
            self._sums[label] += math.fsum(values)
        self._unsorted.clear()

    def collect(self) -> Iterator[Metric]:
        """Yield the samples for prometheus_client."""
        self._sort()
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label] if self._label else [])
        for label, counts in self._counts.items():
            names = [*map(floatToGoString, self._bounds), "+Inf"]
            buckets = list(zip(names, counts, strict=True))
            family.add_metric([label] if self._label else [], buckets, self._sums[label])
        yield family


class Metrics:
    """The counters, histograms and gauges of one process, in a registry of their own."""

    def __init__(self) -> None:
        """Create all metrics, at zero."""
        self.registry = registry = CollectorRegistry()
        self.polls = FastCounter("longpoll_polls", "Polls answered, by how they ended", ["outcome"], registry)
        self.hold_seconds = FastHistogram("longpoll_poll_hold_seconds", "How long polls were held", _HOLDS, registry)
        self.wake_latency_seconds = FastHistogram(
            "longpoll_wake_latency_seconds", "From commit to reply, for held polls", _WAKES, registry
        )
        self.missed_notify_repairs = Counter(
            "longpoll_missed_notify_repairs", "Changes that no notification told of", registry=registry
        )
        self.malformed_notifications = Counter(
            "longpoll_malformed_notifications", "Notifications that could not be read", registry=registry
        )
        self.board_reads = Counter("longpoll_board_reads", "Batched reads of watched tasks", registry=registry)
        self.failed_reads = Counter(
            "longpoll_failed_reads", "Reads and sweeps of watched tasks that failed", registry=registry
        )
        self.unhandled_errors = Counter(
            "longpoll_unhandled_errors", "Errors that nobody expected, outside of any request", registry=registry
        )
        self.listener_reconnects = Counter(
            "longpoll_listener_reconnects", "Attempts to get the LISTEN connection back", registry=registry
        )
        self.requests = FastCounter(
            "longpoll_http_requests", "Requests answered", ["route", "method", "code"], registry
        )
        self.request_seconds = FastHistogram(
            "longpoll_http_request_seconds", "Time to answer, without the time held", _ANSWERS, registry, "route"
        )
        self.malformed_requests = Counter(
            "longpoll_malformed_requests",
            "Requests that were not HTTP, or expected what can't be had",
            registry=registry,
        )
        self.crashes = Counter(
            "longpoll_request_crashes", "Requests that ended in an unforeseen error", registry=registry
        )
        self.task_processing_seconds = Histogram(
            "longpoll_task_processing_seconds",
            "From claim to end of a task",
            ["outcome"],
            buckets=_WORK,
            registry=registry,
        )
        self.task_retries = Counter("longpoll_task_retries", "Tasks put back into the queue", registry=registry)
        self.leases_lost = Counter("longpoll_leases_lost", "Writes refused for want of a lease", registry=registry)
        self.generator_deaths = Counter(
            "longpoll_generator_deaths",
            "Processes of generators that ended, or had to be ended",
            ["cause"],
            registry=registry,
        )
        self.cleaning_failures = Counter(
            "longpoll_cleaning_failures", "Parts of the hourly clean-up that failed", registry=registry
        )
        self.dead_background_tasks = Gauge(
            "longpoll_dead_background_tasks",
            "Background tasks that ended by an error and wait to be started again",
            registry=registry,
        )
        self.background_restarts = Counter(
            "longpoll_background_restarts", "Background tasks started again after an error", registry=registry
        )

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when somebody asks for it."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def exposition(self) -> bytes:
        """Return everything in the text format of Prometheus."""
        return generate_latest(self.registry)

    def value(self, name: str) -> float:
        """Return the figure of this name, 0 if it has never been counted."""
        return self.registry.get_sample_value(name) or 0.0

    def polls_by_outcome(self) -> dict[str, int]:
        """Return how many polls ended in which way."""
        return {
            sample.labels["outcome"]: int(sample.value)
            for family in self.polls.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        }

    def wake_quantile(self, share: float) -> float | None:
        """Return the seconds from commit to reply that this share of the wakes took at most; None before the first.

        Read from the histogram as Prometheus does: within a bucket, wakes count as spread evenly.
        """
        (family,) = self.wake_latency_seconds.collect()
        buckets = [(float(s.labels["le"]), s.value) for s in family.samples if s.name.endswith("_bucket")]
        wanted = share * buckets[-1][1]
        if not wanted:
            return None
        lower = below = 0.0
        for upper, count in buckets:
            if count >= wanted:
                share_of_bucket = (wanted - below) / (count - below)
                return lower if math.isinf(upper) else lower + (upper - lower) * share_of_bucket
            lower, below = upper, count
        raise AssertionError("the last bucket holds all wakes")

    def summary(self) -> dict[str, float]:
        """Return the plain figures (no histogram buckets) for one log line."""
        return {
            sample.name + "".join(f".{value}" for value in sample.labels.values()): sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if family.type in {"counter", "gauge"}
            and not sample.name.endswith("_created")
            and not sample.name.startswith("longpoll_http_")
        }

    def ended_tasks(self) -> tuple[int, int, float]:
        """Return how many attempts at a task have ended, how many of them failed, and the seconds of all together."""
        count, failed, seconds = 0, 0, 0.0
        for family in self.task_processing_seconds.collect():
            for sample in family.samples:
                if sample.name.endswith("_sum"):
                    seconds += sample.value
                elif sample.name.endswith("_count"):
                    count += int(sample.value)
                    failed += int(sample.value) if sample.labels["outcome"] == "failed" else 0
        return count, failed, seconds
