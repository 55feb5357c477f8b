"""The event loop's stops: few and short, and the longest is known."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Iterator

import pytest

from server.runtime import garbage
from server.telemetry.loop_lag import LoopLag
from tests.support.facts import until
from tests.support.people import Person


@pytest.fixture
def collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def collections() -> int:
    """Of every generation: on a slow machine each round is one in which all is looked at."""
    return sum(int(each["collections"]) for each in gc.get_stats())


class Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.mark.usefixtures("collector")
async def test_what_lives_is_frozen_and_what_was_garbage_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "FREEZE_SECONDS", 0.01)
    garbage.tune_gc()
    assert gc.get_threshold() == garbage.THRESHOLDS
    leftover = weakref.ref(Cycle())
    frozen = gc.get_freeze_count()
    kept = [[number] for number in range(1000)]
    task = asyncio.create_task(garbage.keep_gc_tuned(lambda: 0))
    await until(lambda: gc.get_freeze_count() >= frozen + len(kept))
    assert leftover() is None
    task.cancel()


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize(("held", "found"), [(0, True), (5000, False)])
async def test_frozen_garbage_is_found_while_few_polls_are_held(
    monkeypatch: pytest.MonkeyPatch, *, held: int, found: bool
) -> None:
    monkeypatch.setattr(garbage, "FREEZE_SECONDS", 0.01)
    monkeypatch.setattr(garbage, "THAW_SECONDS", 0.02)
    cycle = Cycle()
    leftover = weakref.ref(cycle)
    gc.freeze()
    del cycle
    task, before = asyncio.create_task(garbage.keep_gc_tuned(lambda: held)), collections()
    await until(lambda: collections() > before + 5)
    assert (leftover() is None) is found
    task.cancel()


def test_of_all_stops_within_a_minute_the_longest_is_told() -> None:
    stops = LoopLag()
    assert stops.longest_stop_seconds == 0
    for now, late in ((0.0, 0.1), (1.0, 0.5), (30.0, 0.2), (50.0, 0.3)):
        stops.note(now, late)
    assert stops.longest_stop_seconds == 0.5
    stops.note(70.0, 0.0)
    assert stops.longest_stop_seconds == 0.3
    stops.note(200.0, 0.01)
    assert stops.longest_stop_seconds == 0.01


async def test_a_loop_that_stood_still_shows_in_the_metrics(alice: Person) -> None:
    time.sleep(0.3)  # noqa: ASYNC251 - this is what is to be noticed
    await until(lambda: alice.metric("longpoll_loop_stop_seconds") >= 0.25)
