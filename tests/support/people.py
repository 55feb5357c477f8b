"""The server on a real socket, and people who are logged in to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import argon2
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from server.app import build_app
from server.commands import serve
from server.config import Config
from server.storage.queue import QueueState
from server.storage.users import User
from server.telemetry import logs
from server.web import keys
from tests.support.contract import Contract
from tests.support.postgres import Sql

# Passwords of tests need no protection, and a server hashes one at each start.
_CHEAP_HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
CONTRACT = web.AppKey("contract", Contract)


class ProductionServer(TestServer):
    """A real socket before the runner that production uses; aiohttp's own test server runs handlers differently."""

    async def _make_runner(self, **_options: Any) -> web.AppRunner:
        return serve.make_runner(self.app)


Start = Callable[..., Awaitable[TestClient[web.Request, web.Application]]]


MakeClient = Callable[..., Awaitable[TestClient[web.Request, web.Application]]]


@asynccontextmanager
async def starting(dsn: str, config: Config, make_client: MakeClient) -> AsyncIterator[Start]:
    """Do what `start` promises, on whichever loop."""
    logs.configure(config.logging)
    contracts: list[Contract] = []

    async def begin(use_dsn: str = dsn, **sections: Any) -> TestClient[web.Request, web.Application]:
        app = build_app(config.replace(**sections), use_dsn)
        app[keys.USERS]._hasher = _CHEAP_HASHER
        contract = app[CONTRACT] = Contract(app[keys.DESCRIPTION])
        contracts.append(contract)
        app.on_response_prepare.append(contract.check)
        return await make_client(ProductionServer(app))

    yield begin
    assert [fault for contract in contracts for fault in contract.faults] == []


class Person:
    """Somebody who is logged in to a server, with the calls that tests make most."""

    def __init__(self, client: TestClient[web.Request, web.Application], user: User) -> None:
        self.http = client
        self.app: web.Application = client.server.app  # type: ignore[attr-defined]
        self.user = user

    async def create(self, prompt: str = "a lake", **body: Any) -> str:
        """Create a task; returns its id."""
        async with self.http.post("/api/generate", json={"prompt": prompt, **body}) as reply:
            assert reply.status == 202, await reply.text()
            return str((await reply.json())["taskId"])

    async def status(self, task_id: str, headers: dict[str, str] | None = None, **query: Any) -> Any:
        """Ask for a task's status; returns the body of a 200."""
        async with self.poll(task_id, headers=headers, **query) as reply:
            assert reply.status == 200, await reply.text()
            return await reply.json()

    def poll(self, task_id: str, headers: dict[str, str] | None = None, **query: Any) -> Any:
        """Begin a status request, to be awaited."""
        return self.http.get("/api/generate/status", params={"taskId": task_id, **query}, headers=headers)

    @property
    def held(self) -> int:
        """How many polls the server holds."""
        return len(self.app[keys.WAITERS])

    def stop_reading_places(self) -> None:
        """Keep the reads of the queue out of a count of statements: one comes every second while somebody waits."""
        self.app[keys.PLACES]._read = _read_no_queue

    def metric(self, name: str, **labels: str) -> float:
        """Return a figure of the server's metrics."""
        return self.app[keys.METRICS].registry.get_sample_value(name, labels) or 0.0


async def _read_no_queue(_most: int) -> QueueState:
    return QueueState([], [], None, 0)


Enter = Callable[..., Awaitable[Person]]


@asynccontextmanager
async def entering(sql: Sql) -> AsyncIterator[Enter]:
    """Do what `enter` promises, on whichever loop."""
    clients: list[TestClient[web.Request, web.Application]] = []

    async def log_in(client: TestClient[web.Request, web.Application], name: str = "alice") -> Person:
        email = f"{name}@example.org"
        rows = sql("SELECT user_id::text FROM longpoll.accounts WHERE email = %s", (email,))
        user_id = (rows or sql("SELECT longpoll.register_account(%s, 'no hash')::text", (email,)))[0][0]
        own = TestClient(client.server)  # a cookie jar of one's own
        clients.append(own)
        await own.start_server()
        secret = await client.server.app[keys.SESSIONS].create(User(user_id, email))  # type: ignore[attr-defined]
        own.session.cookie_jar.update_cookies({"longpoll": secret}, URL(str(client.server.make_url("/"))))
        return Person(own, User(user_id, email))

    yield log_in
    for client in clients:
        await client.session.close()
