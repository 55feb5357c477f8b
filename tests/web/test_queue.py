"""Where a waiting task stands, and when it may be ready: from the queue and from what was made lately."""

from __future__ import annotations

from tests.support.people import Person
from tests.support.postgres import Sql


async def test_places_in_the_queue_are_counted_from_one_over_all_users(alice: Person, bob: Person) -> None:
    first, second, third = await alice.create(), await bob.create(), await alice.create()
    places = [
        (await person.status(task_id, wait=0))["data"]["queuePosition"]
        for person, task_id in [(alice, first), (bob, second), (alice, third)]
    ]
    assert places == [1, 2, 3]


async def test_without_any_history_nothing_is_promised(alice: Person) -> None:
    data = (await alice.status(await alice.create(), wait=0))["data"]
    assert data["etaSeconds"] is None


async def test_a_waiting_task_is_judged_by_the_last_pictures_and_the_busy_workers(alice: Person, sql: Sql) -> None:
    for seconds in (4, 8):
        _complete(sql, await alice.create(), seconds)
    for number in range(2):
        _process(sql, await alice.create(), f"worker {number}")
    places = [await alice.create() for _ in range(3)]
    estimates = [(await alice.status(task_id, wait=0))["data"]["etaSeconds"] for task_id in places]
    assert estimates == [6.0, 6.0, 12.0]


async def test_a_task_in_work_is_judged_by_its_own_progress(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    _process(sql, task_id, "worker")
    sql(
        "UPDATE public.image_generations SET progress = 0.25, started_at = clock_timestamp() - interval '10 s'"
        " WHERE task_id = %s",
        (task_id,),
    )
    data = (await alice.status(task_id, wait=0))["data"]
    assert data["queuePosition"] is None
    assert 29 <= data["etaSeconds"] <= 33


def _complete(sql: Sql, task_id: str, seconds: float) -> None:
    sql(
        "UPDATE public.image_generations SET status = 'completed', result = '/x',"
        " started_at = now() - make_interval(secs => %s), finished_at = now() WHERE task_id = %s",
        (seconds, task_id),
    )


def _process(sql: Sql, task_id: str, worker: str) -> None:
    sql(
        "UPDATE public.image_generations SET status = 'processing', lease_owner = %s,"
        " lease_expires_at = now() + interval '1 minute' WHERE task_id = %s",
        (worker, task_id),
    )
