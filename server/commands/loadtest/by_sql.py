"""Tasks made and changed by plain SQL: the way that knows when a COMMIT has returned, and needs no worker out of the way."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Iterator
from typing import Any, Final, Self

import psycopg2
import psycopg2.extensions

from server import resources
from server.commands.loadtest.workloads import Commit, Task
from server.errors import LoadTestError
from server.storage.connecting import options, parse
from server.storage.database import read_queries
from server.storage.sessions import TOKEN_PREFIX

_CONNECT_SECONDS: Final = 5
# An interrupt is not heeded while libpq waits for a reply: it must not wait for long.
_PATIENCE: Final = "SET lock_timeout = '5s'; SET statement_timeout = '60s'"


class SqlStage:
    """Tasks in a database that we may write to."""

    def __init__(self, dsn: str, *, tasks: int, clients: int, polls_per_user: int, secret: str | None) -> None:
        """Spread tasks over users so that none holds more than so many polls; or give them all to a token's user."""
        self._dsn = dsn
        self._run = secrets.token_hex(4)
        self._task_ids = [f"loadtest-{self._run}-{number}" for number in range(tasks)]
        self._per_user = max(polls_per_user * tasks // max(clients, tasks), 1)
        self._secret = secret
        self._queries = read_queries(resources.read_text("sql", "loadtest.sql"))
        self._made_users: list[str] = []
        self._connection: psycopg2.extensions.connection | None = None
        self._changes = 0
        self._ended = False
        self.tasks: list[Task] = []
        self._versions = [1] * tasks

    def __enter__(self) -> Self:
        try:
            self._create()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._remove()

    @property
    def left(self) -> bool:
        """Whether the tasks have not ended."""
        return not self._ended

    def change(self, task: int) -> Commit | None:
        """Write another message into a task."""
        sent = time.monotonic()
        rows = self._run_query("change_task", message=self._message(), task_id=self._task_ids[task])
        returned = time.monotonic()
        if not rows:
            raise LoadTestError(f"the task {self._task_ids[task]} is gone")
        self._versions[task] = int(rows[0][0])
        return Commit(task, self._versions[task], sent, returned)

    def change_all(self, *, singly: bool, ending: bool) -> list[Commit]:
        """Write another message into every task, or complete them all."""
        if singly:
            commits = [self._change_one(task, ending=ending) for task in range(len(self._task_ids))]
        else:
            sent, returned = self._change_many(self._task_ids, ending=ending)
            commits = [Commit(task, version + 1, sent, returned) for task, version in enumerate(self._versions)]
            self._versions = [commit.version for commit in commits]
        self._ended = ending
        return commits

    def foreign_changes(self) -> int:
        """Compare the versions in the database with those that we know of."""
        rows = dict(self._run_query("read_versions", task_ids=self._task_ids))
        return sum(rows.get(task_id) != known for task_id, known in zip(self._task_ids, self._versions, strict=True))

    def _change_one(self, task: int, *, ending: bool) -> Commit:
        sent, returned = self._change_many([self._task_ids[task]], ending=ending)
        self._versions[task] += 1
        return Commit(task, self._versions[task], sent, returned)

    def _change_many(self, task_ids: list[str], *, ending: bool) -> tuple[float, float]:
        with self._cursor() as cursor:
            name = "complete_tasks" if ending else "change_tasks"
            statement = cursor.mogrify(self._queries[name], {"message": self._message(), "task_ids": task_ids})
            sent = time.monotonic()
            cursor.execute(statement)
            returned = time.monotonic()
            if cursor.rowcount != len(task_ids):
                raise LoadTestError(f"{cursor.rowcount} of {len(task_ids)} tasks could be changed")
        return sent, returned

    def _message(self) -> str:
        self._changes += 1
        return f"change {self._changes}"

    # Making and removing -------------------------------------------------------------------------------------------

    def _create(self) -> None:
        count = -(-len(self._task_ids) // self._per_user)
        if self._secret is not None:
            owners = [(self._owner_of(self._secret), self._secret)]
            self._per_user = len(self._task_ids)
        else:
            owners = self._add_users(count)
        of_task = [owners[place // self._per_user] for place in range(len(self._task_ids))]
        self._run_query("add_tasks", user_ids=[user_id for user_id, _ in of_task], task_ids=self._task_ids)
        self.tasks = [Task(task_id, secret) for task_id, (_, secret) in zip(self._task_ids, of_task, strict=True)]

    def _add_users(self, count: int) -> list[tuple[str, str]]:
        self._made_users = [str(row[0]) for row in self._run_query("add_users", run=self._run, count=count)]
        made = [(user_id, TOKEN_PREFIX + secrets.token_urlsafe(32)) for user_id in self._made_users]
        self._run_query("add_tokens", user_ids=self._made_users, hashes=[_digest(secret) for _, secret in made])
        return made

    def _owner_of(self, secret: str) -> str:
        rows = self._run_query("find_owner", hash=_digest(secret))
        if not rows:
            raise LoadTestError("the token of --token is not one of the database of --dsn")
        return str(rows[0][0])

    def _remove(self) -> None:
        self._disconnect()  # the statement that was interrupted may have left it anyhow
        self._run_query("remove_tasks", task_ids=self._task_ids)
        if self._made_users:
            self._run_query("remove_users", user_ids=self._made_users)
        self._disconnect()

    # The connection ------------------------------------------------------------------------------------------------

    def _run_query(self, name: str, **parameters: object) -> list[tuple[Any, ...]]:
        with self._cursor() as cursor:
            cursor.execute(self._queries[name], parameters)
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[psycopg2.extensions.cursor]:
        try:
            if self._connection is None:
                parse(self._dsn)
                self._connection = psycopg2.connect(
                    self._dsn, connect_timeout=_CONNECT_SECONDS, **options("longpoll-loadtest")
                )
                self._connection.autocommit = True
                with self._connection.cursor() as cursor:
                    cursor.execute(_PATIENCE)
            with self._connection.cursor() as cursor:
                yield cursor
        except psycopg2.Error as error:
            raise LoadTestError(f"the database of --dsn: {str(error).strip()}") from error

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
