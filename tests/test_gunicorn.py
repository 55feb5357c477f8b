"""Behind gunicorn, for those who have it: polls are held, and a client that leaves takes its waiter along."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.conftest import Sql, until
from tests.faults.load import Channel, add_tasks, add_token
from tests.faults.sites import free_port, holds, poll_target
from tests.rows import add_user

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def gunicorn(dsn: str, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """One worker of gunicorn's; gives its address."""
    address = ("127.0.0.1", free_port())
    options = ["--bind", f"{address[0]}:{address[1]}", "--worker-class", "aiohttp.GunicornWebWorker"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGPOLL_")}
    environment |= {
        "LONGPOLL_DATABASE__DSN": dsn,
        "LONGPOLL_DATABASE__DATA_DIR": str(tmp_path),
        "LONGPOLL_GENERATION__WORKERS": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "server.gunicorn:runner", *options], cwd=ROOT, env=environment
    )
    yield address
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


async def test_a_poll_is_held_woken_and_forgotten_with_its_client(gunicorn: tuple[str, int], sql: Sql) -> None:
    user_id = add_user(sql)
    headers = f"Authorization: Bearer {add_token(sql, user_id)}\r\n"
    (task_id,) = add_tasks(sql, user_id, 1)
    channel = await until(lambda: _open(gunicorn), seconds=30)
    poll = asyncio.create_task(channel.get(poll_target(task_id), headers))
    await until(lambda: holds(gunicorn, 1))
    sql("UPDATE public.image_generations SET status = 'processing'")
    status, body = await poll
    assert (status, orjson.loads(body)["poll"]["reason"]) == (200, "change")
    poll = asyncio.create_task(channel.get(poll_target(task_id, version=2), headers))
    await until(lambda: holds(gunicorn, 1))
    channel.reset()
    await until(lambda: holds(gunicorn, 0))
    await asyncio.gather(poll, return_exceptions=True)


async def _open(address: tuple[str, int]) -> Channel | None:
    try:
        return await Channel.open(address)
    except OSError:
        return None


def test_without_a_database_for_all_its_workers_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gunicorn", "server.gunicorn:runner", "--bind", f"127.0.0.1:{free_port()}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGPOLL_")}
    ended = subprocess.run(
        [*command, "--worker-class", "aiohttp.GunicornWebWorker"],
        cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    assert re.search("gunicorn's workers need one Postgres for all: set database.dsn", ended.stderr)
