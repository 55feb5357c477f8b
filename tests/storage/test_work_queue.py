"""The workers' side of the table: who gets a task, who may write it, and what becomes of one that was left lying."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest

from server.errors import LeaseLost
from server.storage.database import Database
from server.storage.tasks import Claim, UserTasks, WorkQueue
from tests.support import rows
from tests.support.facts import until
from tests.support.postgres import Sql, execute
from tests.support.rows import add_task, add_user, read_row, read_task

shared_dsn, dsn = rows.shared_dsn, rows.dsn
own_dsn = rows.own_dsn

MAX_ATTEMPTS = 3
CLAIM = {"owners": ["one"], "type": None, "lease_seconds": 60, "undelivered": False, "most_running": 0}
WRITES: dict[str, Callable[[WorkQueue, Claim], Awaitable[object]]] = {
    "renew": lambda queue, claim: queue.renew(claim),
    "report": lambda queue, claim: queue.report(claim, 0.5, "painting", "Half of it is there."),
    "complete": lambda queue, claim: queue.complete(claim, "/a.png"),
    "fail": lambda queue, claim: queue.fail(claim, "no paint left"),
    "stop": lambda queue, claim: queue.stop(claim),
    "retry": lambda queue, claim: queue.retry(claim, "Once more.", 60),
    "release": lambda queue, claim: queue.release(claim),
}


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    """The server's way to the test's database."""
    opened = Database(dsn, pool_size=10, timeout=10)
    await opened.open()
    yield opened
    await opened.close()


def worker(database: Database, name: str = "one") -> WorkQueue:
    return WorkQueue(database, name, lease_seconds=60, max_attempts=MAX_ATTEMPTS)


@pytest.fixture
def queue(database: Database) -> WorkQueue:
    """The queue as the worker `one` has it."""
    return worker(database)


@pytest.fixture
def alice(sql: Sql) -> str:
    """The id of somebody who is registered."""
    return add_user(sql)


async def claimed(queue: WorkQueue) -> Claim:
    claim = await queue.claim()
    assert claim is not None
    return claim


def expire_leases(sql: Sql) -> None:
    sql(
        "UPDATE public.image_generations SET lease_expires_at = now() - interval '1 second' WHERE status = 'processing'"
    )


# --- claim


async def test_nobody_gets_a_task_where_there_is_none(queue: WorkQueue) -> None:
    assert await queue.claim() is None


async def test_a_claim_says_what_to_do_and_begins_the_task(queue: WorkQueue, sql: Sql, alice: str) -> None:
    add_task(sql, alice, "t", prompt="a lake", type="advanced", seed=7, size="512x512", has_reference=True)
    assert await queue.claim() == Claim("t", "a lake", "advanced", 7, "512x512", has_reference=True, attempt=1, tries=1)
    stored = "status::text, version, attempt, progress, lease_owner, started_at IS NOT NULL"
    assert read_task(sql, "t", stored) == ("processing", 2, 1, 0, "one", True)
    assert read_task(sql, "t", "lease_expires_at - now() BETWEEN '30 s' AND '60 s'") == (True,)


async def test_the_task_that_came_first_is_claimed_first(queue: WorkQueue, sql: Sql, alice: str) -> None:
    for task_id in ("b", "c", "a"):
        add_task(sql, alice, task_id)
    assert [(await claimed(queue)).task_id for _ in range(3)] == ["b", "c", "a"]


async def test_only_waiting_tasks_that_are_due_are_claimed(queue: WorkQueue, sql: Sql, alice: str) -> None:
    for status in ("processing", "completed", "failed", "canceled"):
        add_task(sql, alice, status, status=status, result="/a.png")
    add_task(sql, alice, "later", run_after="2999-01-01")
    assert await queue.claim() is None


async def test_many_claimers_at_once_get_each_task_once(database: Database, sql: Sql, alice: str) -> None:
    for number in range(50):
        add_task(sql, alice, f"t{number}")

    async def work(name: str) -> list[str]:
        queue, taken = worker(database, name), []
        while claim := await queue.claim():
            taken.append(claim.task_id)
        return taken

    hauls = await asyncio.gather(*(work(f"w{number}") for number in range(10)))
    assert sorted(task_id for haul in hauls for task_id in haul) == sorted(f"t{number}" for number in range(50))
    assert sql("SELECT count(*) FROM public.image_generations WHERE attempt = 1 AND version = 2") == [(50,)]


# --- the fence


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("theft", ["another worker", "the same worker", "rescued", "canceled", "completed", "deleted"])
async def test_without_the_lease_nothing_is_written(
    database: Database, queue: WorkQueue, sql: Sql, write: str, theft: str
) -> None:
    add_task(sql, add_user(sql), "t")
    claim = await claimed(queue)
    if theft in ("another worker", "the same worker", "rescued"):
        expire_leases(sql)
        await queue.rescue()
        if theft != "rescued":
            await claimed(worker(database, "two" if theft == "another worker" else "one"))
    elif theft == "deleted":
        sql("DELETE FROM public.image_generations")
    else:
        sql("UPDATE public.image_generations SET result = '/else.png', status = %s", (theft,))
    before = sql("SELECT * FROM public.image_generations")
    with pytest.raises(LeaseLost):
        await WRITES[write](queue, claim)
    assert sql("SELECT * FROM public.image_generations") == before


@pytest.mark.parametrize("write", WRITES)
async def test_a_worker_by_another_name_has_no_lease(
    database: Database, queue: WorkQueue, sql: Sql, alice: str, write: str
) -> None:
    add_task(sql, alice, "t")
    claim = await claimed(queue)
    before = read_row(sql, "t")
    with pytest.raises(LeaseLost):
        await WRITES[write](worker(database, "two"), claim)
    assert read_row(sql, "t") == before


# --- writes with the lease


async def test_a_renewal_is_not_a_visible_change(queue: WorkQueue, sql: Sql, alice: str) -> None:
    add_task(sql, alice, "t")
    claim = await claimed(queue)
    expire_leases(sql)
    before = read_task(sql, "t", "version, updated_at")
    assert await queue.renew(claim) is False
    assert read_task(sql, "t", "version, updated_at") == before
    assert await queue.rescue() == {}


async def test_progress_is_written_and_renews_the_lease(queue: WorkQueue, sql: Sql, alice: str) -> None:
    add_task(sql, alice, "t")
    claim = await claimed(queue)
    expire_leases(sql)
    assert await queue.report(claim, 0.5, "painting", "Half of it is there.") is False
    assert read_task(sql, "t", "version, progress, stage, message") == (3, 0.5, "painting", "Half of it is there.")
    assert await queue.rescue() == {}


async def test_only_progress_is_committed_without_waiting_for_the_disk(own_dsn: str) -> None:
    """What the transaction of each write was set to is written down by a trigger of the test's."""
    name = psycopg2.extensions.parse_dsn(own_dsn)["dbname"]
    execute(
        own_dsn,
        "CREATE TABLE public.noted (status text, progress real, setting text); GRANT INSERT ON public.noted TO PUBLIC;"
        " CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        "  INSERT INTO public.noted VALUES (NEW.status, NEW.progress, current_setting('synchronous_commit')); RETURN NULL;"
        " END $$; CREATE TRIGGER note AFTER UPDATE ON public.image_generations FOR EACH ROW EXECUTE FUNCTION public.note();"
        f" ALTER DATABASE {name} SET synchronous_commit = on",
    )
    execute(own_dsn, "INSERT INTO auth.users (id) VALUES ('00000000-0000-0000-0000-000000000001')")
    execute(
        own_dsn,
        "INSERT INTO public.image_generations (user_id, task_id) VALUES ('00000000-0000-0000-0000-000000000001', 't')",
    )
    database = Database(own_dsn, pool_size=1, timeout=5)
    await database.open()
    queue = worker(database)
    claim = await claimed(queue)
    await queue.report(claim, 0.5, "painting", "")
    await queue.complete(claim, "/a.png")
    await database.close()
    assert execute(own_dsn, "SELECT * FROM public.noted") == [
        ("processing", 0, "on"),
        ("processing", 0.5, "off"),
        ("completed", 1, "on"),
    ]


@pytest.mark.parametrize("write", ["renew", "report"])
async def test_a_worker_learns_that_it_shall_stop(queue: WorkQueue, sql: Sql, alice: str, write: str) -> None:
    add_task(sql, alice, "t")
    claim = await claimed(queue)
    sql("UPDATE public.image_generations SET cancel_requested = true")
    assert await WRITES[write](queue, claim) is True


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        ("complete", ("completed", "/a.png", None)),
        ("fail", ("failed", None, "no paint left")),
        ("stop", ("canceled", None, None)),
    ],
)
async def test_an_end_is_one_version_and_gives_the_lease_back(
    queue: WorkQueue, sql: Sql, alice: str, write: str, expected: tuple[str | None, ...]
) -> None:
    add_task(sql, alice, "t")
    await WRITES[write](queue, await claimed(queue))
    assert read_task(sql, "t", "status::text, result, error") == expected
    assert read_task(sql, "t", "version, finished_at IS NOT NULL, lease_owner, lease_expires_at") == (
        3,
        True,
        None,
        None,
    )


async def test_a_retry_is_not_claimed_before_its_delay_is_over(queue: WorkQueue, sql: Sql, alice: str) -> None:
    add_task(sql, alice, "t")
    await queue.retry(await claimed(queue), "Once more in a minute.", 60)
    stored = "status::text, version, message, progress, started_at IS NOT NULL, lease_owner"
    assert read_task(sql, "t", stored) == ("pending", 3, "Once more in a minute.", None, True, None)
    assert await queue.claim() is None
    sql("UPDATE public.image_generations SET run_after = run_after - interval '1 minute'")
    assert (await claimed(queue)).attempt == 2


async def test_a_task_that_is_given_back_may_be_claimed_at_once(queue: WorkQueue, sql: Sql, alice: str) -> None:
    add_task(sql, alice, "t")
    await queue.release(await claimed(queue))
    assert read_task(sql, "t", "status::text, version, progress, lease_owner") == ("pending", 3, None, None)
    assert (await claimed(queue)).attempt == 2


@pytest.mark.parametrize("write", ["retry", "release", "complete"])
async def test_a_cancel_that_the_worker_has_not_seen_is_kept(
    queue: WorkQueue, sql: Sql, alice: str, write: str
) -> None:
    add_task(sql, alice, "t")
    claim = await claimed(queue)
    sql("UPDATE public.image_generations SET cancel_requested = true")
    await WRITES[write](queue, claim)
    assert read_task(sql, "t", "status::text, result, version") == ("canceled", None, 4)


# --- rescue, and when to look again


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("attempt", 1, "pending"),
        ("attempt", MAX_ATTEMPTS - 1, "pending"),
        ("attempt", MAX_ATTEMPTS, "failed"),
        ("cancel_requested", True, "canceled"),
    ],
)
async def test_a_task_whose_worker_fell_silent_is_taken_back(
    queue: WorkQueue, sql: Sql, column: str, value: object, expected: str
) -> None:
    add_task(sql, add_user(sql), "t")
    await claimed(queue)
    sql(f"UPDATE public.image_generations SET {column} = %s", (value,))
    version = read_task(sql, "t", "version")[0]
    expire_leases(sql)
    assert await queue.rescue() == {"t": expected}
    assert await queue.rescue() == {}
    assert read_task(sql, "t", "status::text, version, lease_owner, lease_expires_at, progress") == (
        expected,
        version + 1,
        None,
        None,
        None,
    )
    assert (read_task(sql, "t", "error")[0] is not None) == (expected == "failed")


async def test_attempts_that_were_given_back_are_not_used_up(queue: WorkQueue, sql: Sql, alice: str) -> None:
    add_task(sql, alice, "t", attempt=MAX_ATTEMPTS, given_back=MAX_ATTEMPTS)
    assert (await claimed(queue)).tries == 1
    expire_leases(sql)
    assert await queue.rescue() == {"t": "pending"}
    sql("UPDATE public.image_generations SET given_back = 0")
    claim = await claimed(queue)
    await queue.release(claim, message="Later.", delay_seconds=60)
    assert read_task(sql, "t", "given_back, message, run_after > now()") == (1, "Later.", True)


async def test_a_cancel_counts_more_than_attempts_that_are_used_up(queue: WorkQueue, sql: Sql, alice: str) -> None:
    add_task(sql, alice, "t")
    await claimed(queue)
    sql("UPDATE public.image_generations SET cancel_requested = true, attempt = 99")
    expire_leases(sql)
    assert await queue.rescue() == {"t": "canceled"}
    assert read_task(sql, "t", "error") == (None,)


async def test_a_task_whose_worker_is_alive_is_left_to_it(queue: WorkQueue, sql: Sql, alice: str) -> None:
    """So is one that was begun by hand, without a lease, for as long as a lease."""
    add_task(sql, alice, "t")
    await claimed(queue)
    add_task(sql, alice, "by-hand", status="processing")
    assert await queue.rescue() == {}


@pytest.mark.parametrize("cancel", [False, True])
async def test_a_task_that_was_begun_without_a_lease_is_taken_back_after_one(
    queue: WorkQueue, database: Database, sql: Sql, alice: str, *, cancel: bool
) -> None:
    add_task(sql, alice, "t")
    sql("UPDATE public.image_generations SET status = 'processing'")
    if cancel:
        assert await UserTasks(database).cancel(alice, "t") == "processing"
    due = await queue.next_due()
    assert due is not None
    assert 0 < due <= 60
    assert await queue.rescue() == {}
    impatient = WorkQueue(database, "two", lease_seconds=0, max_attempts=MAX_ATTEMPTS)
    assert await impatient.rescue() == {"t": "canceled" if cancel else "pending"}
    assert read_task(sql, "t", "attempt") == (0,)


async def test_three_deploys_and_a_passing_failure_leave_two_tries(queue: WorkQueue, sql: Sql, alice: str) -> None:
    add_task(sql, alice, "t")
    for _ in range(3):
        await queue.release(await claimed(queue))
    claim = await claimed(queue)
    assert (claim.attempt, claim.tries) == (4, 1)
    await queue.retry(claim, "Once more.", 0)
    second = await claimed(queue)
    assert second.tries == 2 < MAX_ATTEMPTS
    await queue.retry(second, "Once more.", 0)
    assert (await claimed(queue)).tries == MAX_ATTEMPTS
    expire_leases(sql)
    assert await queue.rescue() == {"t": "failed"}


async def test_the_next_moment_to_look_is_the_earliest_retry_or_lease(queue: WorkQueue, sql: Sql, alice: str) -> None:
    assert await queue.next_due() is None
    add_task(sql, alice, "ended", status="canceled")
    assert await queue.next_due() is None
    add_task(sql, alice, "retry", run_after="2999-01-01")
    far = await queue.next_due()
    assert far is not None
    assert far > 86_400 * 365
    add_task(sql, alice, "t")
    await claimed(queue)
    lease = await queue.next_due()
    assert lease is not None
    assert 0 < lease <= 60
    expire_leases(sql)
    overdue = await queue.next_due()
    assert overdue is not None
    assert overdue < 0


# --- a cancel and a worker at the same moment


@contextmanager
def unfinished(dsn: str, database: Database, query: str, user: str | None, **parameters: Any) -> Iterator[Any]:
    """Run a named statement in a transaction that stays open until the caller commits it."""
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT set_config('request.jwt.claims', %s, true)", (json.dumps({"sub": user}),))
        cursor.execute(f"SET LOCAL ROLE {'longpoll_app' if user else 'longpoll_service'}")
        cursor.execute(database._queries[query], parameters)
        yield connection


def blocked(sql: Sql) -> Callable[[], bool]:
    """Return a condition: somebody waits for a lock."""
    return lambda: bool(
        sql("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
    )


async def test_a_cancel_behind_a_claim_asks_its_worker_to_stop(
    dsn: str, database: Database, queue: WorkQueue, sql: Sql, alice: str
) -> None:
    add_task(sql, alice, "t")
    with unfinished(dsn, database, "claim_task", None, **CLAIM) as claiming:
        cancel = asyncio.create_task(UserTasks(database).cancel(alice, "t"))
        await until(blocked(sql))
        claiming.commit()
        assert await cancel == "processing"
    assert read_task(sql, "t", "status::text, cancel_requested, version") == ("processing", True, 3)


async def test_a_claim_behind_a_cancel_finds_nothing_to_do(
    dsn: str, database: Database, queue: WorkQueue, sql: Sql, alice: str
) -> None:
    add_task(sql, alice, "t")
    with unfinished(dsn, database, "cancel_task", alice, user_id=alice, task_id="t") as canceling:
        assert await queue.claim() is None  # at once: it doesn't wait for the other's lock
        canceling.commit()
    assert await queue.claim() is None
    assert read_task(sql, "t", "status::text, version, attempt") == ("canceled", 2, 0)


async def test_a_cancel_behind_a_completion_changes_nothing(
    dsn: str, database: Database, queue: WorkQueue, sql: Sql, alice: str
) -> None:
    add_task(sql, alice, "t")
    claim = await claimed(queue)
    end = {"task_id": "t", "attempt": claim.attempt, "owner": "one", "result": "/a.png"}
    with unfinished(dsn, database, "complete_task", None, **end) as completing:
        cancel = asyncio.create_task(UserTasks(database).cancel(alice, "t"))
        await until(blocked(sql))
        completing.commit()
        assert await cancel == "completed"
    assert read_task(sql, "t", "status::text, cancel_requested, version") == ("completed", False, 3)


async def test_a_completion_behind_a_cancel_keeps_its_word(
    dsn: str, database: Database, queue: WorkQueue, sql: Sql, alice: str
) -> None:
    add_task(sql, alice, "t")
    claim = await claimed(queue)
    with unfinished(dsn, database, "cancel_task", alice, user_id=alice, task_id="t") as canceling:
        complete = asyncio.create_task(queue.complete(claim, "/a.png"))
        await until(blocked(sql))
        canceling.commit()
        assert await complete is True
    assert read_task(sql, "t", "status::text, result, version") == ("canceled", None, 4)
