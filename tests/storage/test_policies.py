"""Who may see and change what: the roles of the server, and nobody else."""

from __future__ import annotations

import json
from contextlib import closing

import psycopg2
import psycopg2.errors
import pytest

from tests.support import rows
from tests.support.postgres import Sql
from tests.support.rows import add_task, add_user, read_row, run_as

shared_dsn, dsn = rows.shared_dsn, rows.dsn

TABLE = "public.image_generations"
Denied = psycopg2.errors.InsufficientPrivilege
PRIVATE_TABLES = (
    "longpoll.accounts", "longpoll.sessions", "longpoll.tokens", "longpoll.worker_tokens",
    "longpoll.migrations", "auth.users",
)  # fmt: skip
FUNCTIONS_OF_THE_SERVICE = ("public.cleanup_old_generations()", "longpoll.register_account('a@b.c', 'hash')")


@pytest.fixture
def alice(sql: Sql) -> str:
    """The id of somebody with a pending task `alices`."""
    user = add_user(sql, "alice")
    add_task(sql, user, "alices")
    return user


@pytest.fixture
def bob(sql: Sql) -> str:
    """The id of somebody with a pending task `bobs`."""
    user = add_user(sql, "bob")
    add_task(sql, user, "bobs")
    return user


def as_app(dsn: str, user: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements as the app does for a user."""
    return run_as(dsn, "longpoll_app", *statements, user=user, claims=json.dumps({"sub": user}))


@pytest.mark.parametrize("setting", ["claim.sub", "claims", "both"])
def test_a_user_sees_only_own_tasks(dsn: str, alice: str, bob: str, setting: str) -> None:
    """By whichever of the two settings the identity comes."""
    user = alice if setting != "claims" else ""
    claims = json.dumps({"sub": alice, "role": "authenticated"}) if setting != "claim.sub" else ""
    assert run_as(dsn, "longpoll_app", f"SELECT task_id FROM {TABLE}", user=user, claims=claims) == [("alices",)]


@pytest.mark.parametrize("claims", ["", "{}"])
def test_nobody_in_particular_sees_nothing(dsn: str, alice: str, claims: str) -> None:
    assert run_as(dsn, "longpoll_app", f"SELECT task_id FROM {TABLE}", claims=claims) == []


def test_an_identity_ends_with_its_transaction(dsn: str, alice: str) -> None:
    """On the same connection the next transaction finds the settings empty, not absent, and still sees nothing."""
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SET ROLE longpoll_app")
        connection.commit()
        cursor.execute(f"SELECT task_id FROM {TABLE}")
        assert cursor.fetchall() == []
        cursor.execute(
            "SELECT set_config('request.jwt.claim.sub', %s, true), set_config('request.jwt.claims', %s, true)",
            (alice, json.dumps({"sub": alice})),
        )
        cursor.execute(f"SELECT task_id FROM {TABLE}")
        assert cursor.fetchall() == [("alices",)]
        connection.commit()
        cursor.execute("SELECT current_setting('request.jwt.claim.sub'), current_setting('request.jwt.claims')")
        assert cursor.fetchall() == [("", "")]
        cursor.execute(f"SELECT task_id FROM {TABLE}")
        assert cursor.fetchall() == []


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE {TABLE} SET status = 'canceled' WHERE task_id = 'bobs' RETURNING task_id",
        f"DELETE FROM {TABLE} WHERE task_id = 'bobs' RETURNING task_id",
        f"SELECT task_id FROM {TABLE} WHERE task_id = 'bobs' FOR UPDATE",
    ],
)
def test_anothers_task_is_out_of_reach(dsn: str, sql: Sql, alice: str, bob: str, statement: str) -> None:
    before = read_row(sql, "bobs")
    assert as_app(dsn, alice, statement) == []
    assert read_row(sql, "bobs") == before


def test_nobody_creates_tasks_for_another(dsn: str, alice: str, bob: str) -> None:
    with pytest.raises(Denied, match="row-level security"):
        as_app(dsn, alice, f"INSERT INTO {TABLE} (user_id, task_id) VALUES ('{bob}', 't')")


@pytest.mark.parametrize("role_columns", ["status", "result", "version", "attempt", "lease_owner", "created_at", "id"])
def test_the_app_inserts_only_what_a_user_decides(dsn: str, alice: str, role_columns: str) -> None:
    with pytest.raises(Denied, match="permission denied for table"):
        as_app(dsn, alice, f"INSERT INTO {TABLE} (user_id, task_id, {role_columns}) VALUES ('{alice}', 't', DEFAULT)")


@pytest.mark.parametrize(
    "assignment",
    [
        "result = '/a.png'",
        "error = 'x'",
        "version = 99",
        "user_id = user_id",
        "task_id = 't'",
        "prompt = 'x'",
        "progress = 1",
        "lease_owner = 'me'",
        "attempt = 0",
    ],
)
def test_the_app_may_not_write_what_is_a_workers(dsn: str, sql: Sql, alice: str, assignment: str) -> None:
    before = read_row(sql, "alices")
    with pytest.raises(Denied, match="permission denied for table"):
        as_app(dsn, alice, f"UPDATE {TABLE} SET {assignment}")
    assert read_row(sql, "alices") == before


@pytest.mark.parametrize(
    "assignment",
    [
        "status = 'completed'",
        "status = 'failed'",
        "status = 'processing'",
        "status = 'processing', cancel_requested = true",
        "cancel_requested = true",
    ],
)
def test_all_that_the_app_can_do_to_a_waiting_task_is_cancel_it(
    dsn: str, sql: Sql, alice: str, assignment: str
) -> None:
    before = read_row(sql, "alices")
    with pytest.raises((Denied, psycopg2.errors.CheckViolation)):
        as_app(dsn, alice, f"UPDATE {TABLE} SET {assignment}")
    assert read_row(sql, "alices") == before
    assert as_app(dsn, alice, f"UPDATE {TABLE} SET status = 'canceled' RETURNING version") == [(2,)]


@pytest.mark.parametrize("assignment", ["status = 'pending'", "status = 'completed'", "cancel_requested = false"])
def test_all_that_the_app_can_do_to_a_running_task_is_ask_it_to_stop(
    dsn: str, sql: Sql, alice: str, assignment: str
) -> None:
    sql(f"UPDATE {TABLE} SET status = 'processing', result = '/a.png'")
    with pytest.raises((Denied, psycopg2.errors.CheckViolation)):
        as_app(dsn, alice, f"UPDATE {TABLE} SET {assignment}")
    assert as_app(dsn, alice, f"UPDATE {TABLE} SET cancel_requested = true RETURNING version") == [(3,)]


@pytest.mark.parametrize("table", PRIVATE_TABLES)
def test_the_app_reads_nothing_but_tasks(dsn: str, table: str) -> None:
    with pytest.raises(Denied):
        run_as(dsn, "longpoll_app", f"SELECT FROM {table}")


@pytest.mark.parametrize("function", FUNCTIONS_OF_THE_SERVICE)
def test_the_app_may_not_call_what_is_for_the_service(dsn: str, function: str) -> None:
    with pytest.raises(Denied):
        run_as(dsn, "longpoll_app", f"SELECT {function}")


def test_the_service_sees_every_task(dsn: str, alice: str, bob: str) -> None:
    found = run_as(dsn, "longpoll_service", f"SELECT task_id FROM {TABLE} ORDER BY task_id")
    assert found == [("alices",), ("bobs",)]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM longpoll.migrations",
        "SELECT FROM auth.users",
        "UPDATE longpoll.accounts SET email = 'x@example.org'",
        "DELETE FROM longpoll.accounts",
        "UPDATE longpoll.sessions SET user_id = user_id",
        f"DELETE FROM {TABLE}",
        f"INSERT INTO {TABLE} (user_id, task_id) VALUES (gen_random_uuid(), 't')",
        f"UPDATE {TABLE} SET user_id = user_id",
        f"UPDATE {TABLE} SET prompt = prompt",
        f"TRUNCATE {TABLE}",
        "CREATE TABLE longpoll.own ()",
        "CREATE TABLE public.own ()",
    ],
)
def test_the_service_may_do_no_more_than_it_needs(dsn: str, statement: str) -> None:
    with pytest.raises(Denied):
        run_as(dsn, "longpoll_service", statement)


@pytest.mark.parametrize("function", FUNCTIONS_OF_THE_SERVICE)
def test_the_service_may_call_what_is_for_it(dsn: str, function: str) -> None:
    assert len(run_as(dsn, "longpoll_service", f"SELECT {function}")) == 1


@pytest.mark.parametrize("role", ["longpoll_app", "longpoll_service"])
def test_the_roles_own_nothing_and_are_bound_by_policies(sql: Sql, role: str) -> None:
    assert sql(
        "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication FROM pg_roles"
        " WHERE rolname = %s",
        (role,),
    ) == [(False,) * 6]
    assert sql("SELECT objid FROM pg_shdepend WHERE refobjid = %s::regrole AND deptype = 'o'", (role,)) == []
    assert sql("SELECT roleid FROM pg_auth_members WHERE member = %s::regrole", (role,)) == []


def test_the_policies_ask_for_the_user_once_in_a_statement(sql: Sql) -> None:
    """`auth.uid()` inside a sub-select is an InitPlan; bare, it would run for every row."""
    expressions = sql(
        "SELECT coalesce(qual, '') || coalesce(with_check, '') FROM pg_policies WHERE schemaname = 'public'"
    )
    for (expression,) in expressions:
        assert expression.count("auth.uid()") == expression.count("SELECT auth.uid()")


# --- strangers, and functions that run as their owner


def test_public_may_execute_no_function_that_runs_as_its_owner(sql: Sql) -> None:
    """Over every function of every schema, not only those that are known today."""
    definers = sql(
        "SELECT oid::regprocedure::text, has_function_privilege('public', oid, 'EXECUTE'),"
        "       coalesce(array_to_string(proconfig, ' '), '') LIKE '%search_path=%'"
        "  FROM pg_proc WHERE prosecdef"
    )
    assert {name.partition("(")[0] for name, _, _ in definers} == {
        "cleanup_old_generations",
        "longpoll.advance_turns",
        "longpoll.assign_turn",
        "longpoll.delete_account",
        "longpoll.delete_ended",
        "longpoll.notify_deleted",
        "longpoll.register_account",
    }
    assert {(executable, fixed) for _, executable, fixed in definers} == {(False, True)}


def test_public_has_no_right_to_any_table(sql: Sql) -> None:
    granted = sql(
        "SELECT c.oid::regclass::text FROM pg_class AS c, aclexplode(c.relacl) AS acl WHERE acl.grantee = 0"
        "   AND c.relnamespace IN ('public'::regnamespace, 'longpoll'::regnamespace, 'auth'::regnamespace)"
    )
    assert granted == []


def test_functions_that_run_as_their_owner_ignore_what_the_caller_puts_in_their_way(sql: Sql, dsn: str) -> None:
    """A temporary table of the caller's hides a real one, for functions without a fixed search path."""
    assert run_as(
        dsn,
        "longpoll_service",
        "CREATE TEMP TABLE accounts (user_id uuid, email text, password_hash text)",
        "CREATE TEMP TABLE users (id uuid, email text)",
        "SET LOCAL search_path = pg_temp, auth, longpoll, public",
        "SELECT longpoll.register_account('a@b.c', 'hash')",
        "SELECT count(*) FROM pg_temp.accounts",
    ) == [(0,)]
    assert sql("SELECT count(*) FROM longpoll.accounts") == [(1,)]
