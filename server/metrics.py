"""What is counted. Everything a process measures hangs on one object, made once and handed around."""

from __future__ import annotations

import math
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST

_HOLDS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 15, 20, 25, 28, 29, 30, 45, 60)
_WAKES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_WORK = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)


class Metrics:
    """The counters, histograms and gauges of one process, in a registry of their own."""

    def __init__(self) -> None:
        """Make them all, at zero."""
        self.registry = registry = CollectorRegistry()
        self.polls = Counter("longpoll_polls", "Polls answered, by how they ended", ["outcome"], registry=registry)
        self.hold_seconds = Histogram(
            "longpoll_poll_hold_seconds", "How long polls were held", buckets=_HOLDS, registry=registry
        )
        self.wake_latency_seconds = Histogram(
            "longpoll_wake_latency_seconds", "From commit to reply, for held polls", buckets=_WAKES, registry=registry
        )
        self.missed_notify_repairs = Counter(
            "longpoll_missed_notify_repairs", "Changes that no notification told of", registry=registry
        )
        self.malformed_notifications = Counter(
            "longpoll_malformed_notifications", "Notifications that could not be read", registry=registry
        )
        self.board_reads = Counter("longpoll_board_reads", "Batched reads of watched tasks", registry=registry)
        self.listener_reconnects = Counter(
            "longpoll_listener_reconnects", "Attempts to get the LISTEN connection back", registry=registry
        )
        self.requests = Counter(
            "longpoll_http_requests", "Requests answered", ["route", "method", "code"], registry=registry
        )
        self.request_seconds = Histogram(
            "longpoll_http_request_seconds", "Time to answer, without the time held", ["route"], registry=registry
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
        self.dead_background_tasks = Gauge(
            "longpoll_dead_background_tasks", "Background tasks that ended by an error", registry=registry
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
