"""Two server processes on one database behave as one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from tests.support.facts import until
from tests.support.processes import server_process


async def _held(session: aiohttp.ClientSession, url: str) -> bool:
    async with session.get(f"{url}/metrics") as reply:
        return "longpoll_held_connections 1.0" in await reply.text()


async def test_a_change_through_one_server_wakes_a_poll_held_by_the_other(dsn: str, tmp_path: Path) -> None:
    settings = {"database__dsn": dsn, "generation__workers": 0, "database__data_dir": tmp_path}
    with server_process(tmp_path, **settings) as first, server_process(tmp_path, **settings) as second:
        here, there = first.url, second.url
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            account = {"email": "a@example.org", "password": "correct horse"}
            async with session.post(f"{here}/api/auth/register", json=account) as reply:
                assert reply.status == 201
            async with session.post(f"{here}/api/generate", json={"prompt": "a lake"}) as reply:
                task_id = (await reply.json())["taskId"]

            async def poll() -> dict[str, dict[str, object]]:
                address = f"{there}/api/generate/status?taskId={task_id}&version=1"
                async with session.get(address) as reply:
                    assert reply.status == 200
                    body: dict[str, dict[str, object]] = await reply.json()
                    return body

            held = asyncio.create_task(poll())
            await until(lambda: _held(session, there))
            async with session.post(f"{here}/api/generate/cancel", json={"taskId": task_id}) as reply:
                assert reply.status == 200
            body = await held
            assert body["data"]["status"] == "canceled"
            assert body["poll"]["reason"] == "change"

            # A logout at one server is a logout at the other, although it remembers the session.
            async with session.get(f"{there}/api/generate/tasks") as reply:
                assert reply.status == 200
            copied = {cookie.key: cookie.value for cookie in session.cookie_jar}
            async with session.post(f"{here}/api/auth/logout") as reply:
                assert reply.status == 204
        async with aiohttp.ClientSession(cookies=copied, cookie_jar=aiohttp.CookieJar(unsafe=True)) as thief:

            async def refused() -> bool:
                async with thief.get(f"{there}/api/generate/tasks") as reply:
                    return reply.status == 401

            await until(refused)
