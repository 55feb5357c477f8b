"""Machines that work over HTTPS, as far as a test plays them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient

from server.storage.sessions import WORKER_TOKEN_PREFIX, digest
from server.web import keys
from tests.support.facts import until
from tests.support.postgres import Sql


@dataclass(frozen=True, slots=True)
class WorkerToken:
    """A worker's token, as the database knows it, and its secret."""

    id: str
    secret: str

    @property
    def header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}


def add_worker_token(
    sql: Sql, name: str = "gpu", *, tags: Sequence[str] = ("basic", "advanced"), concurrency: int = 1, days: float = 1
) -> WorkerToken:
    """Make a worker's token by SQL, the shortest way."""
    secret = WORKER_TOKEN_PREFIX + secrets.token_urlsafe(32)
    rows = sql(
        "INSERT INTO longpoll.worker_tokens (secret_hash, name, tags, concurrency, expires_at)"
        " VALUES (%s, %s, %s, %s, now() + %s * interval '1 day') RETURNING id::text",
        (digest(secret), name, list(tags), concurrency, days),
    )
    return WorkerToken(rows[0][0], secret)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: a status, and the JSON in it."""

    status: int
    body: Any

    @property
    def tasks(self) -> list[dict[str, Any]]:
        assert self.status == 200, self
        return list(self.body["tasks"])

    @property
    def task(self) -> dict[str, Any]:
        (task,) = self.tasks
        return task

    @property
    def reason(self) -> str:
        assert self.status == 200, self
        return str(self.body["reason"])

    @property
    def problem(self) -> tuple[int, str]:
        return self.status, str(self.body["code"])


class RemoteWorker:
    """A machine with a token, as the API sees it."""

    def __init__(self, http: TestClient[web.Request, web.Application], token: WorkerToken, name: str = "one") -> None:
        self.http = http
        self.app: web.Application = http.server.app  # type: ignore[attr-defined]
        self.token = token
        self.name = name

    async def post(self, path: str, **body: Any) -> Answer:
        """Send JSON to an address below /api/work/."""
        async with self.http.post(f"/api/work/{path}", json=body, headers=self.token.header) as reply:
            return Answer(reply.status, await reply.json())

    async def claim(self, **body: Any) -> Answer:
        return await self.post("claim", **{"worker": self.name, **body})

    async def held_claim(self, **body: Any) -> asyncio.Task[Answer]:
        """Begin a claim, and return when the server holds it."""
        before = len(self.app[keys.WAITERS])
        task = asyncio.create_task(self.claim(**body))
        await until(lambda: len(self.app[keys.WAITERS]) > before or task.done())
        return task


Hire = Callable[..., RemoteWorker]
