"""One database for all tests of a file, and rows put into it by plain SQL.

A file says `shared_dsn, dsn = rows.shared_dsn, rows.dsn`, and each of its tests finds the tables empty. What changes
more than rows takes a database of its own: the fixture `own_dsn`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from server.storage.embedded.cluster import EmbeddedPostgres
from tests.support.postgres import Sql, execute, fresh_database


@pytest.fixture(scope="module")
def shared_dsn(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A database with the schema, for all tests of a file."""
    yield from fresh_database(postgres.dsn, template)


@pytest.fixture
def dsn(shared_dsn: str) -> str:
    """The file's database, emptied without a word to any trigger: quicker than a new one."""
    execute(
        shared_dsn,
        "SET session_replication_role = replica; DELETE FROM public.image_generations; DELETE FROM longpoll.sessions;"
        " DELETE FROM longpoll.tokens; DELETE FROM longpoll.worker_tokens; DELETE FROM longpoll.accounts; DELETE FROM auth.users",
    )
    return shared_dsn


@pytest.fixture
def own_dsn(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A database with the schema, for this test alone."""
    yield from fresh_database(postgres.dsn, template)


def add_user(sql: Sql, name: str = "alice") -> str:
    """Register somebody; returns the user's id."""
    return str(sql("SELECT longpoll.register_account(%s, 'no hash')", (f"{name}@example.org",))[0][0])


def add_task(sql: Sql, user_id: str, task_id: str = "", **columns: object) -> str:
    """Insert a task with these columns, the others by default; returns its id."""
    row = {"user_id": user_id, "task_id": task_id or uuid.uuid4().hex, "prompt": "a lake", **columns}
    places = ", ".join(["%s"] * len(row))
    sql(f"INSERT INTO public.image_generations ({', '.join(row)}) VALUES ({places})", tuple(row.values()))
    return str(row["task_id"])


def read_task(sql: Sql, task_id: str, columns: str) -> tuple[Any, ...]:
    """Return these columns of a task."""
    return sql(f"SELECT {columns} FROM public.image_generations WHERE task_id = %s", (task_id,))[0]


def read_row(sql: Sql, task_id: str) -> tuple[Any, ...]:
    """Return everything that is stored of a task."""
    return read_task(sql, task_id, "*")


def run_as(dsn: str, role: str, *statements: str, user: str = "", claims: str = "") -> list[tuple[Any, ...]]:
    """Run statements in one transaction as a role with this identity, and commit; returns the rows of the last."""
    with closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('request.jwt.claim.sub', %s, true), set_config('request.jwt.claims', %s, true),"
            " set_config('role', %s, true)",
            (user, claims, role),
        )
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []
