"""Databases of a test's own, and plain SQL."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import psycopg2

# Another Postgres than that of the wheel.
POSTGRES_BIN = Path(os.environ["LONGPOLL_TEST_POSTGRES_BIN"]) if "LONGPOLL_TEST_POSTGRES_BIN" in os.environ else None
Sql = Callable[..., list[tuple[Any, ...]]]
_numbers = itertools.count(1)


def fresh_database(admin_dsn: str, template: str) -> Iterator[str]:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with _administrator(admin_dsn).cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        try:
            yield database_of(admin_dsn, name)
        finally:
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


@cache  # for as long as its server runs: two connections for each of two thousand tests cost as much as their databases
def _administrator(dsn: str) -> psycopg2.extensions.connection:
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    return connection


def database_of(dsn: str, name: str) -> str:
    """Return the DSN of another database of the same server."""
    return psycopg2.extensions.make_dsn(dsn, dbname=name)


def execute(dsn: str, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    """Run a statement as the superuser, over a connection of its own, committed; returns the rows."""
    with closing(psycopg2.connect(dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []


def copy_data_folder(made_before: Path, folder: Path) -> Path:
    """Make a copy of a data folder, whosever its files are; returns the new one's path."""
    subprocess.run(["cp", "-pR", str(made_before), str(folder)], check=True)
    return folder
