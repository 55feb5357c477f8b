"""What every fault of the database happens to: a server in this process, 200 held polls, and updates that flow."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from server.storage.listener import Listener
from server.web import keys
from tests.faults.load import Oracle, Pollers, Updates, read_states
from tests.support.facts import until
from tests.support.people import Person
from tests.support.postgres import execute
from tests.support.raw_http import secret_of

TASKS = 40
CLIENTS_OF_A_TASK = 5
CLIENTS = TASKS * CLIENTS_OF_A_TASK
RATE = 60.0
# What a reply may take besides its hold on a machine that does many other things.
LATE_SECONDS = 3.0


class Scene:
    """A person's tasks, the clients that follow them, and the oracle that both are told to."""

    def __init__(self, person: Person, dsn: str, task_ids: list[str], oracle: Oracle, pollers: Pollers) -> None:
        self.person = person
        self.dsn = dsn
        self.task_ids = task_ids
        self.oracle = oracle
        self.pollers = pollers

    @property
    def listener(self) -> Listener:
        return self.person.app[keys.LISTENER]

    @property
    def repairs(self) -> float:
        return self.person.metric("longpoll_missed_notify_repairs_total")

    @contextlib.asynccontextmanager
    async def updates(self) -> AsyncIterator[None]:
        """Change tasks at random during the block; behind it end all of them, and wait until every client knows."""
        with Updates(self.oracle, self.dsn, self.task_ids, rate=RATE) as updates:
            yield
        await asyncio.to_thread(updates.end_all)
        await self.pollers.until_done()

    def change_all(self, columns: str, *, settings: str = "") -> None:
        """Change every task by one statement."""
        statement = f"{settings} UPDATE public.image_generations SET {columns} RETURNING task_id, version, status::text"
        for task_id, version, status in execute(self.dsn, statement):
            self.oracle.committed(task_id, version, status)

    async def until_held_with(self, version: int) -> None:
        """Wait until every client knows this version of its task, and waits for the next."""
        everybody = self.pollers.all
        await until(
            lambda: all(each.version == version for each in everybody) and self.person.held >= len(everybody), 60
        )

    async def until_told(self, clients: int = CLIENTS // 2) -> None:
        """Wait until so many clients have been told of changes that were committed after this call."""
        commits, before = len(self.oracle.commits), len(self.oracle.replies)

        def told() -> bool:
            recent = {(commit.task_id, commit.version) for commit in self.oracle.commits[commits:]}
            replies = self.oracle.replies[before:]
            return len({reply.client for reply in replies if (reply.task_id, reply.version) in recent}) >= clients

        await until(told, 60)

    async def until_answered(self, reason: str, clients: int = CLIENTS) -> None:
        """Wait until so many clients have had a reply with this reason to a poll that began after this call."""
        before, now = len(self.oracle.replies), time.perf_counter()

        def answered() -> bool:
            replies = self.oracle.replies[before:]
            return len({reply.client for reply in replies if reply.reason == reason and reply.sent >= now}) >= clients

        await until(answered, 60)

    def check(self) -> dict[str, float]:
        """Let the oracle judge, on the client's clock as well as on the server's; returns the figures."""
        figures = self.oracle.check(read_states(self.dsn, self.task_ids), late_seconds=LATE_SECONDS)
        longest = max(reply.at - reply.sent for reply in self.oracle.replies)
        assert longest <= self.oracle.hold_seconds + LATE_SECONDS, f"a client waited for {longest:.1f} s"
        return {**figures, "longest_poll_s": round(longest, 2), "repairs": self.repairs}


@contextlib.asynccontextmanager
async def followed_tasks(person: Person, dsn: str, *, hold_seconds: float) -> AsyncIterator[Scene]:
    """Have 200 polls of this person held; `dsn` is the way of the updates, on which no fault stands."""
    oracle, task_ids = Oracle(hold_seconds=hold_seconds), [await person.create() for _ in range(TASKS)]
    address = (str(person.http.host), person.http.port or 0)
    async with Pollers(oracle, [address], cookie=secret_of(person), wait=str(hold_seconds)) as pollers:
        pollers.follow(task_ids, clients=CLIENTS_OF_A_TASK)
        await until(lambda: person.held == CLIENTS)
        yield Scene(person, dsn, task_ids, oracle, pollers)
