"""Connections to Postgres through aiopg: any address of the DSN, in the encoding and under the name that we want.

Only this file knows how aiopg and libpq connect. Whatever they raise passes through: see `database.translated_errors`.
"""

from __future__ import annotations

import asyncio
import os
import re
from typing import Any, Final

import aiopg
import aiopg.connection
import psycopg2
import psycopg2.extensions

from server.errors import ConfigurationError, StorageError

# Noticed within about 3 s when the other end has vanished without a word (tcp(7), libpq "Connection control functions").
KEEPALIVES: Final = {"keepalives_idle": 2, "keepalives_interval": 1, "keepalives_count": 3, "tcp_user_timeout": 3000}
_ENCODING: Final = "UTF8"


def parse(dsn: str) -> dict[str, str]:
    """Return the parts of a DSN.

    Raises:
        StorageError: it is malformed. What is wrong is only told if it can't hold a password.
    """
    try:
        parts: dict[str, str] = psycopg2.extensions.parse_dsn(dsn)
    except (psycopg2.ProgrammingError, ValueError) as error:
        found = re.search(r'(?:connection option|query parameter):? "\w+"', str(error))
        what = f" ({found[0]} is unknown)" if found else ""
        raise StorageError(
            f'a DSN is malformed{what}: write "host=… dbname=… user=…" or "postgresql://…", in UTF-8'
        ) from None
    return parts


class _ByDescriptor:
    """Stands in for the `select` module in aiopg.connection, which asks it only whether a descriptor still exists.

    select() refuses descriptors from 1024 up with a ValueError, in the middle of cleaning up: the dead connection
    then never tells anybody, and the next socket with its number is deaf (aiopg 1.4.0, Connection._ready).
    """

    @staticmethod
    def select(readers: list[int], _writers: list[int], _errors: list[int], _seconds: float) -> None:
        os.fstat(readers[0])


aiopg.connection.select = _ByDescriptor  # type: ignore[assignment, attr-defined]


def options(application: str) -> dict[str, Any]:
    """Return what every connection asks of libpq besides its DSN.

    The client's encoding is ours whatever PGCLIENTENCODING says; the name is only used if neither the DSN nor
    PGAPPNAME gives one.
    """
    return {"client_encoding": _ENCODING, "fallback_application_name": application, **KEEPALIVES}


async def connect(dsn: str, timeout: float, application: str) -> aiopg.Connection:
    """Connect to the first host of the DSN that answers and has the `target_session_attrs` that it asks for.

    libpq itself passes over hosts that refuse a connection. One that says nothing is given up when its share of the
    time is over; after that, and after one that broke off or didn't let us in, the others are tried without it.

    Raises:
        StorageError: the DSN is malformed.
        TimeoutError: nobody answered in time.
        psycopg2.OperationalError: nobody let us in; of several errors, the first.
        ConfigurationError: the database has another encoding than UTF-8.
    """
    deadline, hosts = asyncio.get_running_loop().time() + timeout, _Hosts(dsn)
    first: Exception | None = None
    while True:
        connection = _Connection(
            hosts.dsn, timeout, enable_hstore=False, enable_json=False, enable_uuid=False, **options(application)
        )
        try:
            await connection.open(deadline, len(hosts))
        except (TimeoutError, psycopg2.OperationalError) as error:
            silent = isinstance(error, TimeoutError)
            first = first or (TimeoutError(f"no answer within {timeout:g} s") if silent else error)
            if not hosts.drop(*connection.place):
                raise first from None
        else:
            _check_encoding(connection)
            return connection


class _Hosts:
    """The hosts that a DSN names, but those that were given up."""

    def __init__(self, dsn: str) -> None:
        self._given = dsn
        parsed = parse(dsn)
        lists: dict[str, list[str]] = {
            key: parsed[key].split(",") for key in ("host", "hostaddr", "port") if key in parsed
        }
        count = max((len(lists[key]) for key in ("host", "hostaddr") if key in lists), default=1)
        # One port is the port of all of them.
        self._left = [
            {key: each[number] if number < len(each) else each[0] for key, each in lists.items()}
            for number in range(count)
        ]
        self._whole = True

    def __len__(self) -> int:
        return len(self._left)

    @property
    def dsn(self) -> str:
        """The DSN of all that are left."""
        if self._whole:
            return self._given
        joined = {key: ",".join(each[key] for each in self._left) for key in self._left[0]}
        return psycopg2.extensions.make_dsn(self._given, **joined)

    def drop(self, host: str, port: int) -> bool:
        """Give this one up; returns whether others are left."""
        left = [each for each in self._left if not _is(each, host, port)]
        if not left or len(left) == len(self._left):
            return False
        self._left, self._whole = left, False
        return True


def _is(named: dict[str, str], host: str, port: int) -> bool:
    return (named.get("host") or named.get("hostaddr")) == host and named.get("port") in {None, "", str(port)}


class _Connection(aiopg.Connection):
    """A connection that watches whichever socket libpq connects with.

    libpq closes its socket and opens another for every further address, which may well get the same number. aiopg
    1.4.0 goes on watching the first. So while connecting a socket is watched from one step to the next only: libpq
    changes it within a step, never between two.
    """

    async def open(self, deadline: float, hosts: int) -> None:
        """Carry out the steps of connecting; each host has its share of the time that is left.

        Raises:
            TimeoutError: the host at `place` didn't answer within its share.
        """
        self._loop.remove_reader(self._conn.fileno())
        self._fileno = None  # nothing is registered while this is None, so closing unregisters nothing
        self._waiter = None
        try:
            await self._take_steps(deadline, hosts)
        except BaseException:
            self._close()
            raise
        self._fileno = self._conn.fileno()
        self._loop.add_reader(self._fileno, self._ready, self._weakref)

    @property
    def place(self) -> tuple[str, int]:
        """Host and port that libpq is at, or was at last."""
        return self._place

    async def _take_steps(self, deadline: float, hosts: int) -> None:
        self._place = ("", 0)
        async with asyncio.timeout_at(deadline) as limit:
            while (state := self._conn.poll()) != psycopg2.extensions.POLL_OK:
                if (place := (self._conn.info.host, self._conn.info.port)) != self._place:
                    self._place, now = place, self._loop.time()
                    limit.reschedule(now + (deadline - now) / hosts)
                await self._until_ready(reading=state == psycopg2.extensions.POLL_READ)

    async def _until_ready(self, *, reading: bool) -> None:
        loop, descriptor, ready = self._loop, self._conn.fileno(), asyncio.Event()
        (loop.add_reader if reading else loop.add_writer)(descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            (loop.remove_reader if reading else loop.remove_writer)(descriptor)


def _check_encoding(connection: aiopg.Connection) -> None:
    """Refuse a database that can't keep every prompt. A pooler may not tell; then the one behind it decides."""
    raw: psycopg2.extensions.connection = connection.raw
    encoding = raw.get_parameter_status("server_encoding")
    if encoding not in {None, _ENCODING}:
        name = raw.info.dbname
        connection.close()
        raise ConfigurationError(
            f"the database {name} has the encoding {encoding}, and must have UTF8: make one by"
            " CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8'"
        )
