"""The oldest Postgres that is supported, which is Debian's: the schema, the roles and the way of a poll work there too.

All other tests run there as well: `LONGPOLL_TEST_POSTGRES_BIN=/usr/lib/postgresql/15/bin python -m pytest`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.storage.embedded.cluster import EmbeddedPostgres
from server.storage.migrations import migrate
from tests.support.facts import until
from tests.support.people import Enter, Start
from tests.support.postgres import Sql
from tests.support.programs import program


@pytest.fixture
def dsn(data_folder: Path) -> Iterator[str]:
    """A database of that Postgres, with the schema."""
    binaries = Path(program("/usr/lib/postgresql/15/bin/postgres", "postgresql-15")).parent
    with EmbeddedPostgres(data_folder / "oldest", postgres_bin=binaries, settings={"fsync": "off"}) as oldest:
        asyncio.run(migrate(oldest.dsn))
        yield oldest.dsn


async def test_a_task_is_created_polled_made_and_deleted_on_the_oldest_postgres(
    start: Start, enter: Enter, sql: Sql
) -> None:
    assert sql("SHOW server_version")[0][0].startswith("15.")
    alice = await enter(await start(), "alice")
    task_id = await alice.create()
    held = asyncio.create_task(alice.status(task_id, version=1))
    await until(lambda: alice.held)
    sql("UPDATE public.image_generations SET status = 'processing', message = 'by hand'")
    woken = await held
    assert (woken["poll"]["reason"], woken["data"]["version"]) == ("change", 2)
    sql("UPDATE public.image_generations SET status = 'pending'")
    bob = await enter(await start(generation={"workers": 1}), "bob")  # whose server has a worker
    made = await alice.status(task_id, until="terminal")
    assert made["data"]["status"] == "completed"
    async with bob.poll(task_id) as reply:
        assert reply.status == 404
    async with alice.http.delete(f"/api/generate/tasks/{task_id}") as reply:
        assert reply.status == 204
    assert alice.metric("longpoll_missed_notify_repairs_total") == 0
