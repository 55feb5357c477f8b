"""A server whose generator blocks, dies, forks and is killed: who holds polls doesn't notice, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import orjson
import pytest

from tests.faults.load import Channel, add_token
from tests.faults.sites import Address, holds, listening, poll_target
from tests.support.facts import until
from tests.support.postgres import Sql
from tests.support.processes import ServerProcess, group_of, processes_of, server_process
from tests.support.rows import add_task, add_user, read_task

STARTED = re.compile(r"generator\.started.*?pid\W+(\d+)|pid\W+(\d+)\W.*generator\.started")


class House:
    """A server with one worker whose generator misbehaves, and somebody who polls."""

    def __init__(self, server: ServerProcess, address: Address, sql: Sql) -> None:
        self.server = server
        self.address = address
        self.sql = sql
        self.user_id = add_user(sql)
        self.headers = f"Authorization: Bearer {add_token(sql, self.user_id)}\r\n"

    def order(self, prompt: str) -> str:
        return add_task(self.sql, self.user_id, prompt=prompt)

    def read(self, task_id: str, columns: str) -> tuple[object, ...]:
        return read_task(self.sql, task_id, columns)

    async def until_at_work(self, task_id: str) -> int:
        """Wait until the generator has begun with what the prompt says; returns its process."""
        await until(lambda: self.read(task_id, "stage") == ("painting",))
        return self.generator()

    async def until_status(self, task_id: str, status: str) -> None:
        await until(lambda: self.read(task_id, "status::text") == (status,))

    def generator(self) -> int:
        """The process that was started last."""
        found = list(STARTED.finditer(self.server.said))[-1]
        return int(found[1] or found[2])

    async def get(self, target: str) -> tuple[int, bytes]:
        channel = await Channel.open(self.address)
        try:
            return await channel.get(target, self.headers)
        finally:
            channel.close()

    @contextlib.asynccontextmanager
    async def bystander(self) -> AsyncIterator[None]:
        """Hold a poll on another task meanwhile; it is woken behind the block, and answered by that change."""
        other = add_task(self.sql, self.user_id, run_after="2100-01-01")
        poll = asyncio.create_task(self.get(poll_target(other)))
        await until(lambda: holds(self.address, 1))
        yield
        self.sql("UPDATE public.image_generations SET status = 'canceled' WHERE task_id = %s", (other,))
        status, body = await poll
        assert (status, orjson.loads(body)["poll"]["reason"]) == (200, "change")


@pytest.fixture
def settings(dsn: str, tmp_path: Path) -> dict[str, object]:
    return {
        "database__dsn": dsn,
        "database__data_dir": tmp_path,
        "generation__generator": "tests.support.generators:make",
        "generation__lease_seconds": 0.6,
        "generation__retry_seconds": 0,
        "server__drain_seconds": 0,
        "limits__enabled": False,
        "logging__format": "json",
    }


@pytest.fixture
def server(tmp_path: Path, settings: dict[str, object]) -> Iterator[ServerProcess]:
    with server_process(tmp_path, **settings) as server:
        yield server


@pytest.fixture
async def house(server: ServerProcess, sql: Sql) -> House:
    return House(server, await listening(server), sql)


def _has_numpy(number: int) -> bool:
    return "numpy" in Path(f"/proc/{number}/maps").read_text()


async def test_who_serves_paints_nothing(dsn: str, sql: Sql, tmp_path: Path) -> None:
    """It has no NumPy even, which takes 20 MB."""
    with server_process(tmp_path, database__dsn=dsn, generation__step_seconds=0) as server:
        house = House(server, await listening(server), sql)
        await house.until_status(house.order("a lake"), "completed")
        numbers = house.generator(), server.process.pid
        assert [_has_numpy(number) for number in numbers] == [True, False]


@pytest.mark.parametrize("prompt", ["block:600", "hold_the_lock"])
async def test_a_generator_that_blocks_keeps_nobody_waiting(house: House, prompt: str) -> None:
    """Not even the lock of its interpreter is anybody else's."""
    task_id = house.order(prompt)
    async with house.bystander():
        process = await house.until_at_work(task_id)
        lease = house.read(task_id, "lease_expires_at")
        await until(lambda: house.read(task_id, "lease_expires_at") > lease)  # type: ignore[operator]
        assert (await house.get("/healthz"))[0] == 200
        assert house.read(task_id, "status::text, attempt") == ("processing", 1)
    house.sql("UPDATE public.image_generations SET cancel_requested = true WHERE task_id = %s", (task_id,))
    await house.until_status(task_id, "canceled")  # though it never comes to another step
    await until(lambda: not group_of(process))
    await house.until_status(house.order("a lake"), "completed")


async def test_a_generator_that_crashes_costs_its_task_an_attempt(house: House, tmp_path: Path) -> None:
    async with house.bystander():
        first, second = house.order(f"exit_once:{tmp_path / 'crashed'}"), house.order("a lake")
        await house.until_status(first, "completed")
        await house.until_status(second, "completed")
    assert house.read(first, "attempt") == (2,)
    assert house.read(second, "attempt") == (1,)
    _, metrics = await house.get("/metrics")
    assert b'longpoll_generator_deaths_total{cause="exited"} 1.0' in metrics
    assert b"longpoll_dead_background_tasks 0.0" in metrics


async def test_a_generator_that_is_killed_costs_its_task_an_attempt(house: House) -> None:
    task_id = house.order("rest:3")
    async with house.bystander():
        process = await house.until_at_work(task_id)
        os.kill(process, signal.SIGKILL)
        await until(lambda: house.read(task_id, "attempt") == (2,))
        assert await house.until_at_work(task_id) != process
        await house.until_status(task_id, "completed")


async def test_a_stop_gives_the_task_back_and_no_attempt_is_used(house: House, tmp_path: Path) -> None:
    """Also if it is sent to the generator itself, as systemd does."""
    task_id = house.order("fork_and_block:600")
    process = await house.until_at_work(task_id)
    os.kill(process, signal.SIGTERM)
    assert await asyncio.to_thread(house.server.stop) == 0
    assert house.read(task_id, "status::text, attempt, given_back") == ("pending", 1, 1)
    assert "generator.died" not in house.server.said
    await until(lambda: not processes_of(tmp_path))
    assert not group_of(process)


@pytest.mark.parametrize("prompt", ["rest:600", "hold_the_lock", "fork_and_block:600"])
async def test_a_server_that_is_killed_leaves_no_generator(house: House, tmp_path: Path, prompt: str) -> None:
    process = await house.until_at_work(house.order(prompt))
    await asyncio.to_thread(house.server.stop, signal.SIGKILL)
    await until(lambda: not group_of(process))
    await until(lambda: not processes_of(tmp_path))


async def test_a_worker_apart_has_generators_of_its_own(
    settings: dict[str, object], server: ServerProcess, sql: Sql, tmp_path: Path
) -> None:
    """The server's folder is known by then, and its own worker is busy."""
    house = House(server, await listening(server), sql)
    await house.until_at_work(house.order("block:600"))
    with server_process(tmp_path, "worker", **settings) as worker:
        await house.until_status(house.order("a lake"), "completed")
        assert STARTED.search(worker.said)
        assert await asyncio.to_thread(worker.stop) == 0
