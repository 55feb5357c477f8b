"""Background tasks: one that dies is noticed at once, and all end when they are told to."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from server import logs
from server.background import Background
from server.metrics import Metrics
from tests.conftest import until


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
        background.start("listener", fail())
        background.start("board", for_ever())
        await until(lambda: background.dead)
    assert background.dead == {"listener": "RuntimeError('a bug')"}
    assert dead(metrics) == 1
    (event,) = events
    assert event["event"] == logs.TASK_DIED
    assert event["log_level"] == "error"
    assert event["task"] == "listener"
    assert isinstance(event["exc_info"], RuntimeError)
    await background.close()


async def test_several_dead_tasks_are_all_listed(background: Background, metrics: Metrics) -> None:
    for name in ("one", "two"):
        background.start(name, fail())
    await until(lambda: len(background.dead) == 2)
    assert dead(metrics) == 2


async def test_a_task_that_was_canceled_by_a_stray_cancellation_is_dead_too(
    background: Background, metrics: Metrics
) -> None:
    """aiopg raises CancelledError for a statement that Postgres canceled: nobody has asked the task to end."""

    async def stray() -> None:
        raise asyncio.CancelledError

    background.start("listener", stray())
    await until(lambda: background.dead)
    assert list(background.dead) == ["listener"]
    assert dead(metrics) == 1


async def test_a_task_that_has_done_its_work_is_not_dead(background: Background, metrics: Metrics) -> None:
    await background.start("short", asyncio.sleep(0))
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

    tasks = [background.start(f"task {number}", slow_to_end()) for number in range(3)]
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
    monkeypatch.setattr("server.background._CANCEL_AGAIN_SECONDS", 0.01)
    swallowed = 0

    async def deaf() -> None:
        nonlocal swallowed
        while swallowed < 3:
            try:
                await for_ever()
            except asyncio.CancelledError:
                swallowed += 1
        await for_ever()

    task = background.start("deaf", deaf())
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

    background.start("worker", fail_late())
    await asyncio.sleep(0)
    await background.close()
    assert background.dead == {"worker": "RuntimeError('at the end')"}
