"""Background tasks: one that dies is noticed at once and started again, and all end when they are told to."""

from __future__ import annotations

import asyncio
import gc

import pytest
import structlog

from server.runtime.background import Background, counted_errors
from server.telemetry import logs
from server.telemetry.metrics import Metrics
from tests.support.facts import until


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def background(metrics: Metrics) -> Background:
    return Background(metrics)


def dead(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("longpoll_dead_background_tasks") or 0


async def for_ever() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise RuntimeError("a bug")


async def test_a_task_that_dies_is_logged_counted_and_listed(background: Background, metrics: Metrics) -> None:
    with structlog.testing.capture_logs() as events:
        background.start("listener", fail)
        background.start("board", for_ever)
        await until(lambda: background.dead)
    assert background.dead == {"listener": "RuntimeError('a bug')"}
    assert dead(metrics) == 1
    event = events[0]
    assert event["event"] == logs.TASK_DIED
    assert event["log_level"] == "error"
    assert event["task"] == "listener"
    assert isinstance(event["exc_info"], RuntimeError)
    await background.close()


async def test_several_dead_tasks_are_all_listed(background: Background, metrics: Metrics) -> None:
    for name in ("one", "two"):
        background.start(name, fail)
    await until(lambda: len(background.dead) == 2)
    assert dead(metrics) == 2


async def test_a_dead_task_is_started_again_until_it_lives(background: Background, metrics: Metrics) -> None:
    starts = 0

    async def fail_twice() -> None:
        nonlocal starts
        starts += 1
        if starts < 3:
            raise RuntimeError("a bug")
        await for_ever()

    with structlog.testing.capture_logs() as events:
        background.start("listener", fail_twice)
        await until(lambda: starts == 3)
    assert background.dead == {}
    assert dead(metrics) == 0
    assert metrics.value("longpoll_background_restarts_total") == 2
    assert [event["pause_seconds"] for event in events] == [0.1, 0.2]
    await background.close()


async def test_the_pause_before_a_restart_grows_up_to_a_bound(
    background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.runtime.background._FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("server.runtime.background._LONGEST_PAUSE_SECONDS", 0.003)
    with structlog.testing.capture_logs() as events:
        background.start("doomed", fail)
        await until(lambda: len(events) >= 4)
    assert [event["pause_seconds"] for event in events][:4] == [0.001, 0.002, 0.003, 0.003]
    await background.close()


async def test_closing_ends_a_task_that_waits_to_be_started_again(background: Background) -> None:
    background.start("doomed", fail)
    await until(lambda: background.dead)
    await background.close()
    assert not background._tasks


async def test_errors_of_callbacks_and_forgotten_tasks_are_counted(metrics: Metrics) -> None:
    def crash() -> None:
        raise RuntimeError("a bug in a callback")

    with counted_errors(metrics), structlog.testing.capture_logs() as events:
        asyncio.get_running_loop().call_soon(crash)
        asyncio.get_running_loop().create_task(fail())
        await until(lambda: (gc.collect(), metrics.value("longpoll_unhandled_errors_total") == 2)[1])
    assert {str(event["exc_info"]) for event in events} == {"a bug", "a bug in a callback"}
    assert {event["event"] for event in events} == {logs.ERROR_UNHANDLED}
    assert asyncio.get_running_loop().get_exception_handler() is None


async def test_a_task_that_was_canceled_by_a_stray_cancellation_is_dead_too(
    background: Background, metrics: Metrics
) -> None:
    """aiopg raises CancelledError for a statement that Postgres canceled: nobody has asked the task to end."""

    async def stray() -> None:
        raise asyncio.CancelledError

    background.start("listener", stray)
    await until(lambda: background.dead)
    assert list(background.dead) == ["listener"]
    assert dead(metrics) == 1


async def test_a_task_that_has_done_its_work_is_not_dead(background: Background, metrics: Metrics) -> None:
    await background.start("short", lambda: asyncio.sleep(0))
    await until(lambda: not background._tasks)
    assert background.dead == {}
    assert dead(metrics) == 0


async def test_closing_cancels_all_and_waits_for_them(background: Background, metrics: Metrics) -> None:
    ended = []

    async def slow_to_end() -> None:
        try:
            await for_ever()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    tasks = [background.start(f"task {number}", slow_to_end) for number in range(3)]
    await asyncio.sleep(0)
    await background.close()
    assert len(ended) == 3
    assert all(task.cancelled() for task in tasks)
    assert background.dead == {}
    assert dead(metrics) == 0


async def test_a_task_that_swallows_a_cancellation_is_canceled_again(
    background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does wait_for() of Python 3.11 when the cancellation comes in the tick in which its future is done."""
    monkeypatch.setattr("server.runtime.background._CANCEL_AGAIN_SECONDS", 0.01)
    swallowed = 0

    async def deaf() -> None:
        nonlocal swallowed
        while swallowed < 3:
            try:
                await for_ever()
            except asyncio.CancelledError:
                swallowed += 1
        await for_ever()

    task = background.start("deaf", deaf)
    await asyncio.sleep(0)
    await background.close()
    assert swallowed == 3
    assert task.cancelled()


async def test_an_error_while_closing_is_still_told(background: Background) -> None:
    async def fail_late() -> None:
        try:
            await for_ever()
        finally:
            raise RuntimeError("at the end")

    background.start("worker", fail_late)
    await asyncio.sleep(0)
    await background.close()
    assert background.dead == {"worker": "RuntimeError('at the end')"}
