"""Claims of workers elsewhere: held until there is a task, which one of them gets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from server.storage.tasks import Claim, WorkQueue
from server.web import keys
from tests.support.facts import until
from tests.support.people import Person, Start
from tests.support.postgres import Sql
from tests.support.raw_http import connect_to
from tests.support.rows import add_task, add_user, read_task
from tests.support.workers import Hire, RemoteWorker, add_worker_token

STATE = "status::text, attempt, attempt - given_back, undelivered"


@pytest.fixture
def hire(alice: Person, sql: Sql) -> Hire:
    """Make a worker at Alice's server, with a token of its own: `hire("two", tags=["basic"])`."""

    def make(name: str = "one", **grant: Any) -> RemoteWorker:
        return RemoteWorker(alice.http, add_worker_token(sql, name, **grant), name)

    return make


def claimers(worker: RemoteWorker) -> int:
    return len(worker.app[keys.CLAIM_DESK])


# What is given --------------------------------------------------------------------------------------------------------


async def test_a_claim_says_all_that_is_needed(alice: Person, hire: Hire, sql: Sql) -> None:
    task_id = await alice.create("a lake at dawn", seed=7, size="768x512")
    answer = await hire().claim()
    assert (answer.reason, answer.body["skipped"], answer.body["retryAfterMs"]) == ("claimed", None, 0)
    task = answer.task
    lease = task.pop("lease")
    assert lease.startswith("1.")
    expected = {"taskId": task_id, "type": "basic", "prompt": "a lake at dawn", "seed": 7, "width": 768, "height": 512}
    assert {name: task[name] for name in expected} == expected
    assert (task["attempt"], task["leaseSeconds"]) == (1, 5.0)
    assert read_task(sql, task_id, STATE) == ("processing", 1, 0, True)
    assert read_task(sql, task_id, "lease_expires_at - now() BETWEEN '2 s' AND '5 s'") == (True,)
    assert (await alice.status(task_id, wait=0))["data"]["status"] == "processing"


async def test_a_held_claim_gets_what_is_created(alice: Person, hire: Hire) -> None:
    claim = await hire().held_claim()
    task_id = await alice.create()
    assert (await claim).task["taskId"] == task_id


async def test_a_new_task_wakes_one_and_that_is_who_waits_for_longest(alice: Person, hire: Hire) -> None:
    first, second = await hire("one").held_claim(), await hire("two").held_claim()
    looks = len(alice.app[keys.WAITERS])
    task_id = await alice.create()
    assert (await first).task["taskId"] == task_id
    await until(lambda: len(alice.app[keys.WAITERS]) == looks - 1)
    assert not second.done()
    other = await alice.create()
    assert (await second).task["taskId"] == other


async def test_several_may_be_claimed_at_once_and_whoever_waits_gets_one_first(alice: Person, hire: Hire) -> None:
    greedy, modest = hire("greedy", concurrency=5), hire("modest")
    task_ids = [await alice.create() for _ in range(2)]
    claimed = await greedy.claim(max=5)
    assert [task["taskId"] for task in claimed.tasks] == task_ids
    first, second = await hire("third", concurrency=5).held_claim(max=5), await modest.held_claim()
    more = WorkQueue(alice.app[keys.DATABASE], "", lease_seconds=1, max_attempts=3)
    assert await more.claim() is None
    alice.app[keys.CLAIM_DESK]._awake.clear()
    for _ in range(2):
        await alice.create()
    assert len((await first).tasks) + len((await second).tasks) == 2
    assert len((await second).tasks) == 1


async def test_without_a_wait_the_queue_is_looked_into_all_the_same(alice: Person, hire: Hire) -> None:
    worker = hire(concurrency=2)
    assert (await worker.claim(wait=0)).reason == "timeout"
    task_id = await alice.create()
    assert (await worker.claim(wait=0)).task["taskId"] == task_id


async def test_a_hold_ends_with_an_empty_list_and_says_why(alice: Person, hire: Hire, sql: Sql) -> None:
    add_task(sql, alice.user.user_id, type="advanced")
    add_task(sql, alice.user.user_id, type="advanced")
    add_task(sql, alice.user.user_id, run_after="2999-01-01")
    answer = await hire(tags=["basic"]).claim(wait=0.5)
    assert (answer.tasks, answer.reason) == ([], "timeout")
    assert answer.body["skipped"] == {"otherTags": 2, "userLimit": 0, "later": 1}
    assert answer.body["waitedMs"] >= 300


async def test_nobody_is_given_what_they_cannot_make(alice: Person, hire: Hire, sql: Sql) -> None:
    """By the token, or by what the worker says."""
    task_id = add_task(sql, alice.user.user_id, type="advanced")
    by_token, by_choice = hire("one", tags=["basic"]), hire("two")
    assert (await by_token.claim(wait=0)).tasks == []
    assert (await by_choice.claim(wait=0, tags=["basic"])).tasks == []
    held = await by_choice.held_claim(tags=["basic"])
    assert (await hire("three", tags=["advanced"]).claim(wait=0)).task["taskId"] == task_id
    own = add_task(sql, alice.user.user_id, type="basic")
    assert (await held).task["taskId"] == own


# How many -------------------------------------------------------------------------------------------------------------


async def test_with_one_token_no_more_are_held_than_it_is_for(alice: Person, hire: Hire, sql: Sql) -> None:
    """In whatever process they were claimed; and when one ends there is room again."""
    worker = hire(concurrency=2)
    for _ in range(4):
        await alice.create()
    assert len((await worker.claim(max=4)).tasks) == 2
    answer = await worker.claim(wait=0)
    assert (answer.tasks, answer.reason) == ([], "concurrency")
    waiting = await worker.held_claim()
    sql("UPDATE public.image_generations SET status = 'canceled', lease_owner = NULL WHERE status = 'processing'")
    assert len((await waiting).tasks) == 1


async def test_a_users_bound_of_running_tasks_is_kept_by_one_look(start: Start, sql: Sql) -> None:
    """One statement doesn't see what it begins itself."""
    client = await start(generation={"max_running_per_user": 1})
    alice, bob = add_user(sql, "alice"), add_user(sql, "bob")
    for user_id in (alice, alice, alice, bob):
        add_task(sql, user_id)
    worker = RemoteWorker(client, add_worker_token(sql, concurrency=9))
    assert len((await worker.claim(max=9)).tasks) == 2
    answer = await worker.claim(wait=0.1)
    assert (answer.reason, answer.body["skipped"]) == ("timeout", {"otherTags": 0, "userLimit": 2, "later": 0})


async def test_too_many_claims_of_one_token_are_answered_at_once(alice: Person, hire: Hire) -> None:
    worker = hire(concurrency=1)
    held = [await RemoteWorker(alice.http, worker.token, name).held_claim() for name in ("a", "b")]
    answer = await worker.claim()
    assert (answer.tasks, answer.reason) == ([], "degraded")
    assert 3000 <= answer.body["retryAfterMs"] <= 8000
    for each in held:
        each.cancel()


async def test_a_full_process_holds_no_claims(start: Start, sql: Sql) -> None:
    client = await start(polling={"max_held": 1})
    held = await RemoteWorker(client, add_worker_token(sql, "one")).held_claim()
    assert (await RemoteWorker(client, add_worker_token(sql, "two")).claim()).reason == "degraded"
    held.cancel()


# Who is there ---------------------------------------------------------------------------------------------------------


async def test_nothing_is_claimed_for_whoever_has_left(alice: Person, hire: Hire, sql: Sql) -> None:
    worker = hire()
    claim = await worker.held_claim()
    claim.cancel()
    await until(lambda: claimers(worker) == 0)
    task_id = await alice.create()
    assert read_task(sql, task_id, STATE) == ("pending", 0, 0, False)
    assert (await hire("two").claim()).task["attempt"] == 1


def claim_text(worker: RemoteWorker, **body: Any) -> bytes:
    content = json.dumps(body).encode()
    head = (
        "POST /api/work/claim HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {worker.token.secret}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def test_nothing_is_claimed_for_whoever_has_said_good_bye(alice: Person, hire: Hire, sql: Sql) -> None:
    """Somebody who sends no more may have left: others come first, and the claim ends with its time."""
    worker = hire()
    async with connect_to(alice) as connection:
        await connection.send(claim_text(worker, wait=0.5))
        await until(lambda: claimers(worker) == 1)
        connection.half_close()
        (claimer,) = worker.app[keys.CLAIM_DESK]._claimers
        await until(lambda: not claimer.is_open())
        task_id = await alice.create()
        assert (await hire("two").claim()).task["taskId"] == task_id
        reply = await connection.reply()
        while reply.status == 100:
            reply = await connection.reply()
        assert json.loads(reply.body)["tasks"] == []


async def test_who_leaves_while_a_task_is_claimed_gives_it_back(
    alice: Person, hire: Hire, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client resets its connection while the statement runs: no try is used, and somebody else gets the task."""
    worker = hire()
    claim = WorkQueue.claim_to_deliver
    async with connect_to(alice) as connection:

        async def leave_meanwhile(*given: Any, **options: Any) -> list[tuple[str, Claim]]:
            claimed = await claim(*given, **options)
            if claimed:
                connection.abort()
                await until(lambda: claimers(worker) == 0)
            return claimed

        monkeypatch.setattr(WorkQueue, "claim_to_deliver", leave_meanwhile)
        await connection.send(claim_text(worker))
        await until(lambda: claimers(worker) == 1)
        task_id = await alice.create()
        await until(lambda: read_task(sql, task_id, STATE) == ("pending", 1, 0, False))
    monkeypatch.undo()
    assert (await hire("two").claim()).task["attempt"] == 2


async def test_the_newer_claim_of_a_worker_ends_the_older(alice: Person, hire: Hire) -> None:
    worker, stranger = hire(), hire("two")
    older = await worker.held_claim()
    same_name = await RemoteWorker(alice.http, stranger.token, worker.name).held_claim()
    newer = asyncio.create_task(worker.claim())
    assert (await older).reason == "superseded"
    assert not same_name.done(), "with another token it is another worker"
    same_name.cancel()
    await until(lambda: claimers(worker) == 1)
    task_id = await alice.create()
    assert (await newer).task["taskId"] == task_id


ENDS = {
    "revoked": "DELETE FROM longpoll.worker_tokens WHERE name = 'one'",
    "expired": "UPDATE longpoll.worker_tokens SET expires_at = now() - interval '1 second' WHERE name = 'one'",
}


@pytest.mark.parametrize("end", ENDS)
async def test_a_claim_ends_with_its_token(hire: Hire, sql: Sql, end: str) -> None:
    claim, other = await hire("one").held_claim(), await hire("two").held_claim()
    sql(ENDS[end])
    assert (await claim).problem == (401, "not_signed_in")
    assert not other.done()
    other.cancel()


async def test_a_claim_ends_when_its_token_does_by_itself(hire: Hire) -> None:
    assert (await hire(days=1 / 86_400).claim()).problem == (401, "not_signed_in")


async def test_a_process_that_stops_lets_its_claims_go_at_once(alice: Person, hire: Hire, sql: Sql) -> None:
    """Not spread out as polls are; and whatever comes afterwards gets nothing."""
    claim = await hire().held_claim()
    alice.app[keys.WAITERS].drain(60)
    answer = await claim
    assert (answer.tasks, answer.reason) == ([], "drain")
    task_id = await alice.create()
    answer = await hire("two").claim()
    assert (answer.tasks, answer.reason) == ([], "drain")
    assert read_task(sql, task_id, STATE) == ("pending", 0, 0, False)


async def test_each_task_is_claimed_once_in_however_many_processes(
    alice: Person, start: Start, hire: Hire, sql: Sql
) -> None:
    other = await start()
    workers = [hire(f"here {n}") for n in range(5)]
    workers += [RemoteWorker(other, add_worker_token(sql, f"there {n}"), f"there-{n}") for n in range(5)]
    for each in workers:
        each.name = each.name.replace(" ", "-")
    claims = [await each.held_claim() for each in workers]
    task_ids = await asyncio.gather(*(alice.create() for _ in claims))
    answers = await asyncio.gather(*claims)
    assert sorted(answer.task["taskId"] for answer in answers) == sorted(task_ids)
    assert sql("SELECT count(*) FROM public.image_generations WHERE attempt = 1") == [(10,)]


# Delivery -------------------------------------------------------------------------------------------------------------


async def test_an_answer_that_reaches_nobody_costs_no_attempt(start: Start, sql: Sql) -> None:
    """However often: the lease is short, and nothing but a word from the worker makes it a try."""
    client = await start(generation={"delivery_seconds": 0.2, "max_attempts": 2})
    task_id = add_task(sql, add_user(sql))
    worker = RemoteWorker(client, add_worker_token(sql, concurrency=2))
    for attempt in range(1, 6):
        assert (await worker.claim()).task["attempt"] == attempt
    assert read_task(sql, task_id, STATE) == ("processing", 5, 0, True)


async def test_leases_are_watched_when_nobody_waits_any_more(start: Start, sql: Sql) -> None:
    """The last worker is lost, and the owner has canceled: the task ends all the same."""
    client = await start(generation={"delivery_seconds": 0.2})
    task_id = add_task(sql, add_user(sql))
    assert (await RemoteWorker(client, add_worker_token(sql)).claim()).task["taskId"] == task_id
    sql("UPDATE public.image_generations SET cancel_requested = true")
    await until(lambda: read_task(sql, task_id, "status::text") == ("canceled",))


async def test_without_workers_the_database_is_not_asked(alice: Person) -> None:
    """For leases, or for what is due: nobody has claimed anything here."""
    await alice.create()
    desk = alice.app[keys.CLAIM_DESK]
    assert (desk._watching, desk._awake.is_set()) == (False, False)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "problem", "said"),
    [
        ({"tags": ["video"]}, (400, "bad_request"), "Unknown tag: video. Known are: basic, advanced."),
        ({"tags": ["a\0b"]}, (400, "bad_request"), "Unknown tag"),
        ({"tags": []}, (400, "bad_request"), "a list of at least one tag"),
        ({"tags": "basic"}, (400, "bad_request"), "a list of at least one tag"),
        ({"tags": [1]}, (400, "bad_request"), "a list of at least one tag"),
        ({"tags": ["advanced"]}, (403, "tag_refused"), "It may claim basic, not advanced."),
        ({"max": 0}, (400, "bad_request"), "max must be a whole number from 1 to 16."),
        ({"max": 17}, (400, "bad_request"), "max must be"),
        ({"max": 1.5}, (400, "bad_request"), "max must be"),
        ({"max": True}, (400, "bad_request"), "max must be"),
        ({"worker": ""}, (400, "bad_request"), "worker must be a name of 1 to 64 characters"),
        ({"worker": "x" * 65}, (400, "bad_request"), "worker must be"),
        ({"worker": "a b"}, (400, "bad_request"), "worker must be"),
        ({"worker": "a\0"}, (400, "bad_request"), "worker must be"),
        ({"worker": None}, (400, "bad_request"), "worker must be"),
        ({"wait": -1}, (400, "bad_request"), "wait must be a number of seconds from 0 to 30."),
        ({"wait": "1"}, (400, "bad_request"), "wait must be"),
        ({"wait": True}, (400, "bad_request"), "wait must be"),
        ({"colour": "red"}, (400, "bad_request"), "Unknown field: colour."),
    ],
)
async def test_what_makes_no_sense_is_refused(hire: Hire, body: Any, problem: Any, said: str) -> None:
    answer = await hire(tags=["basic"]).claim(**body)
    assert answer.problem == problem
    assert said in answer.body["detail"]


async def test_a_body_that_is_too_large_or_of_another_kind_is_refused(hire: Hire) -> None:
    worker = hire()
    for data, kind, status in (
        (b"x" * 65_537, "application/json", 413),
        (b"{}", "text/plain", 415),
        (b"{", "application/json", 400),
    ):
        headers = {**worker.token.header, "Content-Type": kind}
        async with worker.http.post("/api/work/claim", data=data, headers=headers) as reply:
            assert reply.status == status


async def test_who_asks_too_often_is_told_when_to_come_back(start: Start, sql: Sql) -> None:
    client = await start(limits={"enabled": True, "poll": "2 per minute"})
    worker = RemoteWorker(client, add_worker_token(sql))
    for _ in range(2):
        assert (await worker.claim(wait=0)).status == 200
    assert (await worker.claim(wait=0)).problem == (429, "too_many_requests")
