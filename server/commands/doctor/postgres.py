"""Checks of the database: can it be reached, does it notify, is it guarded, is it up to date."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass
from typing import Final

from server import resources
from server.commands.doctor.deployment import Deployment
from server.commands.doctor.report import Finding, failed, ok, skipped, warning
from server.errors import DatabaseUnavailable, MigrationError, StorageError
from server.storage import migrations
from server.storage.database import Connection, Role, read_queries, run_directly, translated_errors, why_read_only

OLDEST_POSTGRES: Final = 15
_CLOCK_SECONDS: Final = 1.0
_QUEUE_WARNS, _QUEUE_FAILS = 0.1, 0.5
_NOBODY: Final = "00000000-0000-0000-0000-000000000000"
_MIGRATE: Final = "run `python -m server migrate`"
_NO_SCHEMA: Final = skipped("there is no schema to look at")
_QUERIES: Final = read_queries(resources.read_text("sql", "queries.sql"))


@dataclass(frozen=True, slots=True)
class Server:
    """A row of `describe_server`. `clock` is in seconds since 1970, `queue_usage` goes from 0 to 1."""

    version: str
    major: int
    clock: float
    queue_usage: float
    process: int
    database: str
    login: str
    privileged: bool
    has_schema: bool


@dataclass(frozen=True, slots=True)
class _Described:
    role_name: str
    unbound: bool
    owner: bool


async def _describe(deployment: Deployment, connection: Connection) -> Server:
    [row] = await run_directly(connection, _QUERIES["describe_server"], deployment.timeout)
    return Server(*row)


async def check_reachable(deployment: Deployment) -> Finding:
    """Connect as the server does, and ask for the version."""
    async with deployment.connected() as connection:
        server = await _describe(deployment, connection)
        [(standby, read_only, *_)] = await run_directly(connection, _QUERIES["describe_session"], deployment.timeout)
    if server.major < OLDEST_POSTGRES:
        return failed(f"this is Postgres {server.version}", f"use Postgres {OLDEST_POSTGRES} or newer")
    if read_only:
        why, remedy = why_read_only(standby=standby)
        return failed(f"nothing may be written through {deployment.name_of('dsn')}: {why}", remedy)
    where = deployment.name_of("dsn")
    return ok(f"Postgres {server.version} answers ({where}: {server.login} in the database {server.database})")


async def check_listening(deployment: Deployment) -> Finding:
    """Send a notification the way changes come, and wait for it the way the server does."""
    channel, timeout = f"longpoll_doctor_{secrets.token_hex(8)}", deployment.timeout
    async with deployment.connected("listen_dsn") as ear, deployment.connected() as mouth:
        await run_directly(ear, f"LISTEN {channel}", timeout)
        sent_at = time.perf_counter()
        await run_directly(mouth, f"NOTIFY {channel}", timeout)
        if await _hears(ear, timeout):
            return ok(f"a notification came back within {(time.perf_counter() - sent_at) * 1000:.1f} ms")
        why = await _explain_silence(deployment, ear, mouth)
    return failed(
        f"LISTEN doesn't work through {deployment.name_of('listen_dsn')}: {why}",
        "set database.listen_dsn to a direct connection (or a session-mode one) to the database of database.dsn",
    )


async def _hears(ear: Connection, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            with translated_errors():
                await ear.notifies.get()  # what a time-out may lose here, nobody wants
    except TimeoutError:
        return False
    return True


async def _explain_silence(deployment: Deployment, ear: Connection, mouth: Connection) -> str:
    listening, changing = await _describe(deployment, ear), await _describe(deployment, mouth)
    # Who hands a session from one server process to another can't tell its client which one it has.
    if await ear.get_backend_pid() != listening.process:
        return "a transaction pooler (such as PgBouncer or Supavisor) stands in between, and drops it"
    if listening.database != changing.database:
        return f"it leads to the database {listening.database}, but changes are made in {changing.database}"
    return f"no notification came within {deployment.timeout:g} s"


async def check_migrations(deployment: Deployment) -> Finding:
    """Compare what was applied with what this version brings."""
    setting = deployment.name_of("admin_dsn")
    try:
        missing = await migrations.pending(deployment.config.database.admin_dsn or deployment.dsn)
    except MigrationError as error:
        return failed(str(error), "start the version that the database was migrated by, with its files as they were")
    except DatabaseUnavailable as error:
        return failed(f"{setting} can't be reached: {error}", "correct it; migrations run through it")
    except StorageError as error:
        return failed(
            f"{setting} may not read what was applied: {error}", "set database.admin_dsn to the login that migrates"
        )
    if missing:
        return failed(f"not applied yet: {', '.join(missing)}", f"{_MIGRATE}, or start the server, which does it")
    return ok("all are applied, and none was edited since")


async def check_roles(deployment: Deployment) -> Finding:
    """Take on both roles as the server does, and see that the row policies bind them."""
    async with deployment.connected() as connection:
        server = await _describe(deployment, connection)
    if not server.has_schema:
        return _NO_SCHEMA
    try:
        async with deployment.opened() as database:
            roles = [await database.fetch_one("describe_role", _Described, user=user) for user in (_NOBODY, None)]
    except DatabaseUnavailable:
        raise
    except StorageError as error:
        return failed(
            f"{server.login} can't act as {' and '.join(Role)}: {error}",
            f"{_MIGRATE} with database.admin_dsn set: it makes the roles and grants them to the login of database.dsn",
        )
    for role in roles:
        if role and (role.unbound or role.owner):
            return _unbound(role)
    if server.privileged and deployment.config.database.dsn:
        return warning(
            f"the server gives its rights up for {' and '.join(Role)}, but logs in as {server.login}, a superuser or owner",
            "let database.dsn name a plain login and database.admin_dsn this one; migrating grants the first what it needs",
        )
    return ok(f"the server acts as {' and '.join(Role)}, which the row policies bind")


def _unbound(role: _Described) -> Finding:
    if role.unbound:
        return failed(
            f"the row policies don't bind {role.role_name}: it is a superuser, or bypasses them",
            f"as a superuser, run ALTER ROLE {role.role_name} NOSUPERUSER NOBYPASSRLS",
        )
    return failed(
        f"the row policies don't bind {role.role_name}: it owns the table, or is a member of its owner",
        "let another role own it: ALTER TABLE public.image_generations OWNER TO …, or REVOKE the membership",
    )


async def check_row_security(deployment: Deployment) -> Finding:
    """See that row security is on wherever something belongs to somebody."""
    async with deployment.connected() as connection:
        if not (await _describe(deployment, connection)).has_schema:
            return _NO_SCHEMA
        off = await run_directly(connection, _QUERIES["tables_without_row_security"], deployment.timeout)
    if not off:
        return ok("row security is on for every table that has rows of users")
    tables = [table for (table,) in off]
    remedy = "; ".join(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY" for table in tables)
    return failed(f"row security is off: {', '.join(tables)}", f"as the owner, run {remedy}")


async def check_clock(deployment: Deployment) -> Finding:
    """Compare our clock with the database's; half the way there and back counts as the moment of the answer."""
    async with deployment.connected() as connection:
        before = time.time()
        server = await _describe(deployment, connection)
        offset = (before + time.time()) / 2 - server.clock
    sentence = f"ours is {abs(offset):.3f} s {'ahead of' if offset > 0 else 'behind'} the database's"
    if abs(offset) > _CLOCK_SECONDS:
        return warning(sentence, "let both machines keep time by NTP (`timedatectl` shows whether one does)")
    return ok(sentence)


async def check_queue(deployment: Deployment) -> Finding:
    """See how full Postgres' queue of notifications is: when it is full, every change of a task fails."""
    async with deployment.connected() as connection:
        usage = (await _describe(deployment, connection)).queue_usage
    sentence = f"{usage:.0%} of Postgres' queue of notifications is used"
    remedy = (
        "end the session that listens in a long transaction: SELECT pid, xact_start, query FROM pg_stat_activity"
        " ORDER BY xact_start, then pg_terminate_backend(pid); a full queue makes every change of a task fail"
    )
    if usage > _QUEUE_FAILS:
        return failed(sentence, remedy)
    return warning(sentence, remedy) if usage > _QUEUE_WARNS else ok(sentence)
