"""What an operator sees at `/ops`: sums over everybody, for whoever is logged in."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from server import __version__
from server.storage.embedded.cluster import EmbeddedPostgres
from server.telemetry.metrics import Metrics
from server.telemetry.snapshots import Snapshots
from server.web import keys
from tests.support.facts import until
from tests.support.outage import outage
from tests.support.people import Person, Start
from tests.support.postgres import Sql


async def read_figures(person: Person) -> Any:
    async with person.http.get("/ops/figures") as reply:
        assert reply.status == 200, await reply.text()
        return await reply.json()


async def test_the_figures_tell_what_the_process_does(alice: Person, bob: Person, sql: Sql) -> None:
    waiting, working = await alice.create(), await bob.create()
    sql("UPDATE public.image_generations SET status = 'processing' WHERE task_id = %s", (working,))
    await bob.status(working, version=1)
    held = asyncio.create_task(alice.status(waiting, version=1))
    await until(lambda: alice.held == 1)
    figures = await read_figures(alice)
    assert figures["polls"] == {"held": 1, "limit": 18_000, "watched": 2, "ended": {"immediate": 1}}
    assert figures["tasks"] == {"pending": 1, "processing": 1}
    assert figures["listener"]["up"] is True
    assert (figures["listener"]["repairs"], figures["listener"]["reconnects"]) == (0, 0)
    assert figures["wakes"] == {"count": 0, "p50Seconds": None, "p90Seconds": None, "p99Seconds": None}
    assert 1 <= figures["database"]["connections"] <= figures["database"]["limit"] == 9
    assert figures["process"]["version"] == __version__
    assert figures["process"]["checks"] == {"listener": True, "background": True, "pictures": True, "accepting": True}
    sql("UPDATE public.image_generations SET status = 'processing' WHERE task_id = %s", (waiting,))
    await held
    later = await read_figures(alice)
    assert later["wakes"]["count"] == 1
    assert 0 < later["wakes"]["p50Seconds"] <= later["wakes"]["p99Seconds"]
    assert later["polls"]["ended"] == {"immediate": 1, "change": 1}
    assert later["process"]["uptimeSeconds"] >= figures["process"]["uptimeSeconds"]


async def test_they_name_no_task_no_prompt_and_nobody(alice: Person, bob: Person) -> None:
    task_id = await bob.create("bob's secret")
    await bob.status(task_id, wait=0)
    for url in ("/ops/figures", "/ops"):
        async with alice.http.get(url) as reply:
            text = await reply.text()
            assert reply.status == 200
            for secret in (task_id, "secret", bob.user.email, bob.user.user_id):
                assert secret not in text


async def test_a_dead_background_task_is_named_without_its_error(alice: Person) -> None:
    async def fail() -> None:
        raise RuntimeError("a secret detail")

    alice.app[keys.BACKGROUND].start("doomed", fail)
    await until(lambda: alice.app[keys.BACKGROUND].dead)
    process = (await read_figures(alice))["process"]
    assert (process["dead"], process["checks"]["background"]) == (["doomed"], False)
    assert "secret" not in str(process)


async def test_strangers_see_no_figures(start: Start) -> None:
    client = await start()
    async with client.get("/ops/figures") as reply:
        assert reply.status == 401
    async with client.get("/ops", headers={"Accept": "text/html"}, allow_redirects=False) as reply:
        assert (reply.status, reply.headers["Location"]) == (303, "/login?next=%2Fops")


async def test_tasks_are_counted_once_for_all_who_look_at_the_same_time(start: Start, enter: Any) -> None:
    alice = await enter(await start(database={"heartbeat_seconds": 60.0}))
    await read_figures(alice)
    database = alice.app[keys.DATABASE]
    before = database.statements
    await asyncio.gather(*(read_figures(alice) for _ in range(10)))
    assert database.statements <= before + 1  # the first count may have grown old on a slow machine


async def test_without_a_database_the_other_figures_are_still_there(
    alice: Person, postgres: EmbeddedPostgres, dsn: str
) -> None:
    await read_figures(alice)

    async def knows_no_tasks() -> bool:
        return (await read_figures(alice))["tasks"] is None

    with outage(postgres, dsn):
        await until(knows_no_tasks)
        assert (await read_figures(alice))["listener"]["up"] is False


@pytest.mark.parametrize(
    ("seconds", "share", "expected"),
    [
        ([], 0.5, None),
        ([0.003] * 4, 0.5, 0.00375),  # the middle of the bucket from 2.5 to 5 ms
        ([0.003] * 9 + [0.3], 0.5, 0.0025 + 0.0025 * 5 / 9),
        ([0.003] * 9 + [0.3], 0.99, 0.25 + 0.25 * 0.9),
        ([0.0005], 1.0, 0.001),
        ([60.0], 0.5, 10.0),  # all that is known: it was more
    ],
)
def test_quantiles_are_those_of_the_histogram(seconds: list[float], share: float, expected: float | None) -> None:
    metrics = Metrics()
    for value in seconds:
        metrics.wake_latency_seconds.observe([value])
    assert metrics.wake_quantile(share) == pytest.approx(expected)


@pytest.mark.parametrize("more", [0, 1000])
def test_a_histogram_counts_what_is_at_most_each_bound(more: int) -> None:
    metrics = Metrics()
    metrics.hold_seconds.observe([30.0, 0.05, 61.0, 0.2, 0.01, 60.0, *[5.0] * more])
    metrics.hold_seconds.observe([0.05])
    (family,) = metrics.hold_seconds.collect()
    counts = {sample.labels["le"]: sample.value for sample in family.samples if "le" in sample.labels}
    assert [counts[bound] for bound in ("0.01", "0.05", "0.1", "0.5")] == [1, 3, 3, 4]
    assert [counts[bound] for bound in ("2.0", "5.0", "29.0", "30.0", "60.0", "+Inf")] == [
        4, 4 + more, 4 + more, 5 + more, 6 + more, 7 + more
    ]  # fmt: skip
    assert metrics.value("longpoll_poll_hold_seconds_sum") == pytest.approx(151.31 + 5 * more)


def test_a_snapshot_tells_of_the_time_since_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    metrics = Metrics()
    snapshots = Snapshots(metrics)
    for _round in range(2):
        metrics.polls.counts["timeout",] += 3
        metrics.polls.counts["change",] += 9
        metrics.requests.counts["/", "GET", 200] += 17
        metrics.requests.counts["/", "GET", 404] += 2
        metrics.requests.counts["/", "GET", 503] += 1
        metrics.task_processing_seconds.labels("completed").observe(4.0 + _round)
        metrics.task_processing_seconds.labels("failed").observe(2.0)
        clock[0] += 4.0
        assert snapshots.take() == {
            "interval_seconds": 4.0,
            "polls_per_second": 3.0,
            "poll_timeouts": 3,
            "poll_timeout_rate": 0.25,
            "requests_per_second": 5.0,
            "error_rate": 0.05,
            "tasks_processed": 2,
            "task_failure_rate": 0.5,
            "mean_processing_seconds": 3.0 + _round / 2,
            "mean_processing_seconds_since_start": 3.0 + _round / 4,
        }


def test_a_snapshot_in_which_nothing_happened_has_no_mean() -> None:
    told = Snapshots(Metrics()).take()
    assert (told["polls_per_second"], told["poll_timeouts"]) == (0.0, 0)
    names = ("error_rate", "poll_timeout_rate", "task_failure_rate", "mean_processing_seconds")
    assert [told[name] for name in names] == [None] * 4
