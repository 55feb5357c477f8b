"""Brings the schema up to date: plain SQL files, in order, each in a transaction, each once."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

from server import logs, resources
from server.errors import DatabaseUnavailable, MigrationError, StorageError
from server.storage.database import Connection, connected, run_directly

_NAME: Final = re.compile(r"(\d{4})_\w+\.sql\Z")
# Any number will do, if nobody else uses it: processes that start together take turns by it.
_LOCK: Final = 7_304_129_551
_PATIENCE_SECONDS: Final = 60.0
_APPLICATION: Final = "longpoll-migrate"

_LEDGER: Final = """
CREATE SCHEMA IF NOT EXISTS longpoll;
CREATE TABLE IF NOT EXISTS longpoll.migrations (
  name       text PRIMARY KEY,
  checksum   text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
);
REVOKE ALL ON longpoll.migrations FROM PUBLIC;
"""
# Our lock is this database's, roles are the cluster's: up to Postgres 15 two such grants at once collide.
_GRANT: Final = """
DO $grant$
BEGIN
  GRANT longpoll_app, longpoll_service TO {role};
EXCEPTION WHEN unique_violation THEN
  GRANT longpoll_app, longpoll_service TO {role};
END
$grant$
"""


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

    `grant_to` is the role that the server logs in as, if it isn't the one that migrates.

    Raises:
        MigrationError: a migration fails, or one that was applied has been edited or is missing.
        DatabaseUnavailable: nobody answers.
    """
    wanted = read_migrations() if migrations is None else migrations
    async with connected(dsn, _PATIENCE_SECONDS, _APPLICATION) as connection:
        await _run(connection, f"SELECT pg_advisory_lock({_LOCK})")
        await _run(connection, f"SET statement_timeout = 0; {_LEDGER}")
        applied: dict[str, str] = dict(
            await _run(connection, "SELECT name, checksum FROM longpoll.migrations ORDER BY name")
        )
        _check(wanted, applied)
        pending = [migration for migration in wanted if migration.name not in applied]
        for migration in pending:
            await _apply(connection, migration)
        if grant_to is not None:
            role = '"' + grant_to.replace('"', '""') + '"'
            await _run(connection, _GRANT.format(role=role))
    return [migration.name for migration in pending]


async def pending(dsn: str) -> list[str]:
    """Return the names of the migrations that this version needs and the database hasn't.

    Raises:
        MigrationError: one that was applied has been edited, or isn't known to this version.
        StorageError: the role may not read what has been applied; only the one that migrates may.
        DatabaseUnavailable: nobody answers.
    """
    async with connected(dsn, _PATIENCE_SECONDS, _APPLICATION) as connection:
        [(begun,)] = await _run(connection, "SELECT to_regclass('longpoll.migrations') IS NOT NULL")
        rows = await _run(connection, "SELECT name, checksum FROM longpoll.migrations ORDER BY name") if begun else []
    wanted, applied = read_migrations(), dict(rows)
    _check(wanted, applied)
    return [migration.name for migration in wanted if migration.name not in applied]


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


async def _apply(connection: Connection, migration: Migration) -> None:
    # Both are of our own making: a file name that matched, and a digest.
    record = f"INSERT INTO longpoll.migrations (name, checksum) VALUES ('{migration.name}', '{migration.checksum}')"  # noqa: S608
    try:
        # Several statements in one message are one transaction, the record of it included.
        await _run(connection, f"{migration.text}\n;{record}")
    except DatabaseUnavailable:
        raise
    except StorageError as error:
        raise MigrationError(f"{migration.name} failed and was undone: {error}") from error
    logs.log.info(logs.MIGRATION_APPLIED, name=migration.name)


async def _run(connection: Connection, statement: str) -> list[Any]:
    return await run_directly(connection, statement, _PATIENCE_SECONDS)
