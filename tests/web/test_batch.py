"""One poll for many tasks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from yarl import URL

from server.web import keys
from tests.support.facts import until
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql


def ask(person: Person, *tasks: str, **query: Any) -> Any:
    """Begin a batch request for tasks given as ID:VERSION."""
    parameters = [("task", task) for task in tasks] + [(name, str(value)) for name, value in query.items()]
    return person.http.get("/api/generate/status/batch", params=parameters)


async def answer(person: Person, *tasks: str, **query: Any) -> Any:
    async with ask(person, *tasks, **query) as reply:
        assert reply.status == 200, await reply.text()
        return await reply.json()


async def test_it_answers_at_once_with_those_that_differ(alice: Person) -> None:
    first, second = await alice.create("one"), await alice.create("two")
    body = await answer(alice, f"{first}:1", second)
    assert [item["taskId"] for item in body["items"]] == [second]
    assert body["unchanged"] == [first]
    assert body["notFound"] == []
    assert body["poll"]["reason"] == "immediate"
    assert body["poll"]["changed"] is True


async def test_it_is_held_until_any_task_changes_and_leaves_no_trace(alice: Person, sql: Sql) -> None:
    task_ids = [await alice.create(f"number {number}") for number in range(5)]
    held = asyncio.create_task(answer(alice, *(f"{task_id}:1" for task_id in task_ids)))
    await until(lambda: alice.held == 1)
    sql("UPDATE public.image_generations SET status = 'processing' WHERE task_id = %s", (task_ids[3],))
    body = await held
    assert [(item["taskId"], item["version"]) for item in body["items"]] == [(task_ids[3], 2)]
    assert sorted(body["unchanged"]) == sorted(set(task_ids) - {task_ids[3]})
    assert body["poll"]["reason"] == "change"
    board = alice.app[keys.BOARD]
    assert alice.held == 0
    for watched in board._tasks.values():
        assert watched.watchers == 0
        assert watched._follower is watched._others is None


async def test_changes_that_come_close_together_come_in_one_answer(
    alice: Person, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.waiting.batches.GATHER_SECONDS", (1.0, 1.0))  # a slow machine must not end it early
    task_ids = [await alice.create(f"number {number}") for number in range(3)]
    held = asyncio.create_task(answer(alice, *(f"{task_id}:1" for task_id in task_ids)))
    await until(lambda: alice.held == 1)
    event = alice.app[keys.BOARD]._tasks[task_ids[0]].event
    sql("UPDATE public.image_generations SET status = 'processing' WHERE task_id = %s", (task_ids[0],))
    await event.wait()
    sql("UPDATE public.image_generations SET status = 'processing' WHERE task_id = %s", (task_ids[1],))
    body = await held
    assert {item["taskId"] for item in body["items"]} == {task_ids[0], task_ids[1]}


async def test_progress_waits_for_more_if_the_client_likes_and_the_end_does_not(
    alice: Person, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "server.web.handlers.status.LONGEST_GATHER_SECONDS", 60.0
    )  # a slow machine must not end it early
    task_id = await alice.create()
    sql("UPDATE public.image_generations SET status = 'processing'")
    assert (await alice.status(task_id, version=1))["data"]["version"] == 2
    held = asyncio.create_task(answer(alice, f"{task_id}:2", gather=100))
    await until(lambda: alice.held == 1)
    for progress in (0.2, 0.4):
        sql("UPDATE public.image_generations SET progress = %s", (progress,))
        await until(lambda: not alice.app[keys.BOARD]._tasks[task_id].stale)
    sql("UPDATE public.image_generations SET status = 'completed', result = '/picture'")
    body = await held
    assert [(item["version"], item["status"]) for item in body["items"]] == [(5, "completed")]
    assert alice.metric("longpoll_wake_latency_seconds_count") == 1
    assert body["poll"]["reason"] == "change"


async def test_what_was_gathered_on_purpose_is_not_measured_as_slow(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    held = asyncio.create_task(answer(alice, f"{task_id}:1", gather=0.2))
    await until(lambda: alice.held == 1)
    sql("UPDATE public.image_generations SET progress = 0.2")
    assert (await held)["poll"]["reason"] == "change"
    assert alice.metric("longpoll_wake_latency_seconds_count") == 0
    held = asyncio.create_task(answer(alice, f"{task_id}:2"))
    await until(lambda: alice.held == 1)
    sql("UPDATE public.image_generations SET progress = 0.4")
    await held
    assert alice.metric("longpoll_wake_latency_seconds_count") == 1


async def test_a_process_that_stops_answers_batches_too_and_asks_to_be_left(alice: Person) -> None:
    task_id = await alice.create()
    held = asyncio.create_task(answer(alice, f"{task_id}:1"))
    await until(lambda: alice.held == 1)
    alice.app[keys.WAITERS].drain(0)
    assert (await held)["poll"]["reason"] == "drain"
    async with ask(alice, f"{task_id}:1") as reply:
        poll = (await reply.json())["poll"]
        assert (poll["reason"], poll["next"], reply.headers["Connection"]) == ("drain", "again", "close")
    assert 0 <= poll["retryAfterMs"] <= 2000


async def test_a_full_process_answers_batches_at_once_and_says_when_to_come_back(start: Start, enter: Enter) -> None:
    client = await start(polling={"max_held": 1})
    alice, bob = await enter(client, "alice"), await enter(client, "bob")
    own, foreign = await alice.create(), await bob.create()
    held = asyncio.create_task(answer(bob, f"{foreign}:1"))
    await until(lambda: bob.held == 1)
    poll = (await answer(alice, f"{own}:1"))["poll"]
    assert (poll["reason"], poll["next"], poll["waitedMs"]) == ("degraded", "again", 0)
    assert 3000 <= poll["retryAfterMs"] <= 8000
    held.cancel()


async def test_a_hold_that_ends_says_so_and_names_nothing(start: Start, enter: Enter) -> None:
    alice = await enter(await start(polling={"hold_seconds": 0.3}))
    task_id = await alice.create()
    body = await answer(alice, f"{task_id}:1")
    assert body["items"] == []
    assert body["unchanged"] == [task_id]
    assert body["poll"]["reason"] == "timeout"
    assert body["poll"]["next"] == "again"


async def test_tasks_of_others_and_tasks_that_never_were_are_not_found_alike(alice: Person, bob: Person) -> None:
    own, foreign = await alice.create(), await bob.create()
    body = await answer(alice, f"{own}:1", f"{foreign}:1", "never-was:1", "not legal!:1")
    assert body["notFound"] == [foreign, "never-was", "not legal!"]
    assert body["unchanged"] == [own]
    assert body["items"] == []


async def test_a_task_that_is_deleted_while_held_is_not_found(alice: Person) -> None:
    first, second = await alice.create(), await alice.create()
    held = asyncio.create_task(answer(alice, f"{first}:1", f"{second}:1"))
    await until(lambda: alice.held == 1)
    async with alice.http.delete(f"/api/generate/tasks/{second}") as reply:
        assert reply.status == 204
    body = await held
    assert body["notFound"] == [second]


async def test_when_all_have_ended_it_never_waits_and_says_stop(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    sql("UPDATE public.image_generations SET status = 'canceled' WHERE task_id = %s", (task_id,))
    body = await answer(alice, f"{task_id}:2")
    assert body["unchanged"] == [task_id]
    assert body["poll"]["next"] == "stop"


async def test_a_version_ahead_of_ours_is_a_reset(alice: Person) -> None:
    task_id = await alice.create()
    body = await answer(alice, f"{task_id}:7")
    assert [item["version"] for item in body["items"]] == [1]
    assert body["poll"]["reason"] == "reset"


async def test_fifty_tasks_cost_one_read_and_one_connection(start: Start, enter: Enter) -> None:
    alice = await enter(await start(database={"heartbeat_seconds": 60.0}))  # a busy machine must not make us read again
    task_ids = [await alice.create(f"number {number}") for number in range(50)]
    assert await alice.app[keys.LISTENER].barrier()  # a late notification of a create would make us read again, too
    reads = alice.metric("longpoll_board_reads_total")
    body = await answer(alice, *task_ids, wait=0)
    assert len(body["items"]) == 50
    assert alice.metric("longpoll_board_reads_total") == reads + 1


async def test_bad_questions_are_refused_with_a_reason(alice: Person) -> None:
    for tasks, query, text in [
        ([], {}, "Task ID is required"),
        (["a"] * 51, {}, "At most 50"),
        (["a:1", "a:2"], {}, "twice"),
        (["a:x"], {}, "version must be"),
        (["a:-1"], {}, "version must be"),
        (["a:1"], {"wait": "soon"}, "wait must be"),
        (["a:1"], {"c": "no spaces!"}, "c must be"),
        (["a:1"], {"gather": "much"}, "gather must be a number of seconds from 0 to 2"),
        (["a:1"], {"gather": "-1"}, "gather must be"),
    ]:
        async with ask(alice, *tasks, **query) as reply:
            assert reply.status == 400
            assert text in await reply.text()


async def test_a_stranger_is_not_signed_in(start: Start) -> None:
    client = await start()
    async with client.get("/api/generate/status/batch?task=a:1") as reply:
        assert reply.status == 401


async def test_the_same_page_asking_again_ends_the_older_poll(alice: Person) -> None:
    task_id = await alice.create()
    older = asyncio.create_task(answer(alice, f"{task_id}:1", c="page"))
    await until(lambda: alice.held == 1)
    newer = asyncio.create_task(answer(alice, f"{task_id}:1", c="page"))
    assert (await older)["poll"]["reason"] == "superseded"
    newer.cancel()


async def test_only_an_abusive_rate_of_polls_is_refused(start: Start, enter: Enter) -> None:
    client = await start(limits={"enabled": True, "poll": "5 per minute"})
    alice, bob = await enter(client, "alice"), await enter(client, "bob")
    task_id = await alice.create()
    for _ in range(5):
        await alice.status(task_id, wait=0)
    async with ask(alice, task_id) as reply:
        assert reply.status == 429
        assert 1 <= int(reply.headers["Retry-After"]) <= 75
    await bob.status(await bob.create(), wait=0)


async def test_over_the_cap_of_the_process_it_is_answered_at_once(start: Start, enter: Enter) -> None:
    alice = await enter(await start(polling={"max_held": 1}))
    task_id = await alice.create()
    held = asyncio.create_task(alice.status(task_id, version=1))
    await until(lambda: alice.held == 1)
    body = await answer(alice, f"{task_id}:1")
    assert (body["poll"]["reason"], body["unchanged"]) == ("degraded", [task_id])
    assert 3000 <= body["poll"]["retryAfterMs"] <= 8000
    assert not held.done()
    held.cancel()


@pytest.mark.parametrize("name", ["%00", "a%20b", "x" * 65, "%FF", "%ED%A0%80", "%7F", "%C3%A9", "", "..%2F"])
async def test_an_id_that_no_task_can_have_is_not_found_without_a_read(alice: Person, name: str) -> None:
    task_id = await alice.create()
    await alice.status(task_id, wait=0)
    reads = alice.metric("longpoll_board_reads_total")
    url = alice.http.make_url("/api/generate/status/batch")
    target = f"{url}?task={name}:1&task={task_id}:1&task={task_id}x:1" if name == "" else f"{url}?task={name}:1"
    async with alice.http.session.get(URL(target, encoded=True)) as reply:
        assert reply.status == 200, await reply.text()
        body = await reply.json()
    assert len(body["notFound"]) == (2 if name == "" else 1)
    assert body["poll"]["reason"] == "immediate"
    assert alice.metric("longpoll_board_reads_total") == reads + (name == "")
    assert alice.metric("longpoll_request_crashes_total") == 0


async def test_a_row_that_cannot_be_read_is_nobody_elses_trouble(alice: Person, bob: Person, sql: Sql) -> None:
    """A moment that Python can't hold makes the driver fail, for every row of the same read."""
    bad, good = await bob.create(), await alice.create()
    sql("UPDATE public.image_generations SET created_at = '20000-01-01' WHERE task_id = %s", (bad,))
    async with bob.poll(bad, wait=0) as reply:
        assert reply.status == 500
    held = asyncio.create_task(answer(alice, f"{good}:1"))
    broken = [asyncio.create_task(_status(bob, bad)) for _ in range(3)]
    await until(lambda: alice.held == 1)
    sql("UPDATE public.image_generations SET status = 'processing' WHERE task_id = %s", (good,))
    assert [item["version"] for item in (await held)["items"]] == [2]
    assert await asyncio.gather(*broken) == [500] * 3
    async with alice.http.get("/readyz") as reply:
        assert reply.status == 200


async def _status(person: Person, task_id: str) -> int:
    async with person.poll(task_id) as reply:
        return reply.status
