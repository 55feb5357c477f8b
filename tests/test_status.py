"""The status request: what it answers at once, what it holds, and what ends a hold."""

from __future__ import annotations

import asyncio

from tests.conftest import Person, Sql, until


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
