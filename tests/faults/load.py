"""Load with a memory: clients that follow tasks, somebody who changes them, and the oracle that compares the two.

Everybody tells the `Oracle` what happened: `Updates` each commit, `Pollers` each reply. Whatever fault was made
meanwhile, `Oracle.check` then says whether a promise was broken:

    oracle = Oracle(hold_seconds=30)
    async with Pollers(oracle, [(host, port)], token=token) as pollers:
        pollers.follow(task_ids, clients=3)
        with Updates(oracle, dsn, task_ids, rate=200) as updates:
            ...                                # the fault
        updates.end_all()                      # a terminal state ends every poller
        await pollers.until_done()
    figures = oracle.check(read_states(dsn, task_ids))
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import random
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Self

import orjson
import psycopg2

from tests.faults.oracle import TERMINAL, Oracle, Reply
from tests.support.postgres import Sql, execute

_BACK_OFF_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
_LONGEST_PAUSE_SECONDS = 2.0
# A poll that had been held for longer when its connection broke didn't just cross with the close of an idle one.
_CROSSING_SECONDS = 1.0


class Channel:
    """One keep-alive connection that sends requests and reads replies with a Content-Length: the least that will do."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.used = False
        self.closing = False
        self.begun = False

    @classmethod
    async def open(cls, address: tuple[str, int]) -> Self:
        return cls(*await asyncio.open_connection(*address))

    async def get(self, target: str, headers: str) -> tuple[int, bytes]:
        """Return status and body. `begun` says afterwards whether any byte of a reply came."""
        self.begun = False
        self._writer.write(f"GET {target} HTTP/1.1\r\nHost: faults\r\n{headers}\r\n".encode())
        head = await self._reader.readuntil(b"\r\n")
        self.begun = True
        status, length = int(head.split(b" ", 2)[1]), 0
        while (line := await self._reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.lower().partition(b":")
            if name == b"content-length":
                length = int(value)
            elif name == b"connection":
                self.closing = value.strip() == b"close"
        body = await self._reader.readexactly(length)
        self.used = True
        return status, body

    def close(self) -> None:
        """Leave with a FIN, as a client does that is closed."""
        self._writer.close()

    def reset(self) -> None:
        """Vanish with a RST, as a killed client does."""
        opened: socket.socket = self._writer.get_extra_info("socket")
        if not self._writer.is_closing():
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


class Poller:
    """One client that follows one task until it has ended, whatever happens to its connections."""

    def __init__(self, pollers: Pollers, name: str, task_id: str, version: int) -> None:
        self._pollers = pollers
        self.name = name
        self.task_id = task_id
        self.version = version
        self.channel: Channel | None = None
        self.waiting_since = 0.0

    async def run(self) -> None:
        failures = 0
        while True:
            try:
                pause = await self._ask()
                failures = 0
            except (OSError, EOFError):
                self._pollers.oracle.broken[self._how_it_broke()] += 1
                self._leave()
                pause = _BACK_OFF_SECONDS[min(failures, len(_BACK_OFF_SECONDS) - 1)] * random.uniform(0.5, 1)
                failures += 1
            if pause is None:
                self._leave()
                return
            if pause:
                await asyncio.sleep(min(pause, _LONGEST_PAUSE_SECONDS))

    async def _ask(self) -> float | None:
        """Ask once; returns the seconds after which to ask again, or None if there is nothing more to be told."""
        oracle = self._pollers.oracle
        if self.channel is None:
            self.channel = await Channel.open(self._pollers.next_address())
        asked, sent = self.version, time.perf_counter()
        self.waiting_since = sent
        status, body = await self.channel.get(self._pollers.target(self), self._pollers.headers)
        now = time.perf_counter()
        if self.channel.closing:
            self._leave()
        if status != 200:
            oracle.refusals[status] += 1
            return 0.5 * random.random()
        answer = orjson.loads(body)
        data, poll = answer["data"], answer["poll"]
        reply = (data["version"], data["status"], poll["reason"], poll["waitedMs"], sent, now)
        oracle.replies.append(Reply(self.name, self.task_id, asked, *reply))
        self.version = data["version"]
        if data["status"] in TERMINAL:
            return None
        return float(poll["retryAfterMs"]) / 1000

    def _how_it_broke(self) -> str:
        """Name a failure. Only `crossed` is one that any HTTP client repeats by itself (RFC 9110, 9.2.2)."""
        if self.channel is None:
            return "refused"
        if self.channel.begun:
            return "torn"
        if not self.channel.used:
            return "fresh"
        return "crossed" if time.perf_counter() - self.waiting_since < _CROSSING_SECONDS else "held"

    def _leave(self) -> None:
        if self.channel is not None:
            self.channel.close()
            self.channel = None


class Pollers:
    """Many clients. Each connection goes to the next of the addresses."""

    def __init__(
        self, oracle: Oracle, addresses: Sequence[tuple[str, int]], *, token: str = "", cookie: str = "", wait: str = ""
    ) -> None:
        """`token` is a bearer token's secret, `cookie` a session's; `wait` is what each poll asks for, if anything."""
        self.oracle = oracle
        self.headers = f"Authorization: Bearer {token}\r\n" if token else f"Cookie: longpoll={cookie}\r\n"
        self._rest = f"&wait={wait}" if wait else ""
        self._addresses = itertools.cycle(addresses)
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self.all: list[Poller] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for poller in self.all:
            poller._leave()

    def follow(self, task_ids: Iterable[str], *, clients: int = 1, version: int = 1) -> None:
        """Have so many clients follow each of these tasks, which all know the version already."""
        for task_id in task_ids:
            for _ in range(clients):
                poller = Poller(self, f"c{next(self._numbers)}", task_id, version)
                self.oracle.followers[task_id].add(poller.name)
                self.all.append(poller)
                self._tasks.add(asyncio.create_task(poller.run(), name=poller.name))

    async def until_done(self, seconds: float = 60) -> None:
        """Wait until every client has seen the end of its task; a client that crashed fails the test."""
        done, waiting = await asyncio.wait(self._tasks, timeout=seconds) if self._tasks else (set(), set())
        for task in done:
            task.result()
        assert not waiting, f"{len(waiting)} of {len(self._tasks)} clients have not seen the end of their task"

    @property
    def waiting(self) -> int:
        """How many clients have not seen the end of their task yet."""
        return sum(not task.done() for task in self._tasks)

    def reset_some(self, count: int, chance: random.Random) -> None:
        """Cut the connections of so many clients, by a RST from their side."""
        connected = [poller for poller in self.all if poller.channel is not None]
        for poller in chance.sample(connected, min(count, len(connected))):
            assert poller.channel is not None
            poller.channel.reset()

    def turn_to(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Send new connections there from now on, as a balancer does."""
        self._addresses = itertools.cycle(addresses)

    def next_address(self) -> tuple[str, int]:
        return next(self._addresses)

    def target(self, poller: Poller) -> str:
        rest = f"&version={poller.version}&c={poller.name}{self._rest}"
        return f"/api/generate/status?taskId={poller.task_id}{rest}"


class Updates:
    """Commits visible changes by plain SQL in a thread, over many tasks, so many a second; each one is recorded.

    A share `ending` of them ends its task. A connection that breaks is made anew; the change is tried again.
    """

    def __init__(
        self,
        oracle: Oracle,
        dsn: str,
        task_ids: Sequence[str],
        *,
        rate: float = 100.0,
        ending: float = 0.0,
        seed: int | None = None,
    ) -> None:
        self._oracle = oracle
        self._dsn = dsn
        self._alive = list(task_ids)
        self._pause = 1 / rate
        self._ending = ending
        self._chance = random.Random(seed)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="updates")
        self._connection: psycopg2.extensions.connection | None = None
        self.error: BaseException | None = None
        self.lost_connections = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._disconnect()
        if self.error is not None:
            raise self.error

    def add(self, task_ids: Iterable[str]) -> None:
        """Change these tasks too, from now on."""
        self._alive += task_ids

    def end_all(self) -> None:
        """End every task that has not ended, by one statement each. Only behind the block."""
        assert self._stopping.is_set(), "still updating"
        for task_id in self._alive:
            self._change(task_id, end=True)
        self._alive = []
        self._disconnect()

    def _run(self) -> None:
        due = time.perf_counter()
        try:
            while not self._stopping.wait(max(due - time.perf_counter(), 0)):
                due = max(due + self._pause, time.perf_counter() - 1)
                if not self._alive:
                    continue
                task_id = self._chance.choice(self._alive)
                end = self._chance.random() < self._ending
                self._change(task_id, end=end)
                if end:
                    self._alive.remove(task_id)
        except BaseException as error:  # noqa: BLE001 - raised where the block ends
            self.error = error

    def _change(self, task_id: str, *, end: bool) -> None:
        for _ in range(100):
            try:
                rows = self._execute(*_change_of(task_id, end=end))
            except psycopg2.Error as error:
                if error.pgcode is not None and not isinstance(error, psycopg2.OperationalError):
                    raise
                self.lost_connections += 1
                self._disconnect()
                time.sleep(0.1)  # in a thread, while the database is away
                continue
            for row in rows:  # none: the change was done before its connection broke
                self._oracle.committed(task_id, *row)
            return
        raise AssertionError(f"the database stayed away: {self._dsn}")

    def _execute(self, statement: str, parameters: Sequence[object]) -> list[tuple[int, str]]:
        if self._connection is None:
            self._connection = psycopg2.connect(self._dsn, application_name="updates")
            self._connection.autocommit = True
        with self._connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall())

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _change_of(task_id: str, *, end: bool) -> tuple[str, tuple[object, ...]]:
    columns = "status = 'completed', result = '/picture'" if end else "status = 'processing', message = %s"
    statement = (
        f"UPDATE public.image_generations SET {columns} WHERE task_id = %s"
        " AND status IN ('pending', 'processing') RETURNING version, status::text"
    )
    return statement, (task_id,) if end else (f"note {secrets.token_hex(4)}", task_id)


def read_states(dsn: str, task_ids: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Return what the database says of these tasks now: version and status."""
    statement = "SELECT task_id, version, status::text FROM public.image_generations WHERE task_id = ANY (%s)"
    return {task_id: (version, status) for task_id, version, status in execute(dsn, statement, (list(task_ids),))}


def add_token(sql: Sql, user_id: str) -> str:
    """Give a user a bearer token; returns its secret."""
    secret = f"lp_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(secret.encode()).digest()
    sql("INSERT INTO longpoll.tokens (secret_hash, user_id, name) VALUES (%s, %s, 'load')", (digest, user_id))
    return secret


def add_tasks(sql: Sql, user_id: str, count: int, *, status: str = "pending") -> list[str]:
    """Insert so many tasks by one statement; returns their ids."""
    statement = (
        "INSERT INTO public.image_generations (user_id, task_id, prompt, status)"
        " SELECT %s, 'task-' || gen_random_uuid(), 'a lake', %s FROM generate_series(1, %s) RETURNING task_id"
    )
    return [str(row[0]) for row in sql(statement, (user_id, status, count))]


def kill_listeners(dsn: str) -> int:
    """Terminate every backend of this database that listens; returns how many there were."""
    with closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE 'LISTEN%'"
        )
        return int(cursor.fetchone()[0])  # type: ignore[index]


def print_figure(name: str, **figures: object) -> None:
    """Print what a run has measured, as one line of JSON."""
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"figure": name, **figures}), flush=True)
