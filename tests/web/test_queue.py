"""Where a waiting task stands, and when it may be ready: from the queue and from what was made lately."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from server.web import keys
from tests.support.facts import until
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql
from tests.support.processes import server_process
from tests.support.rows import add_task


async def test_places_in_the_queue_are_counted_from_one_over_all_users(alice: Person, bob: Person) -> None:
    first, second, third = await alice.create(), await bob.create(), await alice.create()
    places = [
        (await person.status(task_id, wait=0))["data"]["queuePosition"]
        for person, task_id in [(alice, first), (bob, second), (alice, third)]
    ]
    assert places == [1, 2, 3]


async def test_without_any_history_nothing_is_promised(alice: Person) -> None:
    data = (await alice.status(await alice.create(), wait=0))["data"]
    assert data["etaSeconds"] is None


async def test_a_waiting_task_is_judged_by_the_last_pictures_and_the_busy_workers(alice: Person, sql: Sql) -> None:
    for seconds in (4, 8):
        _complete(sql, add_task(sql, alice.user.user_id), seconds)
    for number in range(2):
        _process(sql, add_task(sql, alice.user.user_id), f"worker {number}")
    places = [await alice.create() for _ in range(3)]
    estimates = [(await alice.status(task_id, wait=0))["data"]["etaSeconds"] for task_id in places]
    assert estimates == [6.0, 6.0, 12.0]


async def test_a_task_in_work_is_judged_by_its_own_progress(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    _process(sql, task_id, "worker")
    sql(
        "UPDATE public.image_generations SET progress = 0.25, started_at = clock_timestamp() - interval '10 s'"
        " WHERE task_id = %s",
        (task_id,),
    )
    data = (await alice.status(task_id, wait=0))["data"]
    assert data["queuePosition"] is None
    assert 25 <= data["etaSeconds"] <= 33


async def test_every_reply_that_has_a_place_tells_it(alice: Person) -> None:
    async with alice.http.post("/api/generate", json={"prompt": "a lake"}) as reply:
        made = await reply.json()
    task_id = made["taskId"]
    second = await alice.create()
    async with alice.http.get("/api/generate/status/batch", params={"task": second}) as reply:
        batch = await reply.json()
    async with alice.http.get("/api/generate/tasks") as reply:
        listed = await reply.json()
    async with alice.http.get(f"/tasks/{second}", headers={"Accept": "text/html"}) as reply:
        page = await reply.text()
    assert made["data"]["queuePosition"] == (await alice.status(task_id, wait=0))["data"]["queuePosition"] == 1
    assert [item["queuePosition"] for item in batch["items"]] == [2]
    assert [item["queuePosition"] for item in listed["items"]] == [2, 1]
    assert "&#34;queuePosition&#34;: 2" in page or '"queuePosition": 2' in page


async def test_who_names_a_place_is_told_when_it_is_next_and_the_version_stays(alice: Person, sql: Sql) -> None:
    first, second = await alice.create(), await alice.create()
    naming = asyncio.create_task(alice.status(second, version=1, place=2))
    silent = asyncio.create_task(alice.status(second, version=1))
    batch = asyncio.create_task(_batch(alice, f"{second}:1:2"))
    await until(lambda: alice.held == 3)
    sql("DELETE FROM public.image_generations WHERE task_id = %s", (first,))
    body = await naming
    assert (body["data"]["queuePosition"], body["data"]["version"]) == (1, 1)
    assert (body["poll"]["reason"], body["poll"]["changed"], body["poll"]["next"]) == ("place", False, "again")
    told = await batch
    assert ([item["queuePosition"] for item in told["items"]], told["poll"]["reason"]) == ([1], "place")
    assert told["poll"]["changed"] is False
    assert alice.held == 1
    sql("UPDATE public.image_generations SET status = 'processing'")
    body = await silent
    assert (body["poll"]["reason"], body["data"]["queuePosition"]) == ("change", None)


@pytest.mark.parametrize("place", ["-1", "1.5", "x", "", "٣", "1e3", "\0", "2 ", "9" * 30, str(2**63)])
async def test_nonsense_for_a_place_is_refused(alice: Person, place: str) -> None:
    task_id = await alice.create()
    async with alice.poll(task_id, version=1, wait=0, place=place) as reply:
        assert reply.status == 400
        assert "place must be" in (await reply.json())["detail"]
    if place:
        async with alice.http.get("/api/generate/status/batch", params={"task": f"{task_id}:1:{place}"}) as reply:
            assert reply.status == 400


async def test_the_highest_place_is_as_good_as_any(alice: Person) -> None:
    task_id = await alice.create()
    assert (await alice.status(task_id, version=1, place=2**63 - 1))["poll"]["reason"] == "place"


async def test_another_users_place_is_told_to_nobody(alice: Person, bob: Person) -> None:
    task_id = await alice.create()
    async with bob.poll(task_id, version=1, place=2) as reply:
        assert (reply.status, (await reply.json())["code"]) == (404, "task_not_found")
    answer = await _batch(bob, f"{task_id}:1:2")
    assert (answer["items"], answer["notFound"]) == ([], [task_id])


@pytest.mark.parametrize("priority", ["urgent", "HIGH", 1, True, [], {}, "\0", "low\0", "x" * 10_000])
async def test_nonsense_for_a_priority_is_refused(alice: Person, priority: Any) -> None:
    async with alice.http.post("/api/generate", json={"prompt": "x", "priority": priority}) as reply:
        assert reply.status == 400
        assert (await reply.json())["detail"] == "priority must be one of: low, normal, high."


async def test_high_priority_is_for_those_whom_the_settings_name(start: Start, enter: Enter, sql: Sql) -> None:
    client = await start(limits={"enabled": False, "high_priority": ("Alice@example.org",)})
    alice, bob = await enter(client, "alice"), await enter(client, "bob")
    async with bob.http.post("/api/generate", json={"prompt": "x", "priority": "high"}) as reply:
        assert (reply.status, (await reply.json())["code"]) == (403, "priority_refused")
    for person, priority in ((bob, "low"), (bob, "normal"), (alice, "high")):
        await person.create(priority=priority)
    assert sql("SELECT priority FROM public.image_generations ORDER BY turn") == [(1,), (0,), (-1,)]


async def test_a_user_with_too_many_tasks_waiting_is_told_when_to_come_back(start: Start, enter: Enter) -> None:
    client = await start(generation={"workers": 0, "max_waiting_per_user": 2})
    alice, bob = await enter(client, "alice"), await enter(client, "bob")
    for _ in range(2):
        await alice.create()
    async with alice.http.post("/api/generate", json={"prompt": "x"}) as reply:
        problem = await reply.json()
        assert (reply.status, problem["code"]) == (429, "too_many_waiting")
        assert "2 tasks waiting" in problem["detail"]
        assert 5 <= int(reply.headers["Retry-After"]) <= 16
    await bob.create()


async def test_five_thousand_who_wait_cost_one_statement_a_second(alice: Person, sql: Sql) -> None:
    """Not one for each: all places come from one pass over the queue."""
    sql(
        "INSERT INTO public.image_generations (user_id, task_id, prompt)"
        " SELECT %s, 'task-' || number, 'x' FROM generate_series(1, 5000) AS number",
        (alice.user.user_id,),
    )
    places, board, database = alice.app[keys.PLACES], alice.app[keys.BOARD], alice.app[keys.DATABASE]
    watched = [board.enter(f"task-{number}") for number in range(1, 5001)]
    await board.refresh(watched)
    before = database.statements
    for each in watched:
        places.enter(each, 0)
    snapshots = [each.snapshot for each in watched if each.snapshot is not None]
    await until(lambda: places.standing(snapshots[-1])[0])
    assert [places.standing(each)[0] for each in snapshots] == list(range(1, 5001))
    assert database.statements - before <= 15  # heartbeats and sweeps among them
    for each in watched:
        places.leave(each)
        board.leave(each)


async def test_a_place_changes_for_those_who_wait_at_another_server(dsn: str, sql: Sql, tmp_path: Path) -> None:
    settings = {"database__dsn": dsn, "generation__workers": 0, "database__data_dir": tmp_path}
    with server_process(tmp_path, **settings) as first, server_process(tmp_path, **settings) as second:
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            account = {"email": "a@example.org", "password": "correct horse"}
            async with session.post(f"{first.url}/api/auth/register", json=account) as reply:
                assert reply.status == 201
            task_ids = []
            for _ in range(2):
                async with session.post(f"{first.url}/api/generate", json={"prompt": "a lake"}) as reply:
                    task_ids.append((await reply.json())["taskId"])

            async def poll() -> Any:
                query = f"taskId={task_ids[1]}&version=1&place=2"
                async with session.get(f"{second.url}/api/generate/status?{query}") as reply:
                    return await reply.json()

            held = asyncio.create_task(poll())
            async with session.post(f"{first.url}/api/generate/cancel", json={"taskId": task_ids[0]}) as reply:
                assert reply.status == 200
            body = await held
            assert (body["poll"]["reason"], body["data"]["queuePosition"]) == ("place", 1)


async def _batch(person: Person, *tasks: str) -> Any:
    async with person.http.get("/api/generate/status/batch", params=[("task", task) for task in tasks]) as reply:
        assert reply.status == 200, await reply.text()
        return await reply.json()


def _complete(sql: Sql, task_id: str, seconds: float) -> None:
    sql(
        "UPDATE public.image_generations SET status = 'completed', result = '/x',"
        " started_at = now() - make_interval(secs => %s), finished_at = now() WHERE task_id = %s",
        (seconds, task_id),
    )


def _process(sql: Sql, task_id: str, worker: str) -> None:
    sql(
        "UPDATE public.image_generations SET status = 'processing', lease_owner = %s,"
        " lease_expires_at = now() + interval '1 minute' WHERE task_id = %s",
        (worker, task_id),
    )
