"""In which order waiting tasks are claimed: users take turns, whoever inserts and however many are waiting."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.errors import IdempotencyMismatch, TooManyWaiting
from server.storage.database import Database
from server.storage.migrations import migrate, read_migrations
from server.storage.queue import QueueReader
from server.storage.tasks import NewTask, Task, UserTasks, WorkQueue
from tests.support import rows
from tests.support.pooler import pooler
from tests.support.postgres import Sql, execute
from tests.support.rows import add_task, add_user, read_task, run_as

shared_dsn, dsn = rows.shared_dsn, rows.dsn
LOW, NORMAL, HIGH = -1, 0, 1


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    """The server's way to the test's database."""
    opened = Database(dsn, pool_size=10, timeout=10)
    await opened.open()
    yield opened
    await opened.close()


def queue_of(database: Database, name: str = "one", *, most_running: int = 0) -> WorkQueue:
    return WorkQueue(database, name, lease_seconds=60, max_attempts=3, most_running=most_running)


@pytest.fixture
def queue(database: Database) -> WorkQueue:
    """The queue as a worker has it."""
    return queue_of(database)


@pytest.fixture
def alice(sql: Sql) -> str:
    """The id of somebody who is registered."""
    return add_user(sql, "alice")


@pytest.fixture
def bob(sql: Sql) -> str:
    """The id of somebody else."""
    return add_user(sql, "bob")


def add_many(sql: Sql, user: str, name: str, count: int, priority: int = NORMAL) -> None:
    """Insert many tasks of one user by one plain statement."""
    sql(
        "INSERT INTO public.image_generations (user_id, task_id, prompt, priority)"
        " SELECT %s, %s || number, 'a lake', %s FROM generate_series(1, %s) AS number",
        (user, name, priority, count),
    )


async def claim_all(queue: WorkQueue, most: int = 1_000_000) -> list[str]:
    claimed: list[str] = []
    while len(claimed) < most and (claim := await queue.claim()):
        claimed.append(claim.task_id)
    return claimed


def jain(shares: list[int]) -> float:
    """Return Jain's index of fairness: 1 if all get the same, 1/n if one gets everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def new_task(user: str, **fields: object) -> NewTask:
    row: dict[str, object] = {"priority": NORMAL, "idempotency_key": None, "request_digest": b"x", **fields}
    task_id = uuid.uuid4().hex
    return NewTask(task_id, user, "a lake", "basic", 7, "512x512", has_reference=False, **row)  # type: ignore[arg-type]


# --- fairness


async def test_twenty_users_do_not_wait_for_one_with_a_thousand_tasks(queue: WorkQueue, sql: Sql, alice: str) -> None:
    """Their p95 wait, in claims, is at most 1.2 times that in an empty queue, where they wait for each other only."""
    add_many(sql, alice, "alice-", 1000)
    assert await claim_all(queue, 1) == ["alice-1"]
    for number in range(20):
        add_task(sql, add_user(sql, f"user{number}"), f"user{number}")
    order = await claim_all(queue, 40)
    waits = sorted(order.index(f"user{number}") + 1 for number in range(20))
    assert waits[18] <= 1.2 * 19
    assert [task_id for task_id in order if task_id.startswith("user")] == [f"user{number}" for number in range(20)]


async def test_users_who_all_have_many_get_the_same(queue: WorkQueue, sql: Sql) -> None:
    """However unevenly they wait, as long as each has something."""
    for number in range(10):
        add_many(sql, add_user(sql, f"user{number}"), f"{number}-", 20 * (number + 1))
    order = await claim_all(queue, 150)
    assert jain([sum(task_id.startswith(f"{number}-") for task_id in order) for number in range(10)]) > 0.99


async def test_who_comes_one_at_a_time_gets_no_more_than_who_comes_with_all_at_once(
    queue: WorkQueue, sql: Sql, alice: str, bob: str
) -> None:
    add_many(sql, alice, "alice-", 50)
    for number in range(20):
        add_task(sql, bob, f"bob-{number}")
        await claim_all(queue, 2)
    done = [row[0] for row in sql("SELECT left(task_id, 3) FROM public.image_generations WHERE status = 'processing'")]
    assert abs(done.count("ali") - done.count("bob")) <= 1


async def test_ones_own_tasks_keep_their_order(queue: WorkQueue, sql: Sql, alice: str) -> None:
    add_many(sql, alice, "t", 30)
    assert await claim_all(queue) == [f"t{number}" for number in range(1, 31)]


async def test_a_task_that_comes_back_is_claimed_before_what_came_later(
    queue: WorkQueue, sql: Sql, alice: str, bob: str
) -> None:
    add_many(sql, alice, "a", 2)
    claim = await queue.claim()
    assert claim is not None
    add_task(sql, bob, "b")
    await queue.release(claim)
    assert (await claim_all(queue))[0] == "a1"


async def test_a_task_that_was_begun_by_hand_gets_a_turn_when_it_is_put_into_the_queue(
    queue: WorkQueue, sql: Sql, alice: str, bob: str
) -> None:
    add_task(sql, alice, "by-hand", status="processing")
    assert read_task(sql, "by-hand", "turn") == (0,)
    add_task(sql, bob, "b")
    sql("UPDATE public.image_generations SET status = 'pending' WHERE task_id = 'by-hand'")
    assert read_task(sql, "by-hand", "turn") == read_task(sql, "b", "turn")


# --- priority


async def test_high_goes_before_normal_and_normal_before_low(queue: WorkQueue, sql: Sql, alice: str, bob: str) -> None:
    add_task(sql, alice, "low", priority=LOW)
    add_task(sql, alice, "normal")
    add_task(sql, bob, "high", priority=HIGH)
    assert await claim_all(queue) == ["high", "normal", "low"]


async def test_low_priority_is_not_passed_for_ever(queue: WorkQueue, sql: Sql, alice: str, bob: str) -> None:
    """Though for each task that is claimed two others come, of normal priority and of users who are new."""
    add_task(sql, alice, "low", priority=LOW)
    order: list[str] = []
    for number in range(200):
        add_task(sql, bob, f"bob-{number}")
        add_task(sql, bob, f"high-{number}", priority=HIGH)
        order += await claim_all(queue, 1)
        if "low" in order:
            break
    assert 5 <= order.index("low") <= 150


async def test_of_two_that_always_have_something_high_gets_ten_times_as_much(
    queue: WorkQueue, sql: Sql, alice: str, bob: str
) -> None:
    add_many(sql, alice, "n", 100)
    add_many(sql, bob, "h", 200, HIGH)
    order = await claim_all(queue, 110)
    assert 9 <= sum(task_id.startswith("n") for task_id in order) <= 11


@pytest.mark.parametrize("priority", [-2, 2, 100])
def test_the_database_knows_three_priorities(sql: Sql, alice: str, priority: int) -> None:
    with pytest.raises(Exception, match="priority"):
        add_task(sql, alice, "t", priority=priority)


def test_nobody_but_the_trigger_decides_on_a_turn(dsn: str, alice: str) -> None:
    statement = f"INSERT INTO public.image_generations (user_id, task_id, turn) VALUES ('{alice}', 't', 1)"
    with pytest.raises(Exception, match="permission denied"):
        run_as(dsn, "longpoll_app", statement, user=alice)
    for forbidden in ("SELECT last_value FROM longpoll.turns", "SELECT setval('longpoll.turns', 1000000)"):
        for role in ("longpoll_app", "longpoll_service"):
            with pytest.raises(Exception, match="permission denied"):
                run_as(dsn, role, forbidden)


# --- bounds of one user


async def test_of_a_user_who_has_enough_running_nothing_is_claimed(
    database: Database, sql: Sql, alice: str, bob: str
) -> None:
    bounded = queue_of(database, most_running=2)
    add_many(sql, alice, "a", 5)
    add_task(sql, bob, "b")
    assert await claim_all(bounded) == ["a1", "b", "a2"]
    due = await bounded.next_due()
    assert due is not None
    assert due <= 0
    sql("UPDATE public.image_generations SET status = 'completed', result = '/x' WHERE task_id = 'a1'")
    assert await claim_all(bounded) == ["a3"]


async def test_a_user_has_no_more_tasks_waiting_than_may_be(database: Database, alice: str, bob: str, sql: Sql) -> None:
    """Counted exactly, though all come at the same moment; another user's don't count."""
    bounded = UserTasks(database, most_waiting=5)
    made = await asyncio.gather(*(bounded.create(new_task(alice)) for _ in range(9)), return_exceptions=True)
    assert sum(isinstance(each, Task) for each in made) == 5
    refused = [each for each in made if isinstance(each, TooManyWaiting)]
    assert len(refused) == 4
    assert all(each.retry_after for each in refused)
    assert isinstance(await bounded.create(new_task(bob)), Task)
    assert len({turn for (turn,) in sql("SELECT turn FROM public.image_generations WHERE user_id = %s", (alice,))}) == 5


async def test_a_repeated_request_finds_its_task_though_nothing_more_may_wait(database: Database, alice: str) -> None:
    bounded = UserTasks(database, most_waiting=1)
    first = await bounded.create(new_task(alice, idempotency_key="k"))
    assert isinstance(first, Task)
    assert await bounded.create(new_task(alice, idempotency_key="k")) == first.task_id
    with pytest.raises(IdempotencyMismatch):
        await bounded.create(new_task(alice, idempotency_key="k", request_digest=b"y"))
    with pytest.raises(TooManyWaiting):
        await bounded.create(new_task(alice, idempotency_key="other"))


# --- the queue as it is told


async def test_the_queue_is_told_in_the_order_of_claims(
    database: Database, queue: WorkQueue, sql: Sql, alice: str, bob: str
) -> None:
    add_many(sql, alice, "a", 4)
    add_many(sql, bob, "b", 2)
    add_task(sql, bob, "low", priority=LOW)
    add_task(sql, alice, "later", run_after="2999-01-01")
    reader = QueueReader(database)
    state = await reader.read(100)
    assert state.turns == sorted(state.turns)
    assert (await reader.read(3)).task_ids == state.task_ids[:3]
    assert await claim_all(queue) == state.task_ids
    assert (await reader.read(100)).task_ids == []
    assert (await reader.read(100)).workers == 1


async def test_the_queue_is_told_through_a_transaction_pooler(dsn: str, sql: Sql, alice: str) -> None:
    add_many(sql, alice, "a", 3)
    with pooler(dsn) as pooled:
        database = Database(pooled, pool_size=2, timeout=10)
        await database.open()
        try:
            assert (await QueueReader(database).read(2)).task_ids == ["a1", "a2"]
            assert isinstance(await UserTasks(database, most_waiting=9).create(new_task(alice)), Task)
            assert await claim_all(queue_of(database), 1) == ["a1"]
        finally:
            await database.close()


# --- the migration


async def test_tasks_that_waited_before_turns_existed_get_theirs(empty_dsn: str) -> None:
    migrations = read_migrations()
    before = [migration for migration in migrations if migration.name < "0007"]
    await migrate(empty_dsn, migrations=before)
    users = [f"00000000-0000-0000-0000-00000000000{number}" for number in (1, 2)]
    for user in users:
        execute(empty_dsn, "INSERT INTO auth.users (id) VALUES (%s)", (user,))
    insert = (
        "INSERT INTO public.image_generations (user_id, task_id, prompt, status, result, created_at)"
        " VALUES (%s, %s, 'a lake', %s, '/x', now() + make_interval(secs => %s))"
    )
    for number, (user, task_id, status) in enumerate(
        [
            (0, "a1", "pending"),
            (0, "a2", "pending"),
            (1, "b1", "pending"),
            (0, "run", "processing"),
            (1, "end", "completed"),
        ]
    ):
        execute(empty_dsn, insert, (users[user], task_id, status, number))
    await migrate(empty_dsn, migrations=migrations)
    stored = "SELECT task_id, turn, version FROM public.image_generations ORDER BY turn, created_at"
    assert execute(empty_dsn, stored) == [("end", 0, 1), ("run", 1, 1), ("a1", 100, 1), ("b1", 100, 1), ("a2", 200, 1)]


def test_the_statement_for_the_board_knows_nothing_of_the_queue() -> None:
    text = (Path(__file__).parents[2] / "sql" / "queries.sql").read_text()
    statement = text.partition("-- name: read_tasks\n")[2].partition("-- name:")[0].partition("SELECT")[2]
    assert "pending" not in statement
    assert "count" not in statement
