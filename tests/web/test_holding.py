"""What is held and what ends a hold: changes, deletions, other polls, caps, the end of the process."""

from __future__ import annotations

import asyncio
from typing import Any

from server.web import keys
from tests.support.facts import until
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql

NO_HEARTBEAT = {"heartbeat_seconds": 60.0}


async def held_poll(person: Person, task_id: str, **query: Any) -> asyncio.Task[Any]:
    """Begin a poll and return when the server holds it."""
    before = person.held
    poll = asyncio.create_task(person.status(task_id, **query))
    await until(lambda: person.held > before or poll.done())
    return poll


async def read_bytes(request: Any) -> bytes:
    async with request as reply:
        return bytes(await reply.read())


async def test_a_client_without_a_version_waits_for_what_differs_from_its_arrival(alice: Person, sql: Sql) -> None:
    """The guide's own clients know no versions."""
    task_id = await alice.create()
    poll = await held_poll(alice, task_id)
    sql("UPDATE public.image_generations SET stage = 'sky'")
    body = await poll
    assert (body["poll"]["reason"], body["poll"]["changed"], body["data"]["stage"]) == ("change", True, "sky")


async def test_progress_wakes_only_those_who_wait_for_any_change(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    change = await held_poll(alice, task_id, version=1, until="change")
    status = await held_poll(alice, task_id, version=1, until="status")
    terminal = await held_poll(alice, task_id, version=1, until="terminal")
    sql("UPDATE public.image_generations SET progress = 0.25")
    assert (await change)["data"]["progress"] == 0.25
    assert alice.held == 2
    sql("UPDATE public.image_generations SET status = 'processing'")
    assert (await status)["data"]["version"] == 3
    assert alice.held == 1
    sql("UPDATE public.image_generations SET status = 'completed', result = '/picture'")
    body = await terminal
    assert (body["data"]["status"], body["data"]["version"], body["data"]["result"]) == ("completed", 4, "/picture")
    assert (body["poll"]["reason"], body["poll"]["next"]) == ("change", "stop")


async def test_all_who_wait_for_one_version_get_the_same_bytes(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    polls = [asyncio.create_task(read_bytes(alice.poll(task_id, version=1))) for _ in range(2)]
    await until(lambda: alice.held == 2)
    sql("UPDATE public.image_generations SET status = 'processing', progress = 0.123")
    first, second = [(await poll).partition(b',"poll":')[0] for poll in polls]
    assert first == second
    assert first.startswith(b'{"data":{"taskId":')


async def test_a_deletion_while_held_is_a_410_and_a_404_afterwards(alice: Person, sql: Sql) -> None:
    for delete in ("own request", "plain SQL"):
        task_id = await alice.create()
        poll = asyncio.create_task(read_bytes(alice.poll(task_id, version=1)))
        await until(lambda: alice.held == 1)
        if delete == "own request":
            async with alice.http.delete(f"/api/generate/tasks/{task_id}") as reply:
                assert reply.status == 204
        else:
            sql("DELETE FROM public.image_generations")
        assert b'"error":"Task deleted"' in await poll
        async with alice.poll(task_id, version=1) as reply:
            assert (reply.status, (await reply.json())["error"]) == (404, "Task not found")
    assert alice.metric("longpoll_polls_total", outcome="deleted") == 2
    assert alice.metric("longpoll_http_requests_total", route="/api/generate/status", method="GET", code="410") == 2


async def test_canceling_wakes_the_poll_that_is_held(alice: Person) -> None:
    task_id = await alice.create()
    poll = await held_poll(alice, task_id, version=1)
    async with alice.http.post("/api/generate/cancel", json={"taskId": task_id}) as reply:
        assert reply.status == 200
    body = await poll
    assert (body["data"]["status"], body["poll"]["next"]) == ("canceled", "stop")


async def test_a_page_that_polls_again_supersedes_its_own_poll_only(alice: Person, bob: Person) -> None:
    task_id, other = await alice.create(), await alice.create()
    first = await held_poll(alice, task_id, version=1, c="page1")
    bystanders = [
        await held_poll(alice, task_id, version=1, c="page2"),
        await held_poll(alice, task_id, version=1),
        await held_poll(alice, other, version=1, c="page1"),
        await held_poll(bob, await bob.create(), version=1, c="page1"),
    ]
    second = asyncio.create_task(alice.status(task_id, version=1, c="page1"))
    poll = (await first)["poll"]
    assert (poll["reason"], poll["changed"], poll["next"]) == ("superseded", False, "stop")
    assert not any(each.done() for each in (*bystanders, second))
    for each in (*bystanders, second):
        each.cancel()


async def test_over_the_cap_of_a_user_the_oldest_poll_gives_way(start: Start, enter: Enter) -> None:
    client = await start(polling={"max_held_per_user": 2})
    alice, bob = await enter(client, "alice"), await enter(client, "bob")
    task_id = await alice.create()
    oldest = await held_poll(alice, task_id, version=1)
    others = [await held_poll(alice, task_id, version=1), await held_poll(bob, await bob.create(), version=1)]
    newest = asyncio.create_task(alice.status(task_id, version=1))
    body = await oldest
    assert body["poll"]["reason"] == "degraded"
    assert 3000 <= body["poll"]["retryAfterMs"] <= 8000
    assert body["poll"]["next"] == "again"
    assert body["data"]["taskId"] == task_id
    await until(lambda: alice.held == 3)
    for poll in (*others, newest):
        assert not poll.done()
        poll.cancel()


async def test_over_the_cap_of_the_process_a_poll_is_answered_at_once(start: Start, enter: Enter) -> None:
    client = await start(polling={"max_held": 1})
    alice, bob = await enter(client, "alice"), await enter(client, "bob")
    poll = await held_poll(alice, await alice.create(), version=1)
    body = await bob.status(await bob.create(), version=1)
    assert body["poll"]["reason"] == "degraded"
    assert 3000 <= body["poll"]["retryAfterMs"] <= 8000
    assert body["data"]["status"] == "pending"
    assert not poll.done()
    poll.cancel()


async def test_a_draining_process_answers_everybody_and_closes(alice: Person) -> None:
    task_id = await alice.create()

    async def poll() -> Any:
        async with alice.poll(task_id, version=1) as reply:
            assert (reply.status, reply.headers["Connection"]) == (200, "close")
            return await reply.json()

    polls = [asyncio.create_task(poll()) for _ in range(3)]
    await until(lambda: alice.held == 3)
    alice.app[keys.WAITERS].drain(0)
    for body in [*(await asyncio.gather(*polls)), await poll()]:  # the last comes when draining has begun
        assert body["poll"]["reason"] == "drain"
        assert body["poll"]["next"] == "again"
        assert 0 <= body["poll"]["retryAfterMs"] <= 2000
        assert body["data"]["version"] == 1


async def test_a_draining_process_keeps_no_idle_connection_whatever_was_asked(alice: Person) -> None:
    """Who has none can't send its next request just as the process closes it."""
    for draining in (False, True):
        alice.app[keys.WAITERS].draining = draining
        for path in ("/healthz", "/api/generate/tasks", "/api/generate/status"):
            async with alice.http.get(path) as reply:
                assert (reply.headers.get("Connection") == "close") is draining, path


async def test_polling_a_watched_task_again_costs_no_statement(start: Start, enter: Enter, sql: Sql) -> None:
    """Nor does the session check; and a poll that is held and woken costs exactly one."""
    alice = await enter(await start(database=NO_HEARTBEAT, polling={"sweep_seconds": 300.0}))
    alice.stop_reading_places()
    database = alice.app[keys.DATABASE]
    task_id = await alice.create()
    await alice.status(task_id, wait=0)
    await until(lambda: not database.busy)
    before = database.statements
    for _ in range(5):
        await alice.status(task_id, wait=0, version=1)
        await alice.status(task_id, version=0)
    poll = await held_poll(alice, task_id, version=1)
    assert database.statements == before
    sql("UPDATE public.image_generations SET status = 'processing'")
    assert (await poll)["data"]["version"] == 2
    assert database.statements == before + 1
    await alice.status(task_id, version=1)
    assert database.statements == before + 1


async def test_a_held_poll_holds_no_database_connection(start: Start, enter: Enter, sql: Sql) -> None:
    client = await start(database={"pool_size": 1}, polling={"max_held_per_user": 100})
    alice, bob = await enter(client, "alice"), await enter(client, "bob")
    task_id = await alice.create()
    polls = [asyncio.create_task(alice.status(task_id, version=1)) for _ in range(50)]
    await until(lambda: alice.held == 50)
    other = await bob.create()
    async with bob.http.get("/api/generate/tasks") as reply:
        assert [item["taskId"] for item in (await reply.json())["items"]] == [other]
    assert alice.held == 50
    sql("UPDATE public.image_generations SET status = 'processing'")
    assert {body["data"]["version"] for body in await asyncio.gather(*polls)} == {2}


async def test_a_timeout_is_measured_as_a_hold_and_not_as_a_wake_up(start: Start, enter: Enter) -> None:
    alice = await enter(await start(polling={"hold_seconds": 0.1, "jitter_seconds": 0.0}))
    await alice.status(await alice.create(), version=1)
    assert alice.metric("longpoll_polls_total", outcome="timeout") == 1
    assert alice.metric("longpoll_poll_hold_seconds_sum") > 0
    assert alice.metric("longpoll_wake_latency_seconds_count") == 0


async def test_wake_latency_counts_held_polls_only(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    await alice.status(task_id, version=0)
    assert alice.metric("longpoll_wake_latency_seconds_count") == 0
    poll = await held_poll(alice, task_id, version=1)
    sql("UPDATE public.image_generations SET status = 'processing'")
    await poll
    assert alice.metric("longpoll_wake_latency_seconds_count") == 1


async def test_a_change_in_the_gap_between_two_polls_is_not_missed(alice: Person, sql: Sql) -> None:
    """Whether the server has seen the task before or not: what differs is found by comparing."""
    for seen_before in (True, False):
        task_id = await alice.create()
        if seen_before:
            await alice.status(task_id, wait=0)
        sql("UPDATE public.image_generations SET status = 'processing' WHERE task_id = %s", (task_id,))
        assert (await alice.status(task_id, version=1))["data"]["version"] == 2
