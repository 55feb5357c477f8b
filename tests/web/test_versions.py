"""Versions: what a client names to say what it has seen. They grow with each visible change, until a state that is final."""

from __future__ import annotations

import psycopg2
import psycopg2.errors
import pytest

from tests.support import rows
from tests.support.postgres import Sql
from tests.support.rows import add_task, add_user, read_row, read_task

shared_dsn, dsn = rows.shared_dsn, rows.dsn

VISIBLE = [
    "status = 'processing'",
    "status = 'canceled'",
    "status = 'failed'",
    "status = 'completed', result = '/a.png'",
    "error = 'hm'",
    "result = '/early.png'",
    "type = 'advanced'",
    "progress = 0.5",
    "stage = 'painting'",
    "message = 'Half of it is there.'",
    "attempt = attempt + 1",
    "cancel_requested = true",
    "started_at = now()",
    "progress = 0.5, stage = 'painting', message = 'All at once.'",
]
INVISIBLE = [
    "lease_expires_at = now() + interval '1 minute'",
    "lease_owner = 'somebody'",
    "run_after = now() + interval '1 minute'",
    "status = status, progress = progress, message = NULL",
    "version = 99",
    "version = 1",
    "updated_at = '2000-01-01'",
]
TERMINAL = {
    "completed": "status = 'completed', result = '/a.png'",
    "failed": "status = 'failed', error = 'no paint left'",
    "canceled": "status = 'canceled'",
}


@pytest.fixture
def task(sql: Sql) -> str:
    """The id of a pending task, that nobody has changed yet."""
    return add_task(sql, add_user(sql))


def update(sql: Sql, assignments: str) -> None:
    sql(f"UPDATE public.image_generations SET {assignments}")


@pytest.mark.parametrize("assignments", VISIBLE)
def test_each_visible_change_raises_the_version_by_one(sql: Sql, task: str, assignments: str) -> None:
    before = read_task(sql, task, "updated_at")[0]
    update(sql, assignments)
    version, updated_at = read_task(sql, task, "version, updated_at")
    assert version == 2
    assert updated_at > before


@pytest.mark.parametrize("assignments", INVISIBLE)
def test_what_no_client_can_see_changes_neither_version_nor_time(sql: Sql, task: str, assignments: str) -> None:
    before = read_task(sql, task, "version, updated_at")
    update(sql, assignments)
    assert read_task(sql, task, "version, updated_at") == before


def test_a_version_given_by_hand_is_ignored_beside_a_visible_change(sql: Sql, task: str) -> None:
    update(sql, "version = 99, updated_at = '2000-01-01', progress = 0.5")
    assert read_task(sql, task, "version, updated_at > created_at") == (2, True)


def test_versions_count_every_change_of_a_whole_life(sql: Sql, task: str) -> None:
    for assignments in ("status = 'processing'", "progress = 0.5", "status = 'pending'", "status = 'processing'"):
        update(sql, assignments)
    update(sql, TERMINAL["completed"])
    assert read_task(sql, task, "version") == (6,)


def test_two_changes_in_one_transaction_are_two_versions(sql: Sql, task: str) -> None:
    """And the time moves on between them, although now() doesn't."""
    sql(
        "BEGIN; UPDATE public.image_generations SET progress = 0.1; CREATE TEMP TABLE first ON COMMIT DROP AS"
        " SELECT updated_at FROM public.image_generations; UPDATE public.image_generations SET progress = 0.2;"
        " UPDATE public.image_generations SET message = 'later' FROM first"
        "  WHERE image_generations.updated_at > first.updated_at; COMMIT"
    )
    assert read_task(sql, task, "version, message") == (4, "later")


@pytest.mark.parametrize("status", TERMINAL)
def test_an_end_changes_status_outcome_and_time_in_one_version(sql: Sql, task: str, status: str) -> None:
    """A plain UPDATE does: nobody needs to know of `finished_at`."""
    update(sql, TERMINAL[status])
    assert read_task(sql, task, "version, status::text, finished_at IS NOT NULL, finished_at <= updated_at") == (
        2,
        status,
        True,
        True,
    )


def test_failed_without_an_error_gets_one(sql: Sql, task: str) -> None:
    update(sql, "status = 'failed'")
    assert read_task(sql, task, "version, error") == (2, "Generation failed")


def test_failed_keeps_the_error_it_was_given(sql: Sql, task: str) -> None:
    update(sql, TERMINAL["failed"])
    assert read_task(sql, task, "error") == ("no paint left",)


def test_a_task_that_begins_gets_its_time(sql: Sql, task: str) -> None:
    update(sql, "status = 'processing'")
    version, started_at = read_task(sql, task, "version, started_at")
    update(sql, "progress = 0.5")
    assert version == 2
    assert started_at is not None
    assert read_task(sql, task, "started_at") == (started_at,)  # and keeps it


@pytest.mark.parametrize("status", TERMINAL)
@pytest.mark.parametrize(
    "assignments",
    [
        "status = 'pending'",
        "status = 'pending', finished_at = NULL",
        "status = 'processing'",
        "status = CASE status WHEN 'failed' THEN 'canceled' ELSE 'failed' END::public.generation_status",
        "status = 'completed', result = '/other.png'",
        "result = '/other.png'",
        "error = 'another'",
        "progress = 0.99",
        "stage = 'again'",
        "message = 'again'",
        "attempt = 7",
        "cancel_requested = NOT cancel_requested",
        "finished_at = finished_at + interval '1 second'",
        "finished_at = NULL",
        "started_at = now()",
        "type = 'advanced'",
    ],
)
def test_a_terminal_state_is_final(sql: Sql, task: str, status: str, assignments: str) -> None:
    """Whatever a client could see of it can't be changed: an error, not silence, and the row stays as it was."""
    update(sql, TERMINAL[status])
    before = read_row(sql, task)
    with pytest.raises(psycopg2.errors.CheckViolation) as caught:
        update(sql, assignments)
    assert caught.value.diag.constraint_name == "terminal_is_final"
    assert read_row(sql, task) == before


@pytest.mark.parametrize("assignments", ["lease_owner = NULL", "status = status, result = result", "version = 99"])
def test_a_terminal_task_may_be_written_as_it_is(sql: Sql, task: str, assignments: str) -> None:
    """A repeated write that changes nothing is no fault."""
    update(sql, TERMINAL["completed"])
    before = read_row(sql, task)
    update(sql, assignments)
    assert read_row(sql, task) == before


def test_a_statement_that_meets_one_terminal_task_changes_none(sql: Sql, task: str) -> None:
    add_task(sql, read_task(sql, task, "user_id")[0], "done", status="canceled")
    with pytest.raises(psycopg2.errors.CheckViolation, match="task done is canceled, and that is final"):
        update(sql, "message = 'for all'")
    assert read_task(sql, task, "version, message") == (1, None)
