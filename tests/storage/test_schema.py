"""The schema: the guide's names, what a plain INSERT gets, what is refused, and what a clean-up takes."""

from __future__ import annotations

import datetime as dt

import psycopg2
import psycopg2.errors
import pytest

from tests.support import rows
from tests.support.postgres import Sql
from tests.support.rows import add_task, add_user, read_task, run_as

shared_dsn, dsn = rows.shared_dsn, rows.dsn

_NOW = dt.datetime.now(dt.UTC)
AGES = {"old": _NOW - dt.timedelta(days=7, minutes=1), "young": _NOW - dt.timedelta(days=6, hours=23)}
TERMINAL = {
    "completed": {"status": "completed", "result": "/a.png"},
    "failed": {"status": "failed"},
    "canceled": {"status": "canceled"},
}


@pytest.fixture
def alice(sql: Sql) -> str:
    """The id of somebody who is registered."""
    return add_user(sql)


def test_the_guides_table_has_the_guides_columns(sql: Sql) -> None:
    columns = sql(
        "SELECT column_name, data_type, is_nullable FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name = 'image_generations'"
    )
    assert {
        ("id", "uuid", "NO"),
        ("user_id", "uuid", "NO"),
        ("task_id", "text", "NO"),
        ("status", "USER-DEFINED", "NO"),
        ("result", "text", "YES"),
        ("error", "text", "YES"),
        ("prompt", "text", "YES"),
        ("created_at", "timestamp with time zone", "NO"),
        ("updated_at", "timestamp with time zone", "NO"),
    } <= set(columns)


def test_the_guides_names_exist(sql: Sql) -> None:
    """Enum, constraint, indexes, policies, trigger and function are called as in the guide."""
    table = "'public.image_generations'::regclass"
    labels = [label for (label,) in sql("SELECT unnest(enum_range(NULL::public.generation_status))::text")]
    indexes = {name for (name,) in sql(f"SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = {table}")}
    policies = {name for (name,) in sql(f"SELECT polname FROM pg_policy WHERE polrelid = {table}")}
    triggers = {name for (name,) in sql(f"SELECT tgname FROM pg_trigger WHERE tgrelid = {table} AND NOT tgisinternal")}
    constraints = {name for (name,) in sql(f"SELECT conname FROM pg_constraint WHERE conrelid = {table}")}
    assert labels == ["pending", "processing", "completed", "failed", "canceled"]
    assert {"idx_image_generations_task_id", "idx_image_generations_user_status"} <= indexes
    assert {"Users can view their own generations", "Users can create their own generations"} <= policies
    assert "handle_updated_at" in triggers
    assert "check_result_on_completed" in constraints
    assert sql("SELECT to_regprocedure('public.cleanup_old_generations()') IS NOT NULL") == [(True,)]


def test_public_holds_only_what_the_guide_puts_there(sql: Sql) -> None:
    """A REST layer in front of `public` exposes nothing else."""
    relations = sql("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind <> 'i'")
    functions = sql("SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace")
    types = sql(
        "SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typcategory <> 'A' AND typtype <> 'c'"
    )
    assert relations == [("image_generations",)]
    assert functions == [("cleanup_old_generations",)]
    assert types == [("generation_status",)]


def test_every_table_of_ours_has_row_level_security(sql: Sql) -> None:
    """The ledger of migrations apart, for which nobody but its owner has any right."""
    open_tables = sql(
        "SELECT oid::regclass::text FROM pg_class"
        " WHERE relnamespace IN ('public'::regnamespace, 'longpoll'::regnamespace) AND relkind = 'r' AND NOT relrowsecurity"
    )
    assert open_tables == [("longpoll.migrations",)]


def test_a_plain_insert_has_sensible_defaults(sql: Sql, alice: str) -> None:
    sql("INSERT INTO public.image_generations (user_id, task_id, prompt) VALUES (%s, 't-1', 'a lake')", (alice,))
    assert read_task(sql, "t-1", "status::text, version, type, attempt, cancel_requested, has_reference") == (
        "pending",
        1,
        "basic",
        0,
        False,
        False,
    )
    assert read_task(sql, "t-1", "result, error, progress, stage, started_at, finished_at, lease_owner") == (None,) * 7
    assert read_task(sql, "t-1", "created_at = updated_at, run_after <= now(), seed >= 0, size = '768x768'") == (
        True,
        True,
        True,
        True,
    )


@pytest.mark.parametrize("status", TERMINAL)
def test_a_task_may_be_inserted_in_a_terminal_state(sql: Sql, alice: str, status: str) -> None:
    """Then it has the time at which it ended, and a failed one an error."""
    add_task(sql, alice, "t", **TERMINAL[status])
    assert read_task(sql, "t", "status::text, finished_at IS NOT NULL, (error IS NOT NULL) = (status = 'failed')") == (
        status,
        True,
        True,
    )


@pytest.mark.parametrize("task_id", ["", "a" * 65, "a b", "a/b", "a.b", "ä", "a\n", "%", "a:1", "a,b"])
def test_a_task_id_outside_the_alphabet_is_refused(sql: Sql, alice: str, task_id: str) -> None:
    with pytest.raises(psycopg2.errors.CheckViolation, match="task_id"):
        sql("INSERT INTO public.image_generations (user_id, task_id) VALUES (%s, %s)", (alice, task_id))


@pytest.mark.parametrize("task_id", ["a", "a" * 64, "-_09azAZ"])
def test_a_task_id_within_the_alphabet_is_taken(sql: Sql, alice: str, task_id: str) -> None:
    assert add_task(sql, alice, task_id) == task_id


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("prompt", ""),
        ("prompt", "a" * 4001),
        ("type", "fancy"),
        ("seed", -1),
        ("size", "768"),
        ("size", "0x768"),
        ("size", "768x768\n"),
        ("progress", -0.01),
        ("progress", 1.01),
        ("progress", float("nan")),
        ("idempotency_key", ""),
        ("idempotency_key", "k" * 256),
        ("finished_at", "2026-01-01T00:00:00Z"),
    ],
)
def test_a_value_that_breaks_a_rule_is_refused(sql: Sql, alice: str, column: str, value: object) -> None:
    with pytest.raises(psycopg2.errors.CheckViolation):
        add_task(sql, alice, "t", **{column: value})
    assert sql("SELECT count(*) FROM public.image_generations") == [(0,)]


def test_completed_needs_a_result(sql: Sql, alice: str) -> None:
    add_task(sql, alice, "t")
    with pytest.raises(psycopg2.errors.CheckViolation, match="check_result_on_completed"):
        sql("UPDATE public.image_generations SET status = 'completed'")
    with pytest.raises(psycopg2.errors.CheckViolation, match="check_result_on_completed"):
        add_task(sql, alice, "u", status="completed")
    assert read_task(sql, "t", "status::text, version") == ("pending", 1)


def test_a_task_id_belongs_to_one_task(sql: Sql, alice: str) -> None:
    add_task(sql, alice, "t")
    with pytest.raises(psycopg2.errors.UniqueViolation, match="idx_image_generations_task_id"):
        add_task(sql, add_user(sql, "bob"), "t")


def test_an_idempotency_key_belongs_to_one_task_of_one_user(sql: Sql, alice: str) -> None:
    add_task(sql, alice, "t", idempotency_key="k")
    add_task(sql, add_user(sql, "bob"), "u", idempotency_key="k")
    with pytest.raises(psycopg2.errors.UniqueViolation, match="idx_image_generations_idempotency"):
        add_task(sql, alice, "v", idempotency_key="k")


def test_an_address_has_one_account_in_whatever_capitals(sql: Sql, alice: str) -> None:
    with pytest.raises(psycopg2.errors.UniqueViolation, match="accounts_email"):
        add_user(sql, "ALICE")
    assert sql("SELECT count(*) FROM auth.users") == [(1,)]  # nothing is left of the half-made user


@pytest.mark.parametrize("table", ["sessions", "tokens"])
def test_only_a_whole_digest_is_kept_of_a_secret(sql: Sql, alice: str, table: str) -> None:
    extra = ("expires_at", "now()") if table == "sessions" else ("name", "'laptop'")
    with pytest.raises(psycopg2.errors.CheckViolation, match="secret_hash"):
        sql(
            f"INSERT INTO longpoll.{table} (user_id, secret_hash, {extra[0]}) VALUES (%s, 'secret', {extra[1]})",
            (alice,),
        )


# --- clean-up


def test_the_clean_up_takes_what_ended_more_than_a_week_ago(sql: Sql, alice: str) -> None:
    """However long it waited: what was ordered long ago and made just now stays."""
    for status, columns in TERMINAL.items():
        for age, moment in AGES.items():
            add_task(sql, alice, f"{age}-{status}", created_at="2000-01-01", finished_at=moment, **columns)
    add_task(sql, alice, "waiting", created_at="2000-01-01")
    add_task(sql, alice, "being-made", created_at="2000-01-01", status="processing")
    sql("SELECT public.cleanup_old_generations()")
    left = {task_id for (task_id,) in sql("SELECT task_id FROM public.image_generations")}
    assert left == {"waiting", "being-made", "young-completed", "young-failed", "young-canceled"}


# --- updates that stay within their page


def test_no_index_holds_what_progress_or_a_lease_changes(sql: Sql) -> None:
    indexed = {
        column
        for (column,) in sql(
            "SELECT a.attname FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid"
            " WHERE i.indrelid = 'public.image_generations'::regclass"
            "   AND (a.attnum = ANY (i.indkey) OR pg_get_expr(i.indpred, i.indrelid) ~ ('\\m' || a.attname || '\\M'))"
        )
    }
    once = {
        "id",
        "task_id",
        "user_id",
        "type",
        "status",
        "created_at",
        "finished_at",
        "idempotency_key",
        "priority",
        "turn",
    }
    assert indexed == once | {"run_after"}  # changes only together with the status


def test_progress_and_lease_renewals_are_hot_updates(sql: Sql, dsn: str, alice: str) -> None:
    """They touch no index, so that a thousand of them don't bloat one."""
    add_task(sql, alice, "t", status="processing")
    steps = [
        f"UPDATE public.image_generations SET progress = {step}, stage = '{step}', lease_expires_at = now()"
        for step in (0.2, 0.4, 0.6, 0.8, 1)
    ]
    renewals = ["UPDATE public.image_generations SET lease_expires_at = lease_expires_at + interval '1 minute'"] * 5
    counted = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'image_generations'"
    assert run_as(dsn, "longpoll_service", *steps, *renewals, counted) == [(10, 10)]
