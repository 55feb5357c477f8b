"""A row that somebody holds, such as an operator in the middle of something: the others go on, and nobody waits for long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg2
import pytest

from server.config import Config, GenerationSettings
from server.generation.procedural import ProceduralGenerator
from server.generation.queue_pause import _FIRST_OVERDUE_SECONDS, _LONGEST_OVERDUE_SECONDS
from server.generation.worker import Worker
from server.storage.database import Database
from server.storage.images import FileImages
from server.storage.retention import Retention
from server.storage.tasks import WorkQueue
from server.telemetry.metrics import Metrics
from tests.support.facts import until
from tests.support.people import Person
from tests.support.postgres import Sql
from tests.support.rows import add_task, add_user, read_task


@contextlib.contextmanager
def locked(dsn: str, table: str, condition: str) -> Iterator[None]:
    """Hold rows for the block, as an open transaction in psql does."""
    with contextlib.closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT FROM {table} WHERE {condition} FOR UPDATE")
        assert cursor.rowcount
        yield
        # Postgres answers a rollback once the locks are gone; it releases those of a closed connection some time later.
        connection.rollback()


def locked_task(dsn: str, task_id: str) -> contextlib.AbstractContextManager[None]:
    return locked(dsn, "public.image_generations", f"task_id = '{task_id}'")


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    """One that waits for no statement longer than a moment."""
    opened = Database(dsn, pool_size=4, timeout=1)
    await opened.open()
    yield opened
    await opened.close()


@pytest.mark.parametrize("request_", ["cancel", "delete"])
async def test_a_request_for_it_is_refused_soon_and_works_later(
    alice: Person, bob: Person, dsn: str, request_: str
) -> None:
    """Long before its statement is given up, and with a sentence that doesn't speak of a database out of reach."""
    task_id, other = await alice.create(), await bob.create()

    async def ask(person: Person, of: str) -> tuple[int, str | None, str]:
        http = person.http
        call = (
            http.post("/api/generate/cancel", json={"taskId": of})
            if request_ == "cancel"
            else http.delete(f"/api/generate/tasks/{of}")
        )
        async with call as reply:
            detail = (await reply.json())["detail"] if reply.status == 503 else ""
            return reply.status, reply.headers.get("Retry-After"), detail

    with locked_task(dsn, task_id):
        # More of them than there are connections.
        refused = asyncio.gather(*(ask(alice, task_id) for _ in range(12)))
        assert (await ask(bob, other))[0] in {200, 204}
        assert (await alice.status(task_id, wait=0))["data"]["status"] == "pending"
        for status, retry_after, detail in await refused:
            assert (status, detail) == (503, "Something else is changing this just now.")
            assert retry_after
    assert (await ask(alice, task_id))[0] in {200, 204}


async def test_workers_pass_it_by(dsn: str, database: Database, sql: Sql) -> None:
    alice = add_user(sql)
    for task_id in ("held", "free", "lost"):
        add_task(sql, alice, task_id)
    sql("UPDATE public.image_generations SET created_at = now() - interval '1 hour' WHERE task_id = 'held'")
    sql(
        "UPDATE public.image_generations SET status = 'processing', lease_expires_at = now() - interval '1 s'"
        " WHERE task_id = 'lost'"
    )
    queue = WorkQueue(database, "one", lease_seconds=60, max_attempts=3)
    with locked_task(dsn, "held"):
        assert await queue.rescue() == {"lost": "pending"}
        claims = [await queue.claim() for _ in range(3)]
        assert [claim and claim.task_id for claim in claims] == ["free", "lost", None]
    claim = await queue.claim()
    assert claim
    assert claim.task_id == "held"


async def test_the_clean_up_passes_it_by(dsn: str, database: Database, sql: Sql, tmp_path: Path) -> None:
    alice = add_user(sql)
    for task_id in ("held", "free"):
        add_task(sql, alice, task_id, status="canceled", finished_at="2000-01-01")
        secret = (
            f"INSERT INTO longpoll.sessions (secret_hash, user_id, expires_at) VALUES (sha256('{task_id}'), %s, now())"
        )
        sql(secret, (alice,))
    cleaning = Retention(database, FileImages(tmp_path / "images"), GenerationSettings(keep_days=1), Metrics())
    session = locked(dsn, "longpoll.sessions", "secret_hash = sha256('held')")
    with locked_task(dsn, "held"), session:
        assert await cleaning.delete_ended() == 1
        await cleaning.expire_sessions()
        assert sql("SELECT task_id FROM public.image_generations") == [("held",)]
        assert sql("SELECT secret_hash = sha256('held') FROM longpoll.sessions") == [(True,)]
        sql("SELECT public.cleanup_old_generations()")
        assert sql("SELECT task_id FROM public.image_generations") == [("held",)]
    sql("SELECT public.cleanup_old_generations()")
    await cleaning.expire_sessions()
    assert sql("SELECT FROM public.image_generations") == sql("SELECT FROM longpoll.sessions") == []


@pytest.fixture
async def worker(database: Database, config: Config) -> AsyncIterator[Worker]:
    """One that works, and whose lease lasts longer than the lock."""
    generation = config.generation
    made = Worker(
        WorkQueue(database, "one", lease_seconds=60, max_attempts=3),
        ProceduralGenerator(0.0, None),  # type: ignore[arg-type] - asyncio's own executor
        FileImages.below(config.database.data_dir),
        generation,
        Metrics(),
        result_url=lambda task_id: f"/{task_id}",
    )
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_finished_picture_waits_for_its_row(
    dsn: str, sql: Sql, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It isn't made a second time because nobody could write that it was made."""
    monkeypatch.setattr("server.generation.worker._UNREACHABLE_PAUSE_SECONDS", 0.01)
    put, complete, refusals = worker._images.put, worker._queue.complete, 0
    with contextlib.ExitStack() as stack:

        async def put_and_lock(name: str, content: bytes) -> None:
            await put(name, content)
            stack.enter_context(locked_task(dsn, "t"))

        async def complete_or_count(*arguments: object) -> bool:
            nonlocal refusals
            try:
                return await complete(*arguments)  # type: ignore[arg-type]
            except Exception:
                refusals += 1
                raise

        worker._images.put = put_and_lock  # type: ignore[method-assign]
        worker._queue.complete = complete_or_count  # type: ignore[method-assign]
        add_task(sql, add_user(sql), "t", size="512x512")
        worker.wake()
        await until(lambda: refusals == 3)
        assert read_task(sql, "t", "status::text") == ("processing",)
    await until(lambda: read_task(sql, "t", "status::text") == ("completed",))
    assert read_task(sql, "t", "attempt") == (1,)


async def test_a_worker_asks_less_and_less_for_what_it_can_not_have(dsn: str, sql: Sql, worker: Worker) -> None:
    """What is due and held is looked for once a second, not twenty times."""
    add_task(sql, add_user(sql), "t", size="512x512")
    with locked_task(dsn, "t"):
        await until(lambda: worker._pause._overdue_seconds == _LONGEST_OVERDUE_SECONDS)
    await until(lambda: read_task(sql, "t", "status::text") == ("completed",))
    await until(lambda: worker._pause._overdue_seconds == _FIRST_OVERDUE_SECONDS)
