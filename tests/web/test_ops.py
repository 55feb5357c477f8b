"""What operators and load balancers ask: does it live, is it ready, what does it measure."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
import structlog

from server.config import Config
from server.storage.embedded.cluster import EmbeddedPostgres
from server.web import keys
from tests.support.facts import until
from tests.support.outage import outage
from tests.support.people import Person, Start
from tests.support.postgres import Sql


async def readiness(person: Person) -> tuple[int, Any]:
    async with person.http.get("/readyz") as reply:
        assert ("Retry-After" in reply.headers) == (reply.status == 503)
        return reply.status, await reply.json()


async def test_a_server_that_works_is_alive_and_ready(alice: Person) -> None:
    async with alice.http.get("/healthz") as reply:
        assert (reply.status, await reply.json()) == (200, {"status": "ok", "dead": []})
    status, body = await readiness(alice)
    assert status == 200
    assert body == {
        "status": "ready",
        "checks": {"listener": True, "background": True, "pictures": True, "accepting": True},
        "dead": [],
    }


async def test_a_draining_server_is_alive_but_not_ready(alice: Person) -> None:
    alice.app[keys.WAITERS].drain(0)
    status, body = await readiness(alice)
    assert (status, body["status"], body["checks"]["accepting"]) == (503, "unready", False)
    async with alice.http.get("/healthz") as reply:
        assert reply.status == 200


async def test_a_dead_background_task_makes_a_server_unready(alice: Person) -> None:
    async def fail() -> None:
        raise RuntimeError("a secret detail")

    alice.app[keys.BACKGROUND].start("doomed", fail)
    await until(lambda: alice.app[keys.BACKGROUND].dead)
    status, body = await readiness(alice)
    assert (status, body["checks"]["background"], body["dead"]) == (503, False, ["doomed"])
    assert "secret" not in str(body)
    assert alice.metric("longpoll_dead_background_tasks") == 1
    async with alice.http.get("/healthz") as reply:
        assert (reply.status, await reply.json()) == (503, {"status": "failing", "dead": ["doomed"]})


async def test_a_server_that_cannot_listen_is_unready_until_it_can(
    alice: Person, postgres: EmbeddedPostgres, dsn: str
) -> None:
    async def is_unready() -> bool:
        status, body = await readiness(alice)
        return status == 503 and not body["checks"]["listener"]

    with outage(postgres, dsn):
        await until(is_unready)
        assert alice.metric("longpoll_listener_up") == 0
        async with alice.http.get("/healthz") as reply:
            assert reply.status == 200

    async def is_ready() -> bool:
        return (await readiness(alice))[0] == 200

    await until(is_ready)
    assert alice.metric("longpoll_listener_up") == 1


async def metrics(person: Person) -> dict[str, float]:
    """Return every sample as Prometheus would read it."""
    async with person.http.get("/metrics") as reply:
        assert reply.status == 200
        assert reply.headers["Content-Type"].startswith("text/plain; version=")
        text = await reply.text()
    found = re.findall(r"^([a-z_]+(?:\{.*\})?) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


async def test_the_figures_of_the_contract(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    await alice.status(task_id, wait=0)
    held = asyncio.create_task(alice.status(task_id, version=1))
    await until(lambda: alice.held)
    figures = await metrics(alice)
    assert figures["longpoll_held_connections"] == 1
    assert figures["longpoll_listener_up"] == 1
    assert figures["longpoll_missed_notify_repairs_total"] == 0
    assert figures['longpoll_polls_total{outcome="immediate"}'] == 1
    sql("UPDATE public.image_generations SET status = 'processing'")
    await held
    figures = await metrics(alice)
    assert figures["longpoll_held_connections"] == 0
    assert figures['longpoll_polls_total{outcome="change"}'] == 1
    assert figures["longpoll_poll_hold_seconds_count"] == 2
    assert figures["longpoll_wake_latency_seconds_count"] == 1
    assert figures['longpoll_http_requests_total{code="202",method="POST",route="/api/generate"}'] == 1
    assert figures['longpoll_http_requests_total{code="200",method="GET",route="/api/generate/status"}'] == 2
    assert figures['longpoll_http_request_seconds_count{route="/api/generate/status"}'] == 2


@pytest.mark.parametrize("name", ["longpoll_task_processing_seconds", "longpoll_polls", "longpoll_watched_tasks"])
async def test_figures_are_described_before_they_have_a_value(alice: Person, name: str) -> None:
    async with alice.http.get("/metrics") as reply:
        assert f"# HELP {name}" in await reply.text()


async def test_strangers_cannot_invent_time_series(alice: Person) -> None:
    for number, method in enumerate(("PURGE", "MKCOL", "LOCK")):
        async with alice.http.get(f"/made-up/{number}") as reply:
            assert reply.status == 404
        async with alice.http.get(f"/tasks/{number}") as reply:
            assert reply.status == 404
        async with alice.http.request(method, "/") as reply:
            assert reply.status == 405
    figures = await metrics(alice)
    assert figures['longpoll_http_requests_total{code="404",method="GET",route="unknown"}'] == 3
    assert figures['longpoll_http_requests_total{code="404",method="GET",route="/tasks/{task_id}"}'] == 3
    assert figures['longpoll_http_requests_total{code="405",method="other",route="unknown"}'] == 3


async def test_all_figures_are_logged_every_half_minute(start: Start) -> None:
    assert Config().logging.snapshot_seconds == 30
    with structlog.testing.capture_logs() as lines:
        await start(logging={"snapshot_seconds": 0.1})
        line = await until(lambda: next((line for line in lines if line["event"] == "metrics.snapshot"), None))
    assert line["longpoll_held_connections"] == 0
    assert {"mean_processing_seconds", "polls_per_second", "error_rate", "poll_timeouts"} <= line.keys()
    assert {"longpoll_listener_up", "longpoll_missed_notify_repairs_total", "longpoll_watched_tasks"} <= line.keys()
