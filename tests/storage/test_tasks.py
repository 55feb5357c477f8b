"""Tasks as their owners and the board reach them, on a real database."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from typing import Any, TypeVar

import psycopg2
import pytest

from server.errors import ConstraintViolated, IdempotencyMismatch
from server.storage.database import Database
from server.storage.tasks import NewTask, Task, TaskReader, UserTasks
from tests.support import rows
from tests.support.facts import until
from tests.support.postgres import Sql
from tests.support.rows import add_task, add_user, read_row, read_task

shared_dsn, dsn = rows.shared_dsn, rows.dsn

T = TypeVar("T")


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    """The server's way to the test's database."""
    opened = Database(dsn, pool_size=8, timeout=10)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def own(database: Database) -> UserTasks:
    return UserTasks(database)


@pytest.fixture
def board(database: Database) -> TaskReader:
    return TaskReader(database)


@pytest.fixture
def alice(sql: Sql) -> str:
    """The id of somebody who is registered."""
    return add_user(sql, "alice")


@pytest.fixture
def bob(sql: Sql) -> str:
    """The id of somebody else."""
    return add_user(sql, "bob")


def wish(user_id: str, *, key: str | None = None, digest: bytes = b"1", prompt: str = "a lake") -> NewTask:
    """Return a new task of this user."""
    return NewTask(uuid.uuid4().hex, user_id, prompt, "advanced", 7, "512x512", True, key, digest)


def waiting(sql: Sql) -> Callable[[], bool]:
    """Return a condition: somebody waits for a lock."""
    return lambda: bool(
        sql("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
    )


# --- create


async def test_a_new_task_is_stored_as_it_was_wished(own: UserTasks, sql: Sql, alice: str) -> None:
    created = await own.create(wish(alice, key="k"))
    assert isinstance(created, Task)
    assert (created.user_id, created.status, created.version, created.terminal) == (alice, "pending", 1, False)
    stored = "prompt, type, seed, size, has_reference, idempotency_key, user_id::text"
    assert read_task(sql, created.task_id, stored) == ("a lake", "advanced", 7, "512x512", True, "k", alice)


async def test_the_reply_to_a_create_is_what_the_board_will_show(own: UserTasks, board: TaskReader, alice: str) -> None:
    created = await own.create(wish(alice))
    assert isinstance(created, Task)
    [read] = await board.read([created.task_id])
    assert read.describe() == created.describe()


async def test_a_repeated_request_finds_the_task_of_the_first(own: UserTasks, sql: Sql, alice: str) -> None:
    created = await own.create(wish(alice, key="k"))
    assert isinstance(created, Task)
    assert await own.create(wish(alice, key="k")) == created.task_id
    assert sql("SELECT count(*) FROM public.image_generations") == [(1,)]


async def test_a_key_that_belongs_to_another_request_is_refused(own: UserTasks, sql: Sql, alice: str) -> None:
    await own.create(wish(alice, key="k"))
    with pytest.raises(IdempotencyMismatch):
        await own.create(wish(alice, key="k", digest=b"2"))
    assert sql("SELECT count(*) FROM public.image_generations") == [(1,)]


async def test_each_user_has_keys_of_ones_own(own: UserTasks, sql: Sql, alice: str, bob: str) -> None:
    await own.create(wish(alice, key="k"))
    assert isinstance(await own.create(wish(bob, key="k", digest=b"2")), Task)


async def test_requests_without_a_key_are_never_the_same(own: UserTasks, sql: Sql, alice: str) -> None:
    for _ in range(2):
        assert isinstance(await own.create(wish(alice)), Task)


async def test_two_requests_at_once_with_one_key_make_one_task(own: UserTasks, sql: Sql, alice: str) -> None:
    results = await asyncio.gather(*(own.create(wish(alice, key="k")) for _ in range(8)))
    [created] = [result for result in results if isinstance(result, Task)]
    assert [result for result in results if result is not created] == [created.task_id] * 7
    assert sql("SELECT task_id FROM public.image_generations") == [(created.task_id,)]


@pytest.mark.parametrize("outcome", ["COMMIT", "ROLLBACK"])
async def test_a_request_waits_for_an_unfinished_one_with_its_key(
    own: UserTasks, sql: Sql, dsn: str, alice: str, outcome: str
) -> None:
    """And finds its task, or, if that never comes into being, makes its own."""
    with closing(psycopg2.connect(dsn)) as other, other.cursor() as cursor:
        cursor.execute(
            "INSERT INTO public.image_generations (user_id, task_id, idempotency_key, request_digest)"
            " VALUES (%s, 'first', 'k', '1')",
            (alice,),
        )
        second = asyncio.create_task(own.create(wish(alice, key="k")))
        await until(waiting(sql))
        cursor.execute(outcome)
        result = await second
    assert (result == "first") == (outcome == "COMMIT")
    assert sql("SELECT count(*) FROM public.image_generations") == [(1,)]


async def test_a_key_whose_task_is_deleted_at_this_moment_is_free_again(dsn: str, sql: Sql, alice: str) -> None:
    """Between the two statements of a create: the key was taken, and then nobody has it."""

    class Deleting(Database):
        async def fetch_one(self, query: str, into: Callable[..., T], /, **parameters: Any) -> T | None:
            if query == "find_idempotent_task":
                sql("DELETE FROM public.image_generations")
            return await super().fetch_one(query, into, **parameters)

    database = Deleting(dsn, pool_size=1, timeout=5)
    await database.open()
    add_task(sql, alice, "first", idempotency_key="k", request_digest=b"1")
    assert isinstance(await UserTasks(database).create(wish(alice, key="k", digest=b"2")), Task)
    await database.close()


async def test_an_id_that_exists_is_refused(own: UserTasks, alice: str) -> None:
    task = wish(alice)
    await own.create(task)
    with pytest.raises(ConstraintViolated) as caught:
        await own.create(task)
    assert caught.value.constraint == "idx_image_generations_task_id"


# --- cancel and delete


async def test_a_waiting_task_is_canceled_at_once(own: UserTasks, sql: Sql, alice: str) -> None:
    add_task(sql, alice, "t")
    assert await own.cancel(alice, "t") == "pending"
    assert read_task(sql, "t", "status::text, version, cancel_requested, finished_at IS NOT NULL") == (
        "canceled",
        2,
        True,
        True,
    )


async def test_the_worker_of_a_running_task_is_asked_to_stop(own: UserTasks, sql: Sql, alice: str) -> None:
    """Once: asking again changes nothing."""
    add_task(sql, alice, "t", status="processing")
    assert [await own.cancel(alice, "t") for _ in range(2)] == ["processing", "processing"]
    assert read_task(sql, "t", "status::text, version, cancel_requested") == ("processing", 2, True)


@pytest.mark.parametrize("status", ["completed", "failed", "canceled"])
async def test_what_has_ended_can_not_be_canceled(own: UserTasks, sql: Sql, alice: str, status: str) -> None:
    add_task(sql, alice, "t", status=status, result="/a.png")
    before = read_row(sql, "t")
    assert await own.cancel(alice, "t") == status
    assert read_row(sql, "t") == before


async def test_anothers_task_is_neither_canceled_nor_deleted(own: UserTasks, sql: Sql, alice: str, bob: str) -> None:
    add_task(sql, bob, "t")
    before = read_row(sql, "t")
    assert await own.cancel(alice, "t") is None
    assert await own.delete(alice, "t") is False
    assert await own.cancel(alice, "unknown") is None
    assert read_row(sql, "t") == before


async def test_a_deleted_task_is_gone(own: UserTasks, board: TaskReader, sql: Sql, alice: str) -> None:
    add_task(sql, alice, "t")
    assert await own.delete(alice, "t") is True
    assert await own.delete(alice, "t") is False
    assert await board.read(["t"]) == []


# --- list


async def test_pages_are_newest_first_and_each_task_is_on_one(own: UserTasks, sql: Sql, alice: str, bob: str) -> None:
    """Also where several were created at the same instant."""
    moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    for number in range(7):
        add_task(sql, alice, f"t{number}", created_at=moment + dt.timedelta(seconds=number // 3))
    add_task(sql, bob, "bobs")
    seen: list[str] = []
    before: tuple[dt.datetime, str] | None = None
    while page := await own.list(alice, limit=2, status=None, before=before):
        seen += [task.task_id for task in page]
        before = (page[-1].created_at, page[-1].task_id)
    assert seen == ["t6", "t5", "t4", "t3", "t2", "t1", "t0"]


async def test_a_list_may_be_of_one_status_and_names_the_prompts(own: UserTasks, sql: Sql, alice: str) -> None:
    add_task(sql, alice, "t", status="canceled", prompt="a canceled lake")
    add_task(sql, alice, "u")
    [task] = await own.list(alice, limit=9, status="canceled", before=None)
    assert (task.task_id, task.prompt) == ("t", "a canceled lake")


# --- the board


async def test_the_board_reads_everybodys_tasks_that_exist(board: TaskReader, sql: Sql, alice: str, bob: str) -> None:
    add_task(sql, alice, "a")
    add_task(sql, bob, "b", status="processing", progress=0.25, stage="painting", message="Sky.")
    sql("UPDATE public.image_generations SET progress = 0.5 WHERE task_id = 'b'")
    tasks = {task.task_id: task for task in await board.read(["b", "a", "unknown", "it's %s"])}
    assert {(task.task_id, task.user_id, task.version) for task in tasks.values()} == {("a", alice, 1), ("b", bob, 2)}
    described = tasks["b"].describe()
    assert [described[key] for key in ("progress", "stage", "message", "queuePosition")] == [
        0.5,
        "painting",
        "Sky.",
        None,
    ]
    assert await board.read_versions(["a", "b", "unknown"]) == {"a": 1, "b": 2}
    assert await board.read([]) == []


async def test_the_time_that_is_left_follows_from_the_time_that_was_needed(
    board: TaskReader, sql: Sql, alice: str
) -> None:
    add_task(
        sql,
        alice,
        "t",
        status="processing",
        progress=0.25,
        started_at="2026-01-01T00:00:00Z",
        updated_at="2026-01-01T00:00:10Z",
    )
    [task] = await board.read(["t"])
    assert task.seconds_left == 30.0


async def test_times_are_told_in_utc_and_what_was_not_yet_as_nothing(board: TaskReader, sql: Sql, alice: str) -> None:
    add_task(sql, alice, "t", created_at="2026-07-01T12:00:00.123456+02:00")
    [task] = await board.read(["t"])
    described = task.describe()
    assert described["createdAt"] == "2026-07-01T10:00:00.123Z"
    assert [described[key] for key in ("startedAt", "finishedAt", "result", "error", "progress")] == [None] * 5
