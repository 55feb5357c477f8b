"""The whole server behind a unix socket, as a proxy on the same machine reaches it."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, UnixConnector, web

from server import config
from server.app import build_app
from server.commands import serve, supervise
from server.config import Config
from server.errors import ConfigurationError
from server.waiting.parked_polls import ParkedPoll
from server.web import keys
from tests.support.facts import until
from tests.support.postgres import Sql
from tests.support.processes import ServerProcess


@pytest.fixture
def path() -> Any:
    with tempfile.TemporaryDirectory(prefix="lp", dir="/tmp") as folder:
        yield Path(folder) / "socket"


@pytest.fixture
async def site(dsn: str, config: Config, path: Path) -> AsyncIterator[tuple[ClientSession, web.Application]]:
    """A server as production runs it, and a browser in front of it."""
    own = config.replace(server={"unix_socket": str(path)}, limits={"enabled": True, "login": "1 per minute"})
    app = build_app(own, dsn)
    thresholds = gc.get_threshold()
    try:
        async with serve.running(app, own), ClientSession(connector=UnixConnector(str(path))) as session:
            yield session, app
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


async def test_a_poll_is_parked_and_woken(site: tuple[ClientSession, web.Application], sql: Sql) -> None:
    session, app = site
    account = {"email": "alice@example.org", "password": "correct horse"}
    async with session.post("http://localhost/api/auth/register", json=account) as reply:
        assert reply.status == 201
    async with session.post("http://localhost/api/generate", json={"prompt": "x"}) as reply:
        task_id = (await reply.json())["taskId"]
    url = f"http://localhost/api/generate/status?taskId={task_id}&version=1"

    async def poll() -> Any:
        async with session.get(url) as reply:
            return json.loads(await reply.read())

    polling = asyncio.create_task(poll())
    await until(lambda: len(app[keys.WAITERS]) == 1)
    if app[keys.CONFIG].polling.park:
        assert [type(hold) for hold in app[keys.WAITERS]] == [ParkedPoll]
    sql("UPDATE public.image_generations SET status = 'processing'")
    assert (await polling)["poll"]["reason"] == "change"


async def test_the_word_of_the_proxy_is_taken(site: tuple[ClientSession, web.Application]) -> None:
    """Without it, everybody would share one limit, and no page of ours could change anything."""
    session, _ = site
    said = {
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "pictures.example.org",
        "Origin": "https://pictures.example.org",
    }
    statuses = []
    for address in ("198.51.100.1", "198.51.100.2", "198.51.100.1"):
        headers = {**said, "X-Forwarded-For": address, "Content-Type": "application/json"}
        async with session.post("http://localhost/api/auth/login", data=b"", headers=headers) as reply:
            statuses.append(reply.status)
    assert statuses == [400, 400, 429]
    async with session.get("http://localhost/healthz", headers={"X-Request-Id": "from-the-proxy"}) as reply:
        assert reply.headers["X-Request-Id"] == "from-the-proxy"


def test_it_is_said_where_the_server_listens(dsn: str, tmp_path: Path, path: Path) -> None:
    settings = {"database__dsn": dsn, "generation__workers": 0, "server__unix_socket": path}
    server = ServerProcess(tmp_path, **settings)  # type: ignore[arg-type]
    try:
        server.until_said(re.compile(rf"^Listening on unix:{path} with 0 workers", re.MULTILINE))
        assert server.stop() == 0
    finally:
        server.process.kill()
    assert not path.exists()


async def test_several_processes_cannot_share_it(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be shared"):
        config.load(None, {"LONGPOLL_SERVER__UNIX_SOCKET": str(path), "LONGPOLL_SERVER__REUSE_PORT": "yes"})
    with pytest.raises(ConfigurationError, match="several processes share a port"):
        await supervise.run(Config().replace(server={"unix_socket": str(path)}), "", "", processes=2)
