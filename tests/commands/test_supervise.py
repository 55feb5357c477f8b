"""Several processes on one port, as an operator starts, hurts and stops them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import aiohttp
import pytest

from tests.commands.test_serve import leftovers, local_session, register
from tests.support.facts import until
from tests.support.processes import ServerProcess, generators_of, group_of, server_process

STARTED = re.compile(r'"number": ?(\d+), ?"pid": ?(\d+)|"pid": ?(\d+), ?"number": ?(\d+)|number=(\d+) +pid=(\d+)')
PORT = re.compile(r"^2 processes on port (\d+), data lies in ", re.MULTILINE)


@pytest.fixture
def folder(begun_folder: Path) -> Path:
    """A checkout in which a Postgres has been made already: who made it isn't what is tried here."""
    return begun_folder


def numbered(server: ServerProcess) -> list[tuple[int, int]]:
    """Return the number and the pid of the processes that were started, in that order."""
    found = STARTED.finditer(server.said)
    return [(int(each[1] or each[4] or each[5]), int(each[2] or each[3] or each[6])) for each in found]


def children(server: ServerProcess) -> list[int]:
    """Return the processes that were started, in that order."""
    return [pid for _, pid in numbered(server)]


async def serving(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/readyz") as reply:
            return reply.status == 200
    except aiohttp.ClientError:
        return False


async def test_two_processes_share_a_port_one_is_replaced_and_both_stop(folder: Path) -> None:
    with server_process(folder, "serve", "--processes", "2", generation__step_seconds=0) as server:
        url = f"http://127.0.0.1:{(await asyncio.to_thread(server.until_said, PORT))[1]}"
        await asyncio.to_thread(server.until_said, re.compile(r"(Listening on .*\s[\s\S]*){2}"))
        async with local_session() as session:
            await until(lambda: serving(session, url))
            await register(session, url)
            async with session.post(
                f"{url}/api/generate", json={"prompt": "a lake"}, headers={"Prefer": "wait=30"}
            ) as reply:
                assert (await reply.json())["data"]["status"] == "completed"
            first, second = children(server)
            os.kill(second, signal.SIGKILL)
            await until(lambda: len(children(server)) == 3)
            await until(lambda: serving(session, url))
        assert await asyncio.to_thread(server.stop) == 0
    for pid in children(server):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert first != second
    assert not leftovers(folder)


async def test_a_process_that_is_killed_takes_its_generator_along_and_its_successor_has_one(folder: Path) -> None:
    """Of several processes the first alone runs workers."""
    with server_process(folder, "serve", "--processes", "2") as server:
        await asyncio.to_thread(server.until_said, re.compile(r"(Listening on .*\s[\s\S]*){2}"))
        by_number = sorted(numbered(server))
        first, second = by_number[0][1], by_number[1][1]
        [generator] = await until(lambda: generators_of(first))
        assert not generators_of(second)
        os.kill(first, signal.SIGKILL)
        await until(lambda: not group_of(generator))
        _, successor = await until(lambda: numbered(server)[2:] and numbered(server)[2])
        [generator] = await until(lambda: generators_of(successor))
        assert await asyncio.to_thread(server.stop) == 0
    assert not group_of(generator)
    assert not leftovers(folder)


async def test_when_the_one_who_watches_is_killed_the_others_end_too(folder: Path) -> None:
    with server_process(folder, "serve", "--processes", "2", generation__workers=0) as server:
        await asyncio.to_thread(server.until_said, re.compile(r"(Listening on .*\s[\s\S]*){2}"))
        server.stop(signal.SIGKILL)
        await until(lambda: not leftovers(folder))


def test_a_port_that_is_taken_is_said_in_one_sentence(folder: Path) -> None:
    with server_process(folder, generation__workers=0) as other:
        port = other.url.rpartition(":")[2]
        with server_process(folder, "serve", "--processes", "2", server__port=port) as server:
            assert server.wait() == 1
    assert f"can't listen on 127.0.0.1:{port}" in server.said


@pytest.mark.parametrize("count", ["0", "two", "-1", "1000"])
def test_a_count_that_makes_no_sense_is_refused(folder: Path, count: str) -> None:
    with server_process(folder, "serve", "--processes", count) as server:
        assert server.wait() == 2
    assert "it must be a whole number from 1 to 64" in server.said
