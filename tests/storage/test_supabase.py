"""A Postgres as Supabase sets it up: users are somebody else's, and the role that migrates is no superuser.

It has a cluster of its own, because roles belong to the whole cluster and other tests shall not meet these.
"""

from __future__ import annotations

import hashlib
import json
import select
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import pytest

from server.errors import ConfigurationError, MigrationError
from server.storage.database import Database
from server.storage.embedded.cluster import EmbeddedPostgres
from server.storage.migrations import migrate, read_migrations
from tests.support.postgres import copy_data_folder, database_of, execute
from tests.support.rows import run_as

TABLE = "public.image_generations"

ROLES = """
CREATE ROLE anon NOLOGIN;
CREATE ROLE authenticated NOLOGIN;
CREATE ROLE service_role NOLOGIN BYPASSRLS;
CREATE ROLE supabase_auth_admin NOLOGIN NOINHERIT CREATEROLE;
CREATE ROLE supabase_like_postgres LOGIN CREATEROLE NOBYPASSRLS;
CREATE ROLE webserver LOGIN;
"""

# After the init scripts of Supabase's Postgres image.
DATABASE = """
GRANT CREATE ON DATABASE {name} TO supabase_like_postgres;
ALTER SCHEMA public OWNER TO supabase_like_postgres;
GRANT USAGE ON SCHEMA public TO anon, authenticated, service_role;
CREATE SCHEMA auth AUTHORIZATION supabase_auth_admin;
GRANT USAGE ON SCHEMA auth TO anon, authenticated, service_role, supabase_like_postgres;
SET ROLE supabase_auth_admin;
CREATE TABLE auth.users (
  id uuid PRIMARY KEY, email text, encrypted_password text, created_at timestamptz DEFAULT now(),
  is_sso_user boolean NOT NULL DEFAULT false, is_anonymous boolean NOT NULL DEFAULT false
);
GRANT REFERENCES, SELECT, INSERT ON auth.users TO supabase_like_postgres;
CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS $$
  SELECT coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
  )::uuid
$$;
GRANT EXECUTE ON FUNCTION auth.uid() TO supabase_like_postgres;
SET ROLE supabase_like_postgres;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON FUNCTIONS TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;
"""


@pytest.fixture(scope="module")
def cluster(postgres: EmbeddedPostgres, made_before: Path, data_folder: Path) -> Iterator[str]:
    """The superuser's DSN of a cluster with Supabase's roles."""
    folder = copy_data_folder(made_before, data_folder / "supabase")
    with EmbeddedPostgres(folder, postgres_bin=postgres.location.binaries, settings={"fsync": "off"}) as embedded:
        execute(embedded.dsn, ROLES)
        yield embedded.dsn


@pytest.fixture
def superuser(cluster: str) -> Iterator[str]:
    """The superuser's DSN of a database as Supabase hands it out: without our schema."""
    execute(cluster, "CREATE DATABASE supabase")
    dsn = database_of(cluster, "supabase")
    try:
        execute(dsn, DATABASE.format(name="supabase"))
        yield dsn
    finally:
        execute(cluster, "DROP DATABASE supabase WITH (FORCE)")
        execute(cluster, "DROP ROLE IF EXISTS longpoll_app, longpoll_service")


@pytest.fixture
def owner(superuser: str) -> str:
    """The DSN of the role that a customer of Supabase gets."""
    return as_login(superuser, "supabase_like_postgres")


def as_login(dsn: str, role: str) -> str:
    return psycopg2.extensions.make_dsn(dsn, user=role)


@pytest.fixture
async def migrated(superuser: str, owner: str) -> str:
    """The superuser's DSN of that database with our schema, made by the customer's role."""
    await migrate(owner)
    return superuser


@pytest.fixture
def alice(migrated: str, owner: str) -> str:
    """The id of somebody who registered with us."""
    return register(owner, "alice@example.org")


def register(owner: str, email: str) -> str:
    rows = run_as(owner, "longpoll_service", f"SELECT longpoll.register_account('{email}', 'hash')::text")
    return str(rows[0][0])


def authenticated(dsn: str, user: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements as Supabase's REST layer does for somebody who is logged in."""
    return run_as(dsn, "authenticated", *statements, claims=json.dumps({"sub": user, "role": "authenticated"}))


def is_denied(dsn: str, role: str, statement: str, user: str = "") -> bool:
    try:
        run_as(dsn, role, statement, user=user)
    except psycopg2.errors.InsufficientPrivilege:
        return True
    return False


async def check_role(dsn: str) -> None:
    database = Database(dsn, pool_size=1, timeout=5)
    await database.open()
    try:
        await database.check_role()
    finally:
        await database.close()


async def test_the_customers_role_can_migrate_twice(superuser: str, owner: str) -> None:
    assert await migrate(owner) == [migration.name for migration in read_migrations()]
    assert await migrate(owner) == []
    assert execute(superuser, f"SELECT relowner::regrole::text FROM pg_class WHERE oid = '{TABLE}'::regclass") == [
        ("supabase_like_postgres",)
    ]


async def test_the_users_of_supabase_are_found_and_left_alone(migrated: str) -> None:
    assert execute(migrated, "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'auth'") == [
        ("supabase_auth_admin",)
    ]
    assert execute(migrated, "SELECT count(*) FROM pg_class WHERE relnamespace = 'auth'::regnamespace") == [(2,)]


async def test_a_stranger_can_do_nothing(migrated: str) -> None:
    """Although the default privileges give strangers everything that is new in `public`."""
    statements = [
        f"SELECT FROM {TABLE}",
        f"INSERT INTO {TABLE} (user_id, task_id) VALUES (gen_random_uuid(), 't')",
        f"UPDATE {TABLE} SET status = 'canceled'",
        f"DELETE FROM {TABLE}",
        f"TRUNCATE {TABLE}",
        "SELECT public.cleanup_old_generations()",
        "SELECT longpoll.register_account('a@b.c', 'hash')",
        "SELECT FROM longpoll.accounts",
        "SELECT FROM longpoll.migrations",
    ]
    assert [statement for statement in statements if not is_denied(migrated, "anon", statement)] == []


def test_somebody_who_is_logged_in_inserts_and_sees_own_tasks(migrated: str, owner: str, alice: str) -> None:
    """Past the server, as the guide's clients may: the triggers work for them, too."""
    bob = register(owner, "bob@example.org")
    for user, task_id in ((alice, "alices"), (bob, "bobs")):
        authenticated(
            migrated, user, f"INSERT INTO {TABLE} (user_id, task_id, prompt) VALUES ('{user}', '{task_id}', 'a lake')"
        )
    seen = authenticated(migrated, alice, f"SELECT task_id, status::text, version, prompt FROM {TABLE}")
    assert seen == [("alices", "pending", 1, "a lake")]


def test_somebody_who_is_logged_in_can_do_nothing_else(migrated: str, alice: str) -> None:
    statements = [
        f"INSERT INTO {TABLE} (user_id, task_id, status, result) VALUES (auth.uid(), 't', 'completed', '/a.png')",
        f"INSERT INTO {TABLE} (user_id, task_id, status) VALUES (auth.uid(), 't', 'pending')",
        f"INSERT INTO {TABLE} (user_id, task_id, result) VALUES (auth.uid(), 't', '/a.png')",
        f"INSERT INTO {TABLE} (user_id, task_id, version) VALUES (auth.uid(), 't', 9)",
        f"INSERT INTO {TABLE} (user_id, task_id) VALUES (gen_random_uuid(), 't')",
        f"UPDATE {TABLE} SET status = 'canceled'",
        f"UPDATE {TABLE} SET result = '/a.png'",
        f"DELETE FROM {TABLE}",
        f"TRUNCATE {TABLE}",
        "SELECT public.cleanup_old_generations()",
        "SELECT longpoll.register_account('a@b.c', 'hash')",
        "SELECT FROM longpoll.accounts",
        "SELECT FROM longpoll.sessions",
        "SELECT FROM longpoll.migrations",
    ]
    assert [statement for statement in statements if not is_denied(migrated, "authenticated", statement, alice)] == []


def test_the_service_role_of_supabase_can_work_on_tasks(migrated: str, alice: str) -> None:
    """The guide's workers write with it; it is trusted, and no policy binds it."""
    rows = run_as(
        migrated,
        "service_role",
        f"INSERT INTO {TABLE} (user_id, task_id, prompt) VALUES ('{alice}', 't', 'a lake')",
        f"UPDATE {TABLE} SET status = 'processing'",
        f"UPDATE {TABLE} SET status = 'completed', result = '/a.png' RETURNING version, finished_at IS NOT NULL",
    )
    assert rows == [(3, True)]
    run_as(migrated, "service_role", f"DELETE FROM {TABLE}")


def test_registering_makes_a_user_of_supabase(migrated: str, alice: str) -> None:
    assert execute(migrated, "SELECT id::text, email FROM auth.users") == [(alice, "alice@example.org")]


def test_a_user_of_supabase_who_is_deleted_loses_everything(migrated: str, owner: str, alice: str) -> None:
    """The role that deletes has no right to anything of ours, nor needs any."""
    execute(migrated, f"INSERT INTO {TABLE} (user_id, task_id) VALUES ('{alice}', 't')")
    run_as(
        owner,
        "longpoll_service",
        "INSERT INTO longpoll.sessions (secret_hash, user_id, expires_at)"
        f" VALUES (sha256('secret'), '{alice}', now() + interval '1 day')",
    )
    with closing(psycopg2.connect(migrated)) as listening, listening.cursor() as cursor:
        cursor.execute("LISTEN generation_changed; LISTEN session_revoked")
        listening.commit()
        run_as(migrated, "supabase_auth_admin", "DELETE FROM auth.users")
        told: set[tuple[str, str]] = set()
        while len(told) < 2 and select.select([listening], [], [], 15)[0]:
            listening.poll()
            told |= {(each.channel, each.payload) for each in listening.notifies}
    assert told == {("generation_changed", "t:-"), ("session_revoked", hashlib.sha256(b"secret").hexdigest())}
    assert execute(migrated, f"SELECT FROM {TABLE}") == []
    assert (
        execute(migrated, "SELECT user_id FROM longpoll.accounts UNION ALL SELECT user_id FROM longpoll.sessions") == []
    )


def test_whoever_leaves_takes_all_along_but_the_user_of_supabase(migrated: str, owner: str, alice: str) -> None:
    """Users are somebody else's there: whoever migrates may not delete one. What remains can't log in."""
    bob = register(owner, "bob@example.org")
    for user, task in ((alice, "hers"), (bob, "his")):
        execute(migrated, f"INSERT INTO {TABLE} (user_id, task_id, prompt) VALUES ('{user}', '{task}', 'a lake')")
    assert run_as(owner, "longpoll_service", f"SELECT longpoll.delete_account('{alice}')") == [("hers",)]
    assert run_as(owner, "longpoll_service", f"SELECT longpoll.delete_account('{alice}')") == []
    assert execute(migrated, "SELECT email FROM longpoll.accounts") == [("bob@example.org",)]
    assert execute(migrated, f"SELECT task_id FROM {TABLE}") == [("his",)]
    assert execute(migrated, "SELECT count(*) FROM auth.users") == [(2,)]


@pytest.mark.parametrize("role", ["anon", "authenticated", "longpoll_app"])
def test_nobody_else_may_delete_an_account(migrated: str, owner: str, alice: str, role: str) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run_as(migrated, role, f"SELECT longpoll.delete_account('{alice}')")


def test_the_clean_up_is_not_bound_by_policies(migrated: str, owner: str, alice: str) -> None:
    """Though the owner of the table, as whom it runs, doesn't bypass them."""
    execute(
        migrated,
        f"INSERT INTO {TABLE} (user_id, task_id, status, finished_at)"
        f" VALUES ('{alice}', 'old', 'canceled', '2000-01-01'), ('{alice}', 'young', 'canceled', now())",
    )
    run_as(owner, "longpoll_service", "SELECT public.cleanup_old_generations()")
    assert execute(migrated, f"SELECT task_id FROM {TABLE}") == [("young",)]


@pytest.mark.parametrize("login", ["supabase_like_postgres", "webserver"])
async def test_the_server_may_log_in_as_the_owner_or_as_a_role_apart(superuser: str, owner: str, login: str) -> None:
    """Either takes on the two roles for each transaction, and the policies bind it."""
    await migrate(owner, grant_to=login)
    await migrate(owner, grant_to=login)
    await check_role(as_login(superuser, login))


async def test_an_owner_who_may_not_become_the_apps_role_is_told(migrated: str, owner: str) -> None:
    execute(migrated, "REVOKE longpoll_app FROM supabase_like_postgres CASCADE")
    with pytest.raises(ConfigurationError, match=r"longpoll_app, longpoll_service can't be taken on"):
        await check_role(owner)


async def test_roles_that_somebody_else_has_made_are_enough(superuser: str, owner: str) -> None:
    """An owner who may not make roles can migrate, if an administrator has made and granted them."""
    execute(
        superuser,
        "ALTER ROLE supabase_like_postgres NOCREATEROLE; CREATE ROLE longpoll_app; CREATE ROLE longpoll_service;"
        " GRANT longpoll_app, longpoll_service TO supabase_like_postgres",
    )
    try:
        await migrate(owner)
        await check_role(owner)
    finally:
        execute(superuser, "ALTER ROLE supabase_like_postgres CREATEROLE")


async def test_an_owner_who_may_not_make_roles_is_told_in_which_migration(superuser: str, owner: str) -> None:
    execute(superuser, "ALTER ROLE supabase_like_postgres NOCREATEROLE")
    try:
        with pytest.raises(MigrationError, match=r"0001_foundation\.sql failed and was undone: permission denied"):
            await migrate(owner)
    finally:
        execute(superuser, "ALTER ROLE supabase_like_postgres CREATEROLE")
