"""Migrations: in order, each once, each whole; and whatever doesn't fit together stops them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import psycopg2.errors
import pytest

from server import resources
from server.errors import ConfigurationError, DatabaseUnavailable, MigrationError
from server.storage.database import Database
from server.storage.embedded.cluster import EmbeddedPostgres
from server.storage.migrations import Migration, make_login, migrate, pending, read_migrations
from tests.support.pooler import pooler
from tests.support.postgres import copy_data_folder, database_of, execute

FIRST = Migration("0001_first.sql", "CREATE TABLE first (n integer); -- 100 % plain\nINSERT INTO first VALUES (1);\n")
SECOND = Migration("0002_second.sql", "INSERT INTO first VALUES (2)")
BROKEN = Migration("0003_broken.sql", "CREATE TABLE third (); INSERT INTO first VALUES (3); SELECT 1 / 0")


def recorded(dsn: str) -> list[str]:
    return [name for (name,) in execute(dsn, "SELECT name FROM longpoll.migrations ORDER BY applied_at, name")]


def numbers(dsn: str) -> list[int]:
    return [number for (number,) in execute(dsn, "SELECT n FROM first ORDER BY n")]


async def test_migrations_run_in_order_and_are_recorded(empty_dsn: str) -> None:
    names = [migration.name for migration in read_migrations()]
    assert await pending(empty_dsn) == names
    assert await migrate(empty_dsn) == names == sorted(names)
    assert recorded(empty_dsn) == names
    assert await pending(empty_dsn) == []


async def test_a_second_run_does_nothing(empty_dsn: str) -> None:
    assert await migrate(empty_dsn, migrations=[FIRST]) == [FIRST.name]
    assert await migrate(empty_dsn, migrations=[FIRST]) == []
    assert numbers(empty_dsn) == [1]


async def test_only_what_is_new_is_applied(empty_dsn: str) -> None:
    await migrate(empty_dsn, migrations=[FIRST])
    assert await migrate(empty_dsn, migrations=[FIRST, SECOND]) == [SECOND.name]
    assert numbers(empty_dsn) == [1, 2]


async def test_processes_that_start_together_apply_each_migration_once(empty_dsn: str) -> None:
    runs = await asyncio.gather(*(migrate(empty_dsn, migrations=[FIRST, SECOND]) for _ in range(8)))
    assert sorted(name for run in runs for name in run) == [FIRST.name, SECOND.name]
    assert numbers(empty_dsn) == [1, 2]


async def test_processes_that_start_together_make_the_whole_schema(empty_dsn: str) -> None:
    names = [migration.name for migration in read_migrations()]
    runs = await asyncio.gather(*(migrate(empty_dsn, grant_to="postgres") for _ in range(8)))
    assert sorted(name for run in runs for name in run) == names
    assert recorded(empty_dsn) == names


async def test_a_migration_that_fails_is_undone_and_named(empty_dsn: str) -> None:
    with pytest.raises(MigrationError, match=r"0003_broken\.sql failed and was undone: division by zero"):
        await migrate(empty_dsn, migrations=[FIRST, SECOND, BROKEN])
    assert recorded(empty_dsn) == [FIRST.name, SECOND.name]
    assert numbers(empty_dsn) == [1, 2]
    assert execute(empty_dsn, "SELECT to_regclass('third')") == [(None,)]


async def test_a_migration_that_failed_may_be_mended_and_run_again(empty_dsn: str) -> None:
    with pytest.raises(MigrationError):
        await migrate(empty_dsn, migrations=[FIRST, SECOND, BROKEN])
    mended = Migration(BROKEN.name, BROKEN.text.replace("1 / 0", "1"))
    assert await migrate(empty_dsn, migrations=[FIRST, SECOND, mended]) == [BROKEN.name]
    assert numbers(empty_dsn) == [1, 2, 3]


async def test_one_that_was_edited_after_it_was_applied_stops_everything(empty_dsn: str) -> None:
    await migrate(empty_dsn, migrations=[FIRST])
    edited = Migration(FIRST.name, FIRST.text + "-- a word more")
    with pytest.raises(MigrationError, match=r"0001_first\.sql was edited after it had been applied"):
        await migrate(empty_dsn, migrations=[edited, SECOND])
    assert recorded(empty_dsn) == [FIRST.name]


async def test_other_line_ends_are_no_edit(empty_dsn: str) -> None:
    await migrate(empty_dsn, migrations=[FIRST])
    checked_out_elsewhere = Migration(FIRST.name, FIRST.text.replace("\n", "\r\n"))
    assert await migrate(empty_dsn, migrations=[checked_out_elsewhere]) == []


async def test_a_database_of_a_newer_version_is_left_alone(empty_dsn: str) -> None:
    await migrate(empty_dsn, migrations=[FIRST, SECOND])
    third = Migration("0003_third.sql", "INSERT INTO first VALUES (3)")
    with pytest.raises(MigrationError, match=r"0002_second\.sql, which this version doesn't know"):
        await migrate(empty_dsn, migrations=[FIRST, third])
    assert numbers(empty_dsn) == [1, 2]


async def test_two_databases_of_one_cluster_migrate_at_once(
    data_folder: Path, made_before: Path, postgres: EmbeddedPostgres
) -> None:
    """Roles belong to the cluster: each of the two finds that the other is making them, too."""
    folder = copy_data_folder(made_before, data_folder / "race")
    with EmbeddedPostgres(folder, postgres_bin=postgres.location.binaries, settings={"fsync": "off"}) as fresh:
        names = [f"race_{number}" for number in range(4)]
        for name in names:
            execute(fresh.dsn, f"CREATE DATABASE {name}")
        execute(fresh.dsn, "CREATE ROLE webserver LOGIN")
        dsns = [database_of(fresh.dsn, name) for name in names]
        runs = await asyncio.gather(*(migrate(dsn, grant_to="webserver") for dsn in dsns))
        assert runs == [[migration.name for migration in read_migrations()]] * len(names)
        granted = "SELECT count(*) FROM pg_auth_members WHERE member = 'webserver'::regrole"
        assert execute(fresh.dsn, granted) == [(2,)]


async def test_a_database_with_rows_is_brought_up_to_date(empty_dsn: str) -> None:
    """As it stands after the first three migrations, which were published together."""
    await migrate(empty_dsn, migrations=read_migrations()[:3])
    execute(empty_dsn, "SELECT longpoll.register_account('a@example.org', 'hash')")
    execute(
        empty_dsn,
        "INSERT INTO public.image_generations (user_id, task_id, status, attempt, result)"
        " SELECT user_id, status, status::public.generation_status, 2, '/a.png'"
        "   FROM longpoll.accounts, unnest(ARRAY['pending', 'processing', 'completed', 'canceled']) AS status",
    )
    before = execute(empty_dsn, "SELECT task_id, version, updated_at FROM public.image_generations ORDER BY task_id")
    await migrate(empty_dsn)
    columns = "task_id, version, updated_at"
    assert execute(empty_dsn, f"SELECT {columns} FROM public.image_generations ORDER BY task_id") == before
    assert execute(empty_dsn, "SELECT DISTINCT attempt, given_back FROM public.image_generations") == [(2, 0)]
    assert len(execute(empty_dsn, "SELECT id FROM longpoll.identity")) == 1
    execute(empty_dsn, "DELETE FROM auth.users")
    assert execute(empty_dsn, "SELECT FROM public.image_generations") == []


async def test_nobody_there_is_no_fault_of_a_migration(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable):
        await migrate(f"host={tmp_path} user=postgres")


# --- the files


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that migrations are read from, empty."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    monkeypatch.setattr(resources, "folder", lambda _name: tmp_path)
    return folder


def test_files_are_read_in_the_order_of_their_numbers(files: Path) -> None:
    for name in ("0010_c.sql", "0002_b.sql", "0001_a.sql"):
        (files / name).write_text(f"-- {name}")
    (files / "notes.txt").write_text("not a migration")
    assert [migration.name for migration in read_migrations()] == ["0001_a.sql", "0002_b.sql", "0010_c.sql"]


def test_a_file_has_the_same_checksum_in_every_checkout(files: Path) -> None:
    (files / "0001_a.sql").write_bytes(b"SELECT 1;\nSELECT 2;\n")
    (files / "0002_a.sql").write_bytes(b"SELECT 1;\r\nSELECT 2;\r\n")
    assert len({migration.checksum for migration in read_migrations()}) == 1


@pytest.mark.parametrize(
    "names",
    [["0001_a.sql", "0001_b.sql"], ["1_a.sql"], ["0001-a.sql"], ["a.sql"], ["0001_it's.sql"], ["0001_.sql", "x.sql"]],
)
def test_names_and_numbers_are_checked(files: Path, names: list[str]) -> None:
    for name in names:
        (files / name).write_text("SELECT 1")
    with pytest.raises(MigrationError, match=r"must be named NNNN_name\.sql"):
        read_migrations()


# --- the role that the server logs in as


@pytest.fixture
def login(postgres: EmbeddedPostgres, empty_dsn: str) -> Iterator[str]:
    """The DSN of a login role without any rights, whose name needs quoting."""
    name = 'web "server"'
    execute(postgres.dsn, 'CREATE ROLE "web ""server""" LOGIN')
    yield psycopg2.extensions.make_dsn(empty_dsn, user=name)
    execute(empty_dsn, 'DROP OWNED BY "web ""server"""')
    execute(postgres.dsn, 'DROP ROLE "web ""server"""')


async def check_role(dsn: str) -> None:
    """Ask the server's own question: do the policies bind us?"""
    database = Database(dsn, pool_size=1, timeout=5)
    await database.open()
    try:
        await database.check_role()
    finally:
        await database.close()


async def test_the_servers_own_login_is_given_both_roles(empty_dsn: str, login: str) -> None:
    await migrate(empty_dsn, grant_to='web "server"')
    await migrate(empty_dsn, grant_to='web "server"')
    await check_role(login)
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        execute(login, "CREATE TABLE public.own ()")


async def test_a_plain_login_needs_no_rights_when_nothing_is_missing(empty_dsn: str, login: str) -> None:
    execute(empty_dsn, 'ALTER ROLE "web ""server""" NOINHERIT')
    await migrate(empty_dsn, grant_to='web "server"')
    execute(empty_dsn, 'ALTER ROLE "web ""server""" SET default_transaction_read_only = on')  # whatever it writes fails
    assert await pending(login) == await migrate(login) == []


async def test_granting_what_is_granted_needs_no_right_to_grant(empty_dsn: str, login: str) -> None:
    await migrate(empty_dsn, grant_to='web "server"')
    assert await migrate(login, grant_to='web "server"') == []


async def test_a_plain_login_that_finds_something_missing_says_who_may_apply_it(empty_dsn: str, login: str) -> None:
    for dsn in (login, psycopg2.extensions.make_dsn(login, application_name="twice")):
        with pytest.raises(
            MigrationError, match=r"permission denied .* run `python -m server migrate` with .*admin_dsn"
        ):
            await migrate(dsn)
    assert execute(empty_dsn, "SELECT to_regnamespace('longpoll')") == [(None,)]


async def test_who_may_not_read_the_ledger_is_not_told_that_everything_is_missing(empty_dsn: str, login: str) -> None:
    await migrate(empty_dsn)
    with pytest.raises(MigrationError, match=r"may not see .*permission denied .* run `python -m server migrate`"):
        await pending(login)


@pytest.mark.parametrize("roles", ["all", "none", "one"])
async def test_a_login_is_made_once(empty_dsn: str, postgres: EmbeddedPostgres, roles: str) -> None:
    """And given what it lacks: in data that an earlier version made, it has everything else before it has a login."""
    name = f"made_{os.getpid()}"
    await migrate(empty_dsn)
    await asyncio.gather(*(make_login(empty_dsn, name) for _ in range(4)))
    try:
        granted = {"all": "longpoll_app, longpoll_service", "one": "longpoll_app"}.get(roles)
        if granted:
            execute(empty_dsn, f"GRANT {granted} TO {name}")
        await make_login(empty_dsn, name)
        await migrate(empty_dsn, grant_to=name)
        login = psycopg2.extensions.make_dsn(empty_dsn, user=name)
        await check_role(login)
        assert execute(login, "SELECT rolsuper, rolinherit FROM pg_roles WHERE rolname = current_user") == [
            (False,) * 2
        ]
    finally:
        execute(postgres.dsn, f"DROP ROLE {name}")


async def test_a_migration_may_take_longer_than_other_statements_of_its_login(empty_dsn: str) -> None:
    (name,) = execute(empty_dsn, "SELECT current_database()")[0]
    execute(empty_dsn, f"ALTER DATABASE {name} SET statement_timeout = 400")
    slow = Migration("0001_slow.sql", "SELECT pg_sleep(0.5)")
    assert await migrate(empty_dsn, migrations=[slow]) == [slow.name]


# --- behind a transaction pooler


async def test_migrating_through_a_pooler_leaves_no_lock_behind(empty_dsn: str) -> None:
    """A session that nobody owns must not keep one: the next process would wait for it for ever."""
    with pooler(empty_dsn) as pooled:
        assert await migrate(pooled, migrations=[FIRST, SECOND])
        assert await migrate(pooled, migrations=[FIRST, SECOND]) == []
        assert execute(empty_dsn, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
        changed = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'longpoll-migrate'"
        assert execute(empty_dsn, changed) == [(1,)], "the pooler's session is still open"


# --- what must hold before anything is changed


@pytest.fixture(params=["SQL_ASCII", "LATIN1"])
def foreign_dsn(request: pytest.FixtureRequest, postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database in another encoding."""
    name = f"foreign_{os.getpid()}"
    version = int(execute(postgres.dsn, "SHOW server_version_num")[0][0])
    provider = "LOCALE_PROVIDER libc" if version >= 170000 else ""
    locale = f"{provider} LC_COLLATE 'C' LC_CTYPE 'C'"
    execute(postgres.dsn, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{request.param}' {locale}")
    yield database_of(postgres.dsn, name)
    execute(postgres.dsn, f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_database_of_another_encoding_is_refused_untouched(foreign_dsn: str) -> None:
    for connect in (migrate, pending, check_role):
        with pytest.raises(
            ConfigurationError, match=r"the database foreign_\d+ has the encoding \w+, and must have UTF8"
        ):
            await connect(foreign_dsn)
    assert execute(foreign_dsn, "SELECT to_regnamespace('longpoll'), to_regnamespace('auth')") == [(None, None)]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lock_timeout", "1"),
        ("idle_in_transaction_session_timeout", "1"),
        ("default_transaction_isolation", "serializable"),
        ("search_path", "''"),
        ("client_encoding", "LATIN1"),
        ("datestyle", "'SQL, DMY'"),
        ("timezone", "'Asia/Kathmandu'"),
        ("standard_conforming_strings", "off"),
        ("bytea_output", "escape"),
    ],
)
async def test_whatever_is_set_for_the_login_that_migrates(empty_dsn: str, setting: str, value: str) -> None:
    (name,) = execute(empty_dsn, "SELECT current_database()")[0]
    execute(empty_dsn, f"ALTER DATABASE {name} SET {setting} = {value}")
    names = [migration.name for migration in read_migrations()]
    runs = await asyncio.gather(*(migrate(empty_dsn, grant_to="postgres") for _ in range(3)))
    assert sorted(applied for run in runs for applied in run) == names
    await check_role(empty_dsn)


async def test_a_login_without_the_roles_is_told_what_to_do(empty_dsn: str, login: str) -> None:
    await migrate(empty_dsn)
    with pytest.raises(ConfigurationError, match=r"can't be taken on .* run `python -m server migrate`"):
        await check_role(login)


async def test_a_database_without_the_schema_is_told_apart(empty_dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="run `python -m server migrate`"):
        await check_role(empty_dsn)


@pytest.mark.parametrize("role", ["longpoll_app", "longpoll_service"])
async def test_a_role_that_owns_the_table_is_refused(empty_dsn: str, role: str) -> None:
    await migrate(empty_dsn)
    execute(empty_dsn, f"ALTER TABLE public.image_generations OWNER TO {role}")
    with pytest.raises(ConfigurationError, match="it owns the table or bypasses them"):
        await check_role(empty_dsn)
