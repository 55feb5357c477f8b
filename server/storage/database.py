"""Postgres through aiopg: one pool, short transactions, and the driver's oddities kept in one place.

Nothing lives on a connection from one statement to the next: role, user and time-out are set for the
transaction only. So no identity can leak to the next user of a pooled connection, and a transaction pooler
may stand in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias, TypeVar, cast

import aiopg
import psycopg2
import psycopg2.errors
import psycopg2.extensions

from server import resources
from server.errors import (
    ConfigurationError,
    ConstraintViolated,
    DatabaseUnavailable,
    RowLocked,
    ServerError,
    StorageError,
)
from server.storage.connecting import connect, parse
from server.storage.pool import Pool
from server.telemetry import logs

T = TypeVar("T")

_GRACE_SECONDS = 1.0
# How long a statement may take once the process stops.
_LAST_STATEMENTS_SECONDS = 0.5


class Role(StrEnum):
    """As whom a statement runs."""

    APP = "longpoll_app"
    SERVICE = "longpoll_service"


def read_queries(text: str) -> dict[str, str]:
    """Split a file of statements at its ``-- name: …`` lines."""
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Turn whatever the driver raises into this project's errors: the border that no psycopg2 exception passes."""
    try:
        yield
    except asyncio.CancelledError as error:
        # aiopg raises CancelledError for a statement that *Postgres* canceled (statement_timeout, pg_cancel_backend).
        if _is_canceled():
            raise
        raise DatabaseUnavailable("the statement took too long, or was canceled by the database") from error
    except (psycopg2.errors.RaiseException, psycopg2.IntegrityError) as error:
        raise ConstraintViolated(str(error).partition("\n")[0], error.diag.constraint_name or "") from error
    except psycopg2.errors.LockNotAvailable as error:
        raise RowLocked("somebody else holds a lock on the row") from error
    except (psycopg2.OperationalError, psycopg2.InterfaceError, OSError, TimeoutError) as error:
        raise DatabaseUnavailable(str(error).strip() or type(error).__name__) from error
    except psycopg2.errors.ReadOnlySqlTransaction as error:
        raise DatabaseUnavailable("this server is a standby now, or may not write") from error
    except psycopg2.Error as error:
        # With no code of Postgres' own, libpq speaks: of a connection that broke before the answer was whole.
        kind = DatabaseUnavailable if type(error) is psycopg2.DatabaseError and not error.pgcode else StorageError
        raise kind(str(error).strip()) from error
    except ServerError:
        raise
    except Exception as error:
        # A value that can't be sent (ValueError: NUL) or read (a year beyond 9999), a descriptor that uvloop refuses, …
        raise StorageError(f"{type(error).__name__}: {error}") from error


def _is_canceled() -> bool:
    """Whether it is the current task that somebody wants to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextlib.asynccontextmanager
async def connected(dsn: str, timeout: float, application: str) -> AsyncIterator[aiopg.Connection]:
    """Open a connection of one's own, for LISTEN or for migrations, that Postgres lists under this name.

    Raises:
        DatabaseUnavailable: nobody answered within the time-out.
        ConfigurationError: the database has another encoding than UTF-8.
    """
    with translated_errors():
        connection = await connect(dsn, timeout, application)
    try:
        yield connection
    finally:
        await connection.close()


async def run_directly(
    connection: aiopg.Connection, statement: str, timeout: float, parameters: Mapping[str, object] | None = None
) -> list[Any]:
    """Run a statement, or several in one transaction, on a connection of one's own; returns the rows of the last."""
    with translated_errors():
        async with connection.cursor(timeout=timeout) as cursor:
            await cursor.execute(statement, parameters)
            return await cursor.fetchall() if cursor.description else []


Connection: TypeAlias = aiopg.Connection
_Rows: TypeAlias = tuple[list[str], list[tuple[object, ...]]]


@dataclass(frozen=True, slots=True)
class _Described:
    role_name: str
    unbound: bool
    owner: bool


@dataclass(frozen=True, slots=True)
class _Session:
    standby: bool
    read_only: bool
    isolation: str
    row_security: bool


class Database:
    """A pool of connections that runs named statements.

    A statement belongs to a task of the database's own: when its caller is canceled (a client that left), it runs
    to its end, for aiopg can stop waiting only by throwing the connection away.
    """

    def __init__(self, dsn: str, *, pool_size: int, timeout: float, application: str = "longpoll") -> None:
        """`open` connects.

        `timeout` is in seconds, for one statement; `application` is what Postgres calls us (`application_name`).
        """
        self._dsn = dsn
        self._timeout = timeout
        self._grace = _GRACE_SECONDS
        self._queries = read_queries(resources.read_text("sql", "queries.sql"))
        # One more for heartbeats: a listener must not be taken for dead because everything else is busy.
        self._pool = Pool(self._connect, pool_size + 1)
        # So few at a time wait within the pool that all of them may be woken for each connection that comes back.
        self._connection_slots = asyncio.Semaphore(pool_size)
        self._slot_of_heartbeats = asyncio.Semaphore(1)
        self._corrections = ""
        self._running: set[asyncio.Task[Any]] = set()
        self.application = application
        self.statements = 0
        self.clock_offset = 0.0

    @property
    def busy(self) -> int:
        """How many statements are running or waiting for a connection."""
        return len(self._running)

    @property
    def pool_size(self) -> int:
        """How many connections there may be."""
        return self._pool.size

    @property
    def connections(self) -> int:
        """How many connections are open, besides those of their own such as the listener's."""
        return self._pool.open

    @property
    def connects_failed(self) -> int:
        """How many connections could not be made, since the start."""
        return self._pool.refused

    async def open(self) -> None:
        """Connect once, so that a wrong DSN is noticed now.

        Raises:
            DatabaseUnavailable: Postgres can't be reached.
            ConfigurationError: the database has another encoding than UTF-8.
        """
        await self._pool.fill()

    async def _connect(self) -> aiopg.Connection:
        with translated_errors():
            return await connect(self._dsn, self._timeout, self.application)

    def begin_shutdown(self) -> None:
        """Begin the shutdown: cap statements at 0.5 s and cancel what waits longer; callers get DatabaseUnavailable."""
        if self._timeout > _LAST_STATEMENTS_SECONDS:
            self._timeout, self._grace = _LAST_STATEMENTS_SECONDS, 0.0
            asyncio.get_running_loop().call_later(_LAST_STATEMENTS_SECONDS, self._end, set(self._running))

    def _end(self, statements: set[asyncio.Task[Any]]) -> None:
        for each in statements & self._running:
            each.cancel()

    async def close(self) -> None:
        """Let running statements end, if they soon do, and close every connection."""
        self.begin_shutdown()
        while running := set(self._running):
            _, late = await asyncio.wait(running, timeout=_LAST_STATEMENTS_SECONDS)
            self._end(late)
        await self._pool.close()

    async def fetch(
        self,
        query: str,
        into: Callable[..., T],
        /,
        *,
        user: str | None = None,
        retry: bool = False,
        **parameters: object,
    ) -> list[T]:
        """Run a named statement and return `into(column=value, …)` for each row.

        With `user` it runs as the app's role with that user's identity, without as the service. `retry`: once more
        if the connection turns out to be dead; only for statements that may run twice.

        Raises:
            DatabaseUnavailable: no answer in time; whether a write was carried out is then unknown.
            ConstraintViolated: the statement would break a rule of the schema.
        """
        columns, rows = await self._run(self._fetch(query, parameters, user, self._connection_slots, retry=retry))
        return [into(**dict(zip(columns, row, strict=True))) for row in rows]

    async def fetch_one(self, query: str, into: Callable[..., T], /, **parameters: Any) -> T | None:
        """Run a named statement and return its first row, or None if there is none."""
        rows = await self.fetch(query, into, **parameters)
        return rows[0] if rows else None

    async def check_role(self) -> None:
        """Check that row policies apply to our roles: an owner or a superuser would see every user's rows.

        What else is set for the login and would be in the way is corrected for each statement from now on.

        Raises:
            ConfigurationError: they don't, the roles can't be taken on, or nothing may be written.
        """
        for user in (None, "00000000-0000-0000-0000-000000000000"):
            try:
                role = await self.fetch_one("describe_role", _Described, user=user)
            except DatabaseUnavailable:
                raise
            except StorageError as error:
                raise ConfigurationError(
                    f"the roles {', '.join(Role)} can't be taken on ({error}); run `python -m server migrate` with"
                    " database.admin_dsn, which makes them and grants them to the role of database.dsn"
                ) from error
            if role is None or role.unbound or role.owner:
                raise ConfigurationError(
                    "the row policies don't bind the role of database.dsn: it owns the table or bypasses them"
                )
        session = await self.fetch_one("describe_session", _Session)
        assert session is not None
        if session.read_only:
            why = "; ".join(why_read_only(standby=session.standby))
            raise ConfigurationError(f"nothing may be written through database.dsn: {why}")
        if session.isolation != "read committed":
            self._corrections += "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;\n"
        if not session.row_security:
            self._corrections += "SET LOCAL row_security = on;\n"

    async def notify(self, channel: str, payload: str) -> None:
        """Send a notification, and learn on the way how far the database's clock is from ours."""
        before = time.time()
        parameters = {"channel": channel, "payload": payload}
        columns, (row,) = await self._run(
            self._fetch("notify", parameters, None, self._slot_of_heartbeats, retry=False)
        )
        sent = dict(zip(columns, row, strict=True))
        self.clock_offset = (before + time.time()) / 2 - cast("float", sent["database_time"])

    async def _run(self, statement: Coroutine[Any, Any, _Rows]) -> _Rows:
        """Carry a statement out in a task of its own, and wait for it."""
        task = asyncio.ensure_future(statement)
        self._running.add(task)
        task.add_done_callback(self._finished)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled() and not _is_canceled():
                raise DatabaseUnavailable("this process stops, and the database took too long") from error
            raise

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked may be gone: seen here, it isn't reported a second time

    async def _fetch(
        self, query: str, parameters: Mapping[str, object], user: str | None, slots: asyncio.Semaphore, *, retry: bool
    ) -> _Rows:
        for attempt in (1, 2):
            try:
                with translated_errors():
                    return await self._execute(query, parameters, user, slots)
            except DatabaseUnavailable as error:
                logs.log.warning(logs.QUERY_FAILED, query=query, attempt=attempt, error=str(error))
                if not retry or attempt == 2 or isinstance(error, RowLocked):
                    raise
                # The loop must look at its descriptors once: connections that died with this one are dropped by that.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        raise AssertionError("unreachable")

    async def _execute(
        self, query: str, parameters: Mapping[str, object], user: str | None, slots: asyncio.Semaphore
    ) -> _Rows:
        # Postgres itself gives up first: a statement that aiopg gives up takes its connection along.
        patience = self._timeout + self._grace
        async with self._connection(slots) as connection, connection.cursor(timeout=patience) as cursor:
            self.statements += 1
            await cursor.execute(
                self._corrections + _prefix(user, self._timeout) + self._queries[query],
                {**parameters, "_user": user, "_claims": f'{{"sub": "{user}"}}'},
            )
            if cursor.description is None:
                return [], []
            columns = [column.name for column in cursor.description]
            return columns, await cursor.fetchall()

    @contextlib.asynccontextmanager
    async def _connection(self, slots: asyncio.Semaphore) -> AsyncIterator[aiopg.Connection]:
        deadline = asyncio.get_running_loop().time() + self._timeout
        async with asyncio.timeout_at(deadline):
            await slots.acquire()
        try:
            connection = await self._pool.acquire(deadline, heartbeat=slots is self._slot_of_heartbeats)
            try:
                yield connection
            except psycopg2.errors.ReadOnlySqlTransaction:
                # The next one is made anew, and leads to whoever may write, if the DSN asks for that.
                connection.close()
                raise
            finally:
                self._pool.release(connection)
        finally:
            slots.release()


def why_read_only(*, standby: bool) -> tuple[str, str]:
    """Say why a session may not write, and what to do about it."""
    if standby:
        return "it leads to a standby", "name all hosts in it, with target_session_attrs=read-write"
    return "default_transaction_read_only is on", "take it back by ALTER ROLE … or ALTER DATABASE … RESET"


def other_database(dsn: str, name: str) -> str:
    """Return the DSN of another database at the same place, for the same login."""
    return psycopg2.extensions.make_dsn(dsn, dbname=name)


def login_role(dsn: str) -> str:
    """Return the role that a DSN logs in as: the one it names, or the one that libpq would take."""
    return parse(dsn).get("user") or os.environ.get("PGUSER") or getpass.getuser()


def _prefix(user: str | None, timeout: float) -> str:
    """Set what holds for this transaction only; sent with the statement, it costs no round trip."""
    settings = f"SELECT set_config('statement_timeout', '{int(timeout * 1000)}', true)"
    if user is None:
        return f"{settings}, set_config('role', '{Role.SERVICE}', true);\n"
    # Supabase's auth.uid() has read the one setting or the other, depending on its age: set both.
    return (
        f"{settings}, set_config('request.jwt.claim.sub', %(_user)s, true),"
        f" set_config('request.jwt.claims', %(_claims)s, true), set_config('role', '{Role.APP}', true);\n"
    )
