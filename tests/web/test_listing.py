"""The list of a user's tasks: its order, its pages, its filter."""

from __future__ import annotations

import base64
from typing import Any

from tests.support.people import Person
from tests.support.postgres import Sql


async def page(person: Person, expected: int = 200, **query: Any) -> Any:
    async with person.http.get("/api/generate/tasks", params=query) as reply:
        assert reply.status == expected, await reply.text()
        return await reply.json()


async def all_ids(person: Person, **query: Any) -> list[str]:
    """Walk through all pages; returns the ids in the order in which they came."""
    ids: list[str] = []
    cursor = None
    while True:
        body = await page(person, **query, **({"cursor": cursor} if cursor else {}))
        ids += [item["taskId"] for item in body["items"]]
        cursor = body["nextCursor"]
        if cursor is None:
            return ids


async def test_the_list_is_the_users_own_newest_first(alice: Person, bob: Person) -> None:
    assert await page(alice) == {"items": [], "nextCursor": None}
    ids = [await alice.create(f"picture {number}") for number in range(3)]
    await bob.create()
    body = await page(alice)
    assert [item["taskId"] for item in body["items"]] == ids[::-1]
    assert [item["prompt"] for item in body["items"]] == ["picture 2", "picture 1", "picture 0"]
    assert body["nextCursor"] is None
    assert body["items"][0]["version"] == 1


async def test_pages_have_no_gaps_and_no_repeats_while_tasks_arrive(alice: Person, sql: Sql) -> None:
    """Also where several tasks were created in the same microsecond: the id then decides."""
    old = {await alice.create() for _ in range(7)}
    sql("UPDATE public.image_generations SET created_at = date_trunc('day', now()) - interval '1 day'")
    seen: list[str] = []
    cursor: dict[str, Any] = {}
    while True:
        body = await page(alice, limit=2, **cursor)
        seen += [item["taskId"] for item in body["items"]]
        if body["nextCursor"] is None:
            break
        cursor = {"cursor": body["nextCursor"]}
        await alice.create("arrives meanwhile")
    assert len(seen) == len(set(seen)) == 7
    assert set(seen) == old


async def test_a_page_that_is_just_full_has_no_next_one(alice: Person) -> None:
    for _ in range(2):
        await alice.create()
    assert (await page(alice, limit=2))["nextCursor"] is None
    assert (await page(alice, limit=1))["nextCursor"] is not None


async def test_the_list_of_one_status(alice: Person, sql: Sql) -> None:
    done = [await alice.create() for _ in range(3)]
    sql("UPDATE public.image_generations SET status = 'completed', result = '/r'")
    waiting = await alice.create()
    assert await all_ids(alice, status="completed", limit=2) == done[::-1]
    assert await all_ids(alice, status="pending") == [waiting]
    assert await all_ids(alice, status="failed") == []
    assert len(await all_ids(alice, status="all")) == len(await all_ids(alice, status="")) == 4


def cursor_of(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


async def test_impossible_pages_are_refused(alice: Person) -> None:
    for limit in ("0", "101", "-1", "abc", "1.5", "٣", "", "99999999999999999999"):
        assert "limit must be" in (await page(alice, 400, limit=limit))["detail"]
    for status in ("done", "COMPLETED", "completed'--"):
        assert "status must be one of: pending" in (await page(alice, 400, status=status))["detail"]
    broken = [
        "abc", "!!!", "ж", "a" * 5000,
        cursor_of("no time at all"),
        cursor_of("2026-01-01T00:00:00 naive"),
        cursor_of("2026-01-01T00:00:00+00:00"),
        cursor_of("2026-01-01T00:00:00+00:00 a\0b"),
        cursor_of("2026-01-01T00:00:00+00:00 " + "a" * 65),
        cursor_of("0001-01-01T00:00:00+14:00 a"),
        cursor_of("9999-12-31T23:59:59-14:00 a"),
    ]  # fmt: skip
    for cursor in broken:
        assert (await page(alice, 400, cursor=cursor))["detail"].startswith("cursor must be the nextCursor"), cursor


async def test_a_cursor_from_far_away_is_an_empty_page_or_a_full_one(alice: Person) -> None:
    task_id = await alice.create()
    assert await all_ids(alice, cursor=cursor_of("2000-01-01T00:00:00+23:59 a")) == []
    assert await all_ids(alice, cursor=cursor_of("9999-12-31T00:00:00+00:00 a")) == [task_id]
