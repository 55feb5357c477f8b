"""What is kept of each request: counted always, logged where it tells something."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from structlog.testing import capture_logs

from server.config import Config
from server.telemetry import logs
from server.telemetry.metrics import Metrics
from server.telemetry.requests import RequestLog, RequestRecord

ROUTE = "/api/generate/status"


def observer(*, timeout_sample: float = 0.0, clock_offset: float = 0.0) -> RequestLog:
    logging = Config().replace(logging={"timeout_sample": timeout_sample}).logging
    return RequestLog(Metrics(), logging, lambda: clock_offset)


async def write_down(observer: RequestLog, trace: RequestRecord, route: str = ROUTE, status: int = 200) -> list[Any]:
    """Have a request finished; returns its lines."""
    with capture_logs() as lines:
        observer.request_finished(trace, "GET", route, route, status, 1.5)
        assert not lines, "behind the replies of this turn"
        await asyncio.sleep(0)
    return lines


def poll(outcome: str, *, held: float = 1.0, changed_at: float | None = None) -> RequestRecord:
    trace = RequestRecord()
    trace.held = outcome, held, () if changed_at is None else (changed_at,)
    return trace


async def test_of_polls_that_time_out_a_share_is_logged_and_each_is_counted() -> None:
    for sample, lines in ((0.0, 0), (1.0, 1)):
        counting = observer(timeout_sample=sample)
        assert len(await write_down(counting, poll("timeout"))) == lines
        assert len(await write_down(counting, poll("change"))) == 1
        assert counting.metrics.polls_by_outcome() == {"timeout": 1, "change": 1}
        assert counting.metrics.value("longpoll_poll_hold_seconds_sum") == 2


async def test_a_probe_is_logged_if_it_fails() -> None:
    assert await write_down(observer(), RequestRecord(), "/readyz", 200) == []
    (line,) = await write_down(observer(), RequestRecord(), "/readyz", 503)
    assert (line["event"], line["status"], line["outcome"]) == (logs.REQUEST_FINISHED, 503, None)


async def test_held_and_work_are_told_apart_to_a_tenth_of_a_millisecond() -> None:
    (line,) = await write_down(observer(), poll("change", held=1.00006))
    assert (line["event"], line["held_ms"], line["took_ms"]) == (logs.POLL_FINISHED, 1000.1, 499.9)


async def test_a_wake_is_measured_by_the_clock_of_the_database() -> None:
    ahead = observer(clock_offset=-2.0)  # the database's clock
    await write_down(ahead, poll("change", changed_at=time.time()))
    assert 2.0 <= ahead.metrics.value("longpoll_wake_latency_seconds_sum") < 3.0


async def test_no_wake_takes_less_than_no_time_however_wrong_the_clocks_are() -> None:
    wrong = observer()
    await write_down(wrong, poll("change", changed_at=time.time() + 60))
    assert wrong.metrics.value("longpoll_wake_latency_seconds_count") == 1
    assert wrong.metrics.value("longpoll_wake_latency_seconds_sum") == 0


async def test_who_was_not_held_was_not_woken() -> None:
    counting = observer()
    await write_down(counting, poll("immediate", held=0.0, changed_at=time.time()))
    assert counting.metrics.value("longpoll_wake_latency_seconds_count") == 0
