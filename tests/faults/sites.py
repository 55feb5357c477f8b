"""Where the load goes: a server in this process, which a test can look into, or server processes, which it can end."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from server.config import Config
from server.web import keys
from tests.faults.load import Channel, add_token
from tests.support.people import Start
from tests.support.postgres import Sql
from tests.support.processes import ServerProcess
from tests.support.rows import add_user

Address = tuple[str, int]
LISTENING = re.compile(r"^Listening on (https?://\S+)", re.MULTILINE)


@pytest.fixture
def config(config: Config) -> Config:
    """Settings for crowds: nobody holds too many polls, and the log isn't part of what is measured."""
    return config.replace(
        polling={"hold_seconds": 30.0, "max_held_per_user": 20_000},
        logging={"level": "error", "format": "json", "timeout_sample": 0.0},
    )


@dataclass(frozen=True, slots=True)
class Account:
    """Who owns the tasks, and the secret of a bearer token."""

    user_id: str
    token: str

    @property
    def headers(self) -> str:
        return f"Authorization: Bearer {self.token}\r\n"


@pytest.fixture
def account(sql: Sql) -> Account:
    user_id = add_user(sql)
    return Account(user_id, add_token(sql, user_id))


class Site:
    """A server in this process."""

    def __init__(self, client: TestClient[web.Request, web.Application]) -> None:
        self.app: web.Application = client.server.app  # type: ignore[attr-defined]
        self.address: Address = (str(client.host), int(client.port or 0))

    @property
    def held(self) -> int:
        return len(self.app[keys.WAITERS])

    def held_by(self, user_id: str) -> int:
        """How many polls of a user are held."""
        return len(self.app[keys.WAITERS]._by_user.get(user_id, ()))

    def watching(self, task_ids: Iterable[str]) -> int:
        """How many requests watch one of these tasks, whether they wait for it or for its first read."""
        tasks = self.app[keys.BOARD]._tasks
        return sum(tasks[task_id].watchers for task_id in task_ids if task_id in tasks)

    @property
    def leaks(self) -> int:
        """What nobody may leave behind, all in one number: 0 when every poll has gone."""
        waiters = self.app[keys.WAITERS]
        watching = self.watching(list(self.app[keys.BOARD]._tasks))
        return self.held + watching + len(waiters._deadlines) + len(waiters._by_client) + waiters.users

    def metric(self, name: str, **labels: str) -> float:
        return self.app[keys.METRICS].registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def open_site(start: Start) -> Any:
    """Start a server in this process: `site = await open_site(polling={…})`."""

    async def begin(**sections: Any) -> Site:
        return Site(await start(**sections))

    return begin


@contextlib.asynccontextmanager
async def channels(address: Address, count: int) -> AsyncIterator[list[Channel]]:
    """Open so many connections, a hundred at a time."""
    opened: list[Channel] = []
    try:
        while len(opened) < count:
            burst = min(100, count - len(opened))
            opened += await asyncio.gather(*(Channel.open(address) for _ in range(burst)))
        yield opened
    finally:
        for channel in opened:
            channel.reset()


def poll_target(task_id: str, version: int = 1, rest: str = "") -> str:
    return f"/api/generate/status?taskId={task_id}&version={version}{rest}"


def address_of(process: ServerProcess) -> Address:
    """Return where a process listens; waits until it does."""
    url = URL(process.url)
    return str(url.host), int(url.port or 0)


async def listening(process: ServerProcess) -> Address:
    """Wait, beside everything else, until a process listens."""
    return await asyncio.to_thread(address_of, process)


async def read_metrics(address: Address) -> dict[str, float]:
    """Return the figures of a process that have no labels."""
    channel = await Channel.open(address)
    try:
        status, body = await channel.get("/metrics", "")
    finally:
        channel.close()
    assert status == 200, body
    families = text_string_to_metric_families(body.decode())
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


async def holds(address: Address, count: int) -> bool:
    """Return whether a process holds so many polls."""
    return (await read_metrics(address))["longpoll_held_connections"] == count


def settings_of(dsn: str, folder: Path, **more: object) -> dict[str, object]:
    """Return settings for a server process on this database, which has no workers and no limits."""
    return {
        "database__dsn": dsn,
        "database__data_dir": folder,
        "generation__workers": 0,
        "limits__enabled": False,
        "polling__max_held_per_user": 20_000,
        "logging__level": "warning",
        **more,
    }


@contextlib.contextmanager
def processes() -> Iterator[list[ServerProcess]]:
    """Give a list for the processes that a test starts; whichever still runs at the end is killed."""
    started: list[ServerProcess] = []
    try:
        yield started
    finally:
        for process in started:
            if process.process.poll() is None:
                process.process.kill()
            process.wait()
