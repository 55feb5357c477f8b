"""Notifications: each committed change is told once, as ids and versions and nothing else."""

from __future__ import annotations

import select
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest

from tests.support import rows
from tests.support.postgres import Sql, execute
from tests.support.rows import add_task, add_user

shared_dsn, dsn = rows.shared_dsn, rows.dsn

LONGEST_PAYLOAD = 7999  # bytes; one more, and Postgres aborts the statement


class Ear:
    """A connection that listens to every channel of ours."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg2.connect(dsn)
        self.connection.autocommit = True
        with self.connection.cursor() as cursor:
            cursor.execute(
                "LISTEN generation_changed; LISTEN generation_created; LISTEN session_revoked; LISTEN marker"
            )

    def hear(self) -> list[tuple[str, str]]:
        """Return (channel, payload) of all that was committed before this call, in that order.

        Notifications arrive in the order of their commits: when a marker sent now is there, so is all before it.
        """
        execute(self.connection.dsn, "NOTIFY marker")
        heard: list[tuple[str, str]] = []
        while True:
            while self.connection.notifies:
                note = self.connection.notifies.pop(0)
                if note.channel == "marker":
                    return heard
                heard.append((note.channel, note.payload))
            assert select.select([self.connection], [], [], 15)[0], "the marker never came"
            self.connection.poll()


@pytest.fixture
def ear(dsn: str) -> Iterator[Ear]:
    """Somebody who listens from now on."""
    listening = Ear(dsn)
    with closing(listening.connection):
        yield listening


@pytest.fixture
def alice(sql: Sql) -> str:
    """The id of somebody who is registered."""
    return add_user(sql)


def changed(payload: str) -> tuple[str, str]:
    return ("generation_changed", payload)


CREATED = ("generation_created", "")


def test_a_new_task_is_told_to_waiters_and_workers(sql: Sql, ear: Ear, alice: str) -> None:
    add_task(sql, alice, "t")
    assert sorted(ear.hear()) == [changed("t:1"), CREATED]


def test_a_task_that_is_inserted_at_its_end_wakes_no_worker(sql: Sql, ear: Ear, alice: str) -> None:
    add_task(sql, alice, "t", status="canceled")
    assert ear.hear() == [changed("t:1")]


def test_a_visible_change_is_told_with_its_version(sql: Sql, ear: Ear, alice: str) -> None:
    add_task(sql, alice, "t")
    ear.hear()
    sql("UPDATE public.image_generations SET status = 'processing', prompt = 'secret', message = 'secret'")
    assert ear.hear() == [changed("t:2")]


@pytest.mark.parametrize(
    "assignments",
    [
        "lease_expires_at = now() + interval '1 minute'",
        "run_after = now() + interval '1 minute'",
        "status = status",
        "version = 99",
    ],
)
def test_what_no_client_can_see_is_not_told(sql: Sql, ear: Ear, alice: str, assignments: str) -> None:
    add_task(sql, alice, "t")
    ear.hear()
    sql(f"UPDATE public.image_generations SET {assignments}")
    assert ear.hear() == []


def test_statements_that_meet_no_row_are_not_told(sql: Sql, ear: Ear) -> None:
    sql("UPDATE public.image_generations SET progress = 0.5; DELETE FROM public.image_generations")
    sql("INSERT INTO public.image_generations (user_id, task_id) SELECT gen_random_uuid(), 't' WHERE false")
    assert ear.hear() == []


def test_what_was_rolled_back_is_not_told(sql: Sql, ear: Ear, alice: str) -> None:
    sql("BEGIN; INSERT INTO public.image_generations (user_id, task_id) VALUES (%s, 't'); ROLLBACK", (alice,))
    assert ear.hear() == []


def test_a_deletion_is_told_without_a_version(sql: Sql, ear: Ear, alice: str) -> None:
    add_task(sql, alice, "t")
    ear.hear()
    sql("DELETE FROM public.image_generations")
    assert ear.hear() == [changed("t:-")]


def test_the_clean_up_tells_what_it_took(sql: Sql, ear: Ear, alice: str) -> None:
    add_task(sql, alice, "t", status="canceled", finished_at="2000-01-01")
    ear.hear()
    sql("SELECT public.cleanup_old_generations()")
    assert ear.hear() == [changed("t:-")]


def test_a_task_that_is_pending_again_wakes_the_workers(sql: Sql, ear: Ear, alice: str) -> None:
    add_task(sql, alice, "t", status="processing")
    ear.hear()
    sql("UPDATE public.image_generations SET status = 'pending'")
    assert sorted(ear.hear()) == [changed("t:2"), CREATED]


def test_two_changes_in_one_transaction_are_both_told(sql: Sql, ear: Ear, alice: str) -> None:
    add_task(sql, alice, "t")
    ear.hear()
    sql("UPDATE public.image_generations SET progress = 0.1; UPDATE public.image_generations SET progress = 0.2")
    assert ear.hear() == [changed("t:2"), changed("t:3")]


@pytest.mark.parametrize(
    ("statement", "suffix"),
    [
        ("UPDATE public.image_generations SET status = 'processing'", "9223372036854775807"),
        ("DELETE FROM public.image_generations", "-"),
    ],
)
def test_thousands_of_rows_are_told_in_few_payloads(
    sql: Sql, ear: Ear, alice: str, statement: str, suffix: str
) -> None:
    """The longest ids with the largest versions: each once, and no payload longer than Postgres takes."""
    sql(
        "INSERT INTO public.image_generations (user_id, task_id, version)"
        " SELECT %s, lpad(n::text, 64, 'x'), 9223372036854775806 FROM generate_series(1, 5000) AS n",
        (alice,),
    )
    ear.hear()
    sql(statement)
    payloads = [payload for channel, payload in ear.hear() if channel == "generation_changed"]
    told = Counter(item for payload in payloads for item in payload.split(","))
    assert told == Counter(f"{n:x>64}:{suffix}" for n in range(1, 5001))
    assert max(len(payload.encode()) for payload in payloads) <= LONGEST_PAYLOAD
    assert len(payloads) <= sum(len(item) + 1 for item in told) // (LONGEST_PAYLOAD - 100) + 1


@pytest.mark.parametrize("length", range(1, 65, 9))
def test_no_length_of_ids_makes_a_payload_too_long(sql: Sql, ear: Ear, alice: str, length: int) -> None:
    sql(
        "INSERT INTO public.image_generations (user_id, task_id)"
        " SELECT %s, lpad(n::text, greatest(%s, 4), 'x') FROM generate_series(1000, 3000) AS n",
        (alice, length),
    )
    payloads = [payload for channel, payload in ear.hear() if channel == "generation_changed"]
    assert sum(payload.count(",") + 1 for payload in payloads) == 2001
    assert max(len(payload) for payload in payloads) <= LONGEST_PAYLOAD


def give_credentials(sql: Sql, user_id: str) -> list[tuple[str, str]]:
    """Give the user a session and a token; returns what will be told when they are gone."""
    sql(
        "INSERT INTO longpoll.sessions (secret_hash, user_id, expires_at)"
        " VALUES (sha256('session'), %s, now() + interval '1 day')",
        (user_id,),
    )
    sql("INSERT INTO longpoll.tokens (secret_hash, user_id, name) VALUES (sha256('token'), %s, 'laptop')", (user_id,))
    return [
        ("session_revoked", str(sql(f"SELECT encode(sha256('{secret}'), 'hex')")[0][0]))
        for secret in ("session", "token")
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM longpoll.sessions; DELETE FROM longpoll.tokens",
        "DELETE FROM longpoll.accounts",
        "DELETE FROM auth.users",
    ],
)
def test_credentials_that_are_gone_are_told_by_their_hashes(sql: Sql, ear: Ear, alice: str, statement: str) -> None:
    """Deleted themselves, or with their account, or with their user."""
    expected = give_credentials(sql, alice)
    assert ear.hear() == []  # a new one is nobody's business
    sql(statement)
    assert sorted(ear.hear()) == sorted(expected)
