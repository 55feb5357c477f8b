"""Brings the schema up to date: plain SQL files, in order, each in a transaction, each once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from server import resources
from server.errors import DatabaseUnavailable, MigrationError, StorageError
from server.storage.database import Connection, connected, read_queries, run_directly
from server.telemetry import logs

_NAME: Final = re.compile(r"(\d{4})_\w+\.sql\Z")
_PATIENCE_SECONDS: Final = 60.0
_APPLICATION: Final = "longpoll-migrate"
_STATEMENTS: Final = read_queries(resources.read_text("sql", "migrate.sql"))
_NOT_ALLOWED: Final = "42501"  # insufficient_privilege
_REMEDY: Final = (
    "run `python -m server migrate` with database.admin_dsn, the login that owns the schema: it applies what is"
    " missing and grants the login of database.dsn what it needs"
)


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its name and text."""

    name: str
    text: str

    @property
    def checksum(self) -> str:
        """Tell whether the file is still what was applied. Line ends don't count."""
        return hashlib.sha256(self.text.replace("\r\n", "\n").encode()).hexdigest()


def read_migrations() -> list[Migration]:
    """Return all migrations of this version, in order.

    Raises:
        MigrationError: two share a number, or a name isn't NNNN_name.sql.
    """
    files = sorted(resources.folder("sql").joinpath("migrations").glob("*.sql"))
    numbers = [found[1] for file in files if (found := _NAME.match(file.name))]
    if len(numbers) != len(files) or len(set(numbers)) != len(numbers):
        raise MigrationError("the files in sql/migrations must be named NNNN_name.sql, each with a number of its own")
    return [Migration(file.name, file.read_text(encoding="utf-8")) for file in files]


async def migrate(dsn: str, *, grant_to: str | None = None, migrations: list[Migration] | None = None) -> list[str]:
    """Apply what hasn't been applied, and return its names. Safe to run twice, and from many processes at once.

    If nothing is missing it only reads, which any login may that can act as the service. `grant_to` is the role that
    the server logs in as, if it isn't the one that migrates.

    Raises:
        MigrationError: a migration fails, one that was applied has been edited or is missing, or this login has not
            the rights.
        ConfigurationError: the database has another encoding than UTF-8; nothing was changed.
        DatabaseUnavailable: nobody answers.
    """
    wanted = read_migrations() if migrations is None else migrations
    done = []
    async with connected(dsn, _PATIENCE_SECONDS, _APPLICATION) as connection:
        for migration in await _missing(connection, wanted):
            if await _apply(connection, migration):
                done.append(migration.name)
            else:
                _check(wanted, await _read_ledger(connection))
        if grant_to is not None:
            await _run(connection, _STATEMENTS["grant_roles"], {"login": grant_to})
    return done


async def make_login(dsn: str, login: str) -> None:
    """Make a plain login, without a password, if there is none of this name."""
    async with connected(dsn, _PATIENCE_SECONDS, _APPLICATION) as connection:
        await _run(connection, _STATEMENTS["make_login"], {"login": login})


async def pending(dsn: str) -> list[str]:
    """Return the names of the migrations that this version needs and the database hasn't. Changes nothing.

    Raises:
        MigrationError: one that was applied has been edited, or isn't known to this version; or this login may not
            see what was applied.
        ConfigurationError: the database has another encoding than UTF-8.
        DatabaseUnavailable: nobody answers.
    """
    async with connected(dsn, _PATIENCE_SECONDS, _APPLICATION) as connection:
        return [migration.name for migration in await _missing(connection, read_migrations())]


async def _missing(connection: Connection, wanted: list[Migration]) -> list[Migration]:
    applied = await _read_ledger(connection)
    _check(wanted, applied)
    return [migration for migration in wanted if migration.name not in applied]


async def _read_ledger(connection: Connection) -> dict[str, str]:
    """Return name and checksum of what was applied."""
    found = await _run(connection, _STATEMENTS["find_ledger"])
    if not found:
        return {}
    [(readable,)] = found
    statements = ["read_ledger"] if readable else ["become_service", "read_ledger"]
    try:
        return dict(await _run(connection, "".join(_STATEMENTS[name] for name in statements)))
    except DatabaseUnavailable:
        raise
    except StorageError as error:
        raise MigrationError(f"this login may not see which migrations were applied ({error}); {_REMEDY}") from error


def _check(wanted: list[Migration], applied: dict[str, str]) -> None:
    known = {migration.name: migration for migration in wanted}
    for name, checksum in applied.items():
        if name not in known:
            raise MigrationError(
                f"the database has had {name}, which this version doesn't know: it was migrated by a newer version"
            )
        if known[name].checksum != checksum:
            raise MigrationError(
                f"{name} was edited after it had been applied to this database;"
                " undo the edit and put the change into a new migration"
            )


async def _apply(connection: Connection, migration: Migration) -> bool:
    """Apply a migration and return True; False if another process has just done it."""
    try:
        # Several statements in one message are one transaction. The text itself has no parameters, but may have a %.
        statements = (
            _STATEMENTS["begin_migration"],
            _STATEMENTS["record_migration"],
            migration.text.replace("%", "%%"),
        )
        await _run(connection, "\n".join(statements), {"name": migration.name, "checksum": migration.checksum})
    except DatabaseUnavailable:
        raise
    except StorageError as error:
        if migration.name in await _read_ledger(connection):
            return False
        remedy = f"; {_REMEDY}" if getattr(error.__cause__, "pgcode", None) == _NOT_ALLOWED else ""
        raise MigrationError(f"{migration.name} failed and was undone: {error}{remedy}") from error
    logs.log.info(logs.MIGRATION_APPLIED, name=migration.name)
    return True


async def _run(connection: Connection, statement: str, parameters: Mapping[str, object] | None = None) -> list[Any]:
    return await run_directly(connection, statement, _PATIENCE_SECONDS, parameters)
