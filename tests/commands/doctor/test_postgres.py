"""The doctor at the database: what is broken is told in one line with what to do, and the rest isn't blamed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.commands.doctor import postgres as checks
from server.storage.embedded.cluster import EmbeddedPostgres
from server.storage.migrations import read_migrations
from tests.commands.doctor.conftest import Examination, Examine
from tests.support.pooler import pooler
from tests.support.postgres import Sql

NOWHERE = "host=127.0.0.1 port=1 dbname=none"


async def test_a_postgres_that_is_not_there_is_one_failure(examined: Examine) -> None:
    examination = await examined(NOWHERE, database={"dsn": NOWHERE})
    assert "database.dsn can't be reached: " in examination.failure("database")
    assert examination.named("ok") == ["descriptors"]
    assert examination["clock"] == "skipped  looked at when this is ok: database."


async def test_what_is_malformed_is_not_shown_for_it_may_hold_a_password(examined: Examine) -> None:
    dsn = "postgres//web:secret@database"
    said = (await examined(dsn, database={"dsn": dsn})).failure("database")
    assert "database.dsn is malformed: write " in said
    assert "secret" not in said


async def test_an_old_postgres_is_refused(examined: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "OLDEST_POSTGRES", 99)
    assert "use Postgres 99 or newer" in (await examined()).failure("database")


# --- LISTEN


async def test_a_transaction_pooler_is_named(dsn: str, examined: Examine) -> None:
    with pooler(dsn) as pooled:
        said = (await examined(pooled, database={"timeout_seconds": 0.5})).failure("listen")
    assert "LISTEN doesn't work through the embedded Postgres: a transaction pooler (such as PgBouncer" in said
    assert "set database.listen_dsn to a direct connection" in said


async def test_a_transaction_pooler_does_no_harm_if_listening_goes_around_it(dsn: str, examined: Examine) -> None:
    with pooler(dsn) as pooled:
        assert (await examined(pooled, database={"listen_dsn": dsn})).sound


async def test_a_pooler_in_session_mode_does_no_harm(dsn: str, examined: Examine) -> None:
    with pooler(dsn, "session") as pooled:
        assert (await examined(pooled)).sound


async def test_listening_in_another_database_is_told(postgres: EmbeddedPostgres, examined: Examine) -> None:
    said = (await examined(database={"listen_dsn": postgres.dsn, "timeout_seconds": 0.5})).failure("listen")
    assert "through database.listen_dsn: it leads to the database postgres, but changes are made in test_" in said


async def test_a_listen_dsn_that_leads_nowhere_is_named(examined: Examine) -> None:
    said = (await examined(database={"listen_dsn": NOWHERE})).failure("listen")
    assert "database.listen_dsn can't be reached: " in said


# --- migrations


async def test_an_empty_database_is_told_once(empty_dsn: str, examined: Examine) -> None:
    examination = await examined(empty_dsn)
    assert "run `python -m server migrate`" in examination.failure("migrations")
    assert examination["roles"] == examination["row security"] == "skipped  there is no schema to look at."


async def test_a_migration_that_was_edited_is_named(examined: Examine, sql: Sql) -> None:
    name = read_migrations()[0].name
    sql("UPDATE longpoll.migrations SET checksum = 'another' WHERE name = %s", (name,))
    assert f"{name} was edited after it had been applied" in (await examined()).failure("migrations")


async def test_a_migration_that_is_missing_is_named(examined: Examine, sql: Sql) -> None:
    name = read_migrations()[-1].name
    sql("DELETE FROM longpoll.migrations WHERE name = %s", (name,))
    assert f"not applied yet: {name}." in (await examined()).failure("migrations")


async def test_a_database_of_a_newer_version_is_told(examined: Examine, sql: Sql) -> None:
    sql("INSERT INTO longpoll.migrations (name, checksum) VALUES ('9999_later.sql', '')")
    assert "9999_later.sql, which this version doesn't know" in (await examined()).failure("migrations")


async def test_an_admin_dsn_that_leads_nowhere_is_named(examined: Examine) -> None:
    said = (await examined(database={"admin_dsn": NOWHERE})).failure("migrations")
    assert "database.admin_dsn can't be reached: " in said


# --- row security, clock, queue


@pytest.mark.parametrize(
    "table",
    [
        "public.image_generations",
        "longpoll.accounts",
        "longpoll.sessions",
        "longpoll.tokens",
        "longpoll.worker_tokens",
    ],
)
async def test_row_security_that_is_off_is_told(examined: Examine, sql: Sql, table: str) -> None:
    sql(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    remedy = f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
    assert remedy in (await examined()).failure("row security")
    sql(remedy)
    assert (await examined()).sound


def shadow(sql: Sql, function: str, returns: str, body: str) -> None:
    """Let a function of ours stand before Postgres' own, for every connection to this database from now on."""
    sql("CREATE SCHEMA shadow; GRANT USAGE ON SCHEMA shadow TO PUBLIC")
    sql(f"CREATE FUNCTION shadow.{function}() RETURNS {returns} LANGUAGE sql AS $$ SELECT {body} $$")
    sql(f"ALTER DATABASE {sql('SELECT current_database()')[0][0]} SET search_path = shadow, pg_catalog, public")


@pytest.mark.parametrize(("shift", "word"), [("+", "behind"), ("-", "ahead of")])
async def test_a_clock_that_is_off_is_told(examined: Examine, sql: Sql, shift: str, word: str) -> None:
    shadow(sql, "clock_timestamp", "timestamptz", f"pg_catalog.clock_timestamp() {shift} interval '1 hour'")
    assert f" s {word} the database's" in (await examined()).concern("clock")


@pytest.mark.parametrize(("usage", "told"), [(0.2, Examination.concern), (0.6, Examination.failure)])
async def test_a_queue_that_fills_is_told(
    examined: Examine, sql: Sql, usage: float, told: Callable[[Examination, str], str]
) -> None:
    shadow(sql, "pg_notification_queue_usage", "double precision", f"{usage}::double precision")
    assert f"{usage:.0%} of Postgres' queue" in told(await examined(), "queue")
