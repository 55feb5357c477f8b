"""What docs/proxy.md shows is run as it stands there."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path

import aiohttp

from tests.commands.doctor.conftest import Examine
from tests.commands.doctor.nginx import running
from tests.faults.load import add_tasks, add_token
from tests.faults.sites import poll_target, settings_of
from tests.support.people import Person
from tests.support.ports import free_port
from tests.support.postgres import Sql
from tests.support.processes import ServerProcess
from tests.support.rows import add_user

ROOT = Path(__file__).resolve().parents[3]


def shown(port: int, servers: list[int]) -> str:
    """Return the lines for nginx, with other ports in them."""
    (lines,) = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs" / "proxy.md").read_text(), re.DOTALL)
    (server,) = re.findall(r"server 127.0.0.1:8080[^;]*;", lines)
    upstream = " ".join(server.replace("8080", str(number)) for number in servers)
    return lines.replace(server, upstream).replace("listen 80;", f"listen 127.0.0.1:{port};")


async def test_the_doctor_finds_nothing_wrong_with_it(alice: Person, examined: Examine, tmp_path: Path) -> None:
    folder, port = tmp_path / "nginx", free_port()
    folder.mkdir()
    async with running(folder, port, shown(port, [alice.http.server.port or 0])), aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}"
        examination = await examined(url=url, polling={"hold_seconds": 0.3})
        assert examination.sound, examination.text
        async with session.get(f"{url}/metrics") as reply:
            assert reply.status == 403


async def test_a_rolling_restart_loses_no_poll(dsn: str, sql: Sql, tmp_path: Path) -> None:
    """Two servers, restarted one after the other while somebody asks without a pause."""
    user_id = add_user(sql)
    (task_id,) = add_tasks(sql, user_id, 1)
    headers = {"Authorization": f"Bearer {add_token(sql, user_id)}"}
    port, ports = free_port(), [free_port(), free_port()]
    statuses: Counter[int] = Counter()

    def start(number: int) -> ServerProcess:
        return ServerProcess(tmp_path, **settings_of(dsn, tmp_path, server__port=number))

    async def ask(session: aiohttp.ClientSession) -> None:
        while True:
            async with session.get(f"http://127.0.0.1:{port}{poll_target(task_id)}&wait=0", headers=headers) as reply:
                statuses[reply.status] += 1

    servers = [start(number) for number in ports]
    try:
        for server in servers:
            await asyncio.to_thread(lambda server=server: server.url)
        async with running(tmp_path, port, shown(port, ports)), aiohttp.ClientSession() as session:
            asking = [asyncio.create_task(ask(session)) for _ in range(4)]
            for number, server in enumerate(list(servers)):
                assert await asyncio.to_thread(server.stop) == 0
                servers[number] = start(ports[number])
                await asyncio.to_thread(lambda number=number: servers[number].url)
            for each in asking:
                each.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
    finally:
        for server in servers:
            server.process.kill()
            server.wait()
    assert set(statuses) == {200}, statuses
