"""The status request: its parameters, what it answers at once, and what stands in every reply."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from server.web.keys import WAITERS
from tests.support.facts import until
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql

QUICK = {"hold_seconds": 0.3, "jitter_seconds": 0.0}


async def problem_of(request: Any, status: int) -> dict[str, Any]:
    """Return the members of the problem that a request ended with."""
    async with request as reply:
        assert reply.status == status, await reply.text()
        assert reply.content_type == "application/problem+json"
        assert reply.headers["Cache-Control"] == "private, no-store"
        members: dict[str, Any] = await reply.json()
        assert members["instance"] == reply.headers["X-Request-Id"]
        assert members["status"] == status
        return members


async def test_an_update_by_plain_sql_wakes_a_held_poll(alice: Person, sql: Sql) -> None:
    """Whoever changes the row, the trigger tells: nothing but SQL is needed."""
    task_id = await alice.create()
    poll = asyncio.create_task(alice.status(task_id, version=1))
    await until(lambda: alice.held)
    sql("UPDATE public.image_generations SET status = 'processing' WHERE task_id = %s", (task_id,))
    body = await poll
    assert body["data"]["status"] == "processing"
    assert body["data"]["version"] == 2
    assert body["poll"]["reason"] == "change"
    assert body["poll"]["changed"] is True


async def test_without_a_task_id_the_answer_is_the_guides_400(alice: Person) -> None:
    for query in ({}, {"taskId": ""}):
        members = await problem_of(alice.http.get("/api/generate/status", params=query), 400)
        assert members["error"] == members["title"] == "Task ID is required"
        assert members["code"] == "task_id_required"


async def test_a_stranger_gets_the_guides_401_whether_the_task_exists_or_not(alice: Person, start: Start) -> None:
    stranger = await start()
    for task_id in (await alice.create(), "unknown"):
        members = await problem_of(stranger.get("/api/generate/status", params={"taskId": task_id}), 401)
        assert members["error"] == "Not signed in"


_IMPOSSIBLE = ("no-such-task", "ж", "a b", "a.b", "a" * 64, "a" * 65, "a" * 5000, "'; --", "../etc", "%00")


async def test_nobody_learns_whether_a_foreign_task_exists(alice: Person, bob: Person) -> None:
    """Foreign, unknown, impossible: the same bytes but for the request's own number."""
    foreign = await alice.create()
    replies = set()
    queries: list[dict[str, Any]] = [{}, {"version": "1"}, {"wait": "0"}, {"version": "7", "until": "terminal"}]
    for query in queries:
        for task_id in (foreign, *_IMPOSSIBLE):
            async with bob.poll(task_id, **query) as reply:
                assert reply.status == 404
                everything = f"{sorted(reply.headers.items())} {await reply.text()}"
                own = (reply.headers["X-Request-Id"], reply.headers["Date"])
                replies.add(everything.replace(own[0], "…").replace(own[1], "…"))
    assert len(replies) == 1
    assert '"error":"Task not found"' in replies.pop()
    assert not bob.held


async def test_a_version_that_differs_is_answered_at_once(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    lower = await alice.status(task_id, version=0)
    assert (lower["poll"]["reason"], lower["poll"]["changed"], lower["poll"]["waitedMs"]) == ("immediate", True, 0)
    higher = await alice.status(task_id, version=9)
    assert (higher["poll"]["reason"], higher["poll"]["next"]) == ("reset", "again")
    assert higher["data"]["version"] == lower["data"]["version"] == 1


async def test_wait_0_is_a_snapshot(alice: Person) -> None:
    task_id = await alice.create()
    queries: list[dict[str, Any]] = [{}, {"version": 1}]
    for query in queries:
        body = await alice.status(task_id, wait=0, **query)
        assert body["poll"] == {
            "reason": "immediate", "changed": False, "waitedMs": 0, "next": "again", "retryAfterMs": 0,
        }  # fmt: skip


async def test_a_wait_that_is_no_number_is_refused(alice: Person) -> None:
    for wait in ("abc", "-1", "nan", "inf", "-inf", "1e999", "", "1_0", "٣", "0x1", "1;2"):
        members = await problem_of(alice.poll("any", wait=wait), 400)
        assert members["detail"] == "wait must be a number of seconds from 0 to 30.", wait


async def test_a_version_that_is_no_whole_number_is_refused(alice: Person) -> None:
    for version in ("-1", "٣", "1.5", "99999999999999999999", "", "abc", "+1", "1_0", "9223372036854775808"):
        members = await problem_of(alice.poll("any", version=version), 400)
        assert "version must be a whole number" in members["detail"], version


async def test_the_largest_version_there_can_be_is_one(alice: Person) -> None:
    body = await alice.status(await alice.create(), version=2**63 - 1)
    assert body["poll"]["reason"] == "reset"


async def test_other_parameters_are_checked_too(alice: Person) -> None:
    queries: list[dict[str, Any]] = [{"until": "ever"}, {"c": "a b"}, {"c": "x" * 65}, {"c": ""}]
    for query in queries:
        members = await problem_of(alice.poll("any", **query), 400)
        assert members["detail"].startswith(f"{next(iter(query))} must be")


async def test_the_longest_wait_is_the_servers_hold(start: Start, enter: Enter) -> None:
    alice = await enter(await start(polling=QUICK))
    body = await alice.status(await alice.create(), version=1, wait=3600)
    assert body["poll"]["reason"] == "timeout"


async def test_a_timeout_is_a_success_with_the_full_state(start: Start, enter: Enter) -> None:
    alice = await enter(await start(polling=QUICK))
    task_id = await alice.create("a tree", seed=7, size="512x512")
    async with alice.poll(task_id, version=1) as reply:
        assert reply.status == 200
        body = await reply.json()
        assert reply.headers["ETag"] == f'"{task_id}.1"'
        assert reply.headers["X-Task-Version"] == "1"
        assert re.fullmatch(r"hold;dur=\d+\.\d", reply.headers["Server-Timing"])
        assert reply.headers["Cache-Control"] == "private, no-store"
        assert reply.headers["X-Request-Id"]
        assert "Preference-Applied" not in reply.headers
    assert body["poll"]["reason"] == "timeout"
    assert body["poll"]["changed"] is False
    assert body["poll"]["next"] == "again"
    assert body["poll"]["waitedMs"] > 0
    data = body["data"]
    assert {name: data[name] for name in data if not name.endswith("At")} == {
        "taskId": task_id, "type": "basic", "status": "pending", "version": 1, "result": None, "error": None,
        "progress": None, "stage": None, "message": None, "queuePosition": 1, "etaSeconds": None, "attempt": 0,
        "cancelRequested": False,
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", data["createdAt"])
    assert (data["startedAt"], data["finishedAt"]) == (None, None)


async def test_an_entity_tag_stands_for_a_version(start: Start, enter: Enter) -> None:
    """Equal: held, then 304. Different, of another task, or nonsense: the state at once."""
    alice = await enter(await start(polling=QUICK))
    task_id = await alice.create()
    for tag in (f'"{task_id}.1"', f'W/"{task_id}.1"', f'"x.9", "{task_id}.1"'):
        async with alice.poll(task_id, headers={"If-None-Match": tag}) as reply:
            assert (reply.status, await reply.read()) == (304, b"")
            assert reply.headers["ETag"] == f'"{task_id}.1"'
    assert alice.metric("longpoll_polls_total", outcome="timeout") == 3
    for tag in (f'"{task_id}.0"', '"other.1"', "*", "nonsense", f'"{task_id}.٣"'):
        body = await alice.status(task_id, headers={"If-None-Match": tag})
        assert body["poll"]["reason"] == "immediate", tag


async def test_the_query_wins_over_an_entity_tag(alice: Person) -> None:
    task_id = await alice.create()
    body = await alice.status(task_id, headers={"If-None-Match": f'"{task_id}.1"'}, version=0)
    assert body["poll"]["reason"] == "immediate"


async def test_a_poll_with_an_entity_tag_is_woken_like_any_other(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    poll = asyncio.create_task(alice.status(task_id, headers={"If-None-Match": f'"{task_id}.1"'}))
    await until(lambda: alice.held)
    sql("UPDATE public.image_generations SET progress = 0.5")
    body = await poll
    assert (body["poll"]["reason"], body["data"]["version"]) == ("change", 2)


@pytest.mark.parametrize("ends", ["degraded", "superseded", "drain"])
async def test_a_304_never_hides_a_reason_that_the_client_must_read(start: Start, enter: Enter, ends: str) -> None:
    alice = await enter(await start(polling={"max_held_per_user": 1 if ends == "degraded" else 9}))
    task_id = await alice.create()
    tag = {"If-None-Match": f'"{task_id}.1"'}
    first = asyncio.create_task(alice.status(task_id, headers=tag, c="page"))
    await until(lambda: alice.held == 1)
    if ends == "drain":
        alice.app[WAITERS].drain(0)
        second = None
    else:
        second = asyncio.create_task(alice.status(task_id, headers=tag, c="page" if ends == "superseded" else "other"))
    assert (await first)["poll"]["reason"] == ends
    if second is not None:
        second.cancel()


async def test_a_preference_says_how_long_to_wait_unless_the_query_does(start: Start, enter: Enter) -> None:
    alice = await enter(await start(polling={"hold_seconds": 0.2, "jitter_seconds": 0.0}))
    task_id = await alice.create()
    for header, applied, reason in (
        ("wait=0", "wait=0", "immediate"),
        ("respond-async, wait=10", "wait=0.2", "timeout"),
        ("wait=abc", None, "timeout"),
        ("wait=٣", None, "timeout"),
    ):
        async with alice.poll(task_id, headers={"Prefer": header}, version=1) as reply:
            assert reply.headers.get("Preference-Applied") == applied, header
            assert (await reply.json())["poll"]["reason"] == reason, header
    async with alice.poll(task_id, headers={"Prefer": "wait=10"}, version=1, wait=0) as reply:
        assert "Preference-Applied" not in reply.headers
        assert (await reply.json())["poll"]["reason"] == "immediate"


async def test_a_poll_on_a_terminal_task_never_waits(alice: Person, sql: Sql) -> None:
    for status in ("completed", "failed", "canceled"):
        task_id = await alice.create()
        sql(
            "UPDATE public.image_generations SET status = %s, result = '/r', error = 'e' WHERE task_id = %s",
            (status, task_id),
        )
        for query in ({}, {"version": 2}, {"until": "terminal"}):
            body = await until(lambda query=query, task_id=task_id: finished(alice, task_id, query))
            assert body["poll"]["reason"] == "immediate"
            assert body["poll"]["next"] == "stop"
            assert body["data"]["status"] == status
            assert body["data"]["finishedAt"]


async def finished(person: Person, task_id: str, query: dict[str, Any]) -> Any:
    """Return the answer once the server has heard of the end: a poll is level-triggered, not clairvoyant."""
    seen = await person.status(task_id, wait=0)
    return await person.status(task_id, **query) if seen["data"]["finishedAt"] else None


async def test_head_tells_the_version_without_a_body(alice: Person) -> None:
    task_id = await alice.create()
    async with alice.http.head("/api/generate/status", params={"taskId": task_id, "wait": "0"}) as reply:
        assert (reply.status, reply.headers["X-Task-Version"], await reply.read()) == (200, "1", b"")
