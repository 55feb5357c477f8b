"""Two starts on one data folder: whoever is left when the owner of the embedded Postgres ends goes on."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import aiohttp
import pytest

from server.storage.embedded.cluster import Postmaster
from tests.commands.test_serve import leftovers, local_session, register
from tests.support.facts import until
from tests.support.processes import server_process

RESTARTED = re.compile("postgres.restarted")


@pytest.fixture
def folder(begun_folder: Path) -> Path:
    """A checkout in which a Postgres has been made already: who made it isn't what is tried here."""
    return begun_folder


async def make(session: aiohttp.ClientSession, url: str, prompt: str) -> bool:
    """Have a picture made; returns whether that worked."""
    body = {"prompt": prompt}
    async with session.post(f"{url}/api/generate", json=body, headers={"Prefer": "wait=30"}) as reply:
        return reply.status == 200 and (await reply.json())["data"]["status"] == "completed"


async def ready(session: aiohttp.ClientSession, url: str) -> bool:
    async with session.get(f"{url}/readyz") as reply:
        return reply.status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_when_the_owner_ends_the_other_goes_on(folder: Path, number: signal.Signals) -> None:
    with server_process(folder, generation__workers=0) as owner:
        owner_url = owner.url
        with server_process(folder, generation__step_seconds=0) as other:
            url = other.url
            async with local_session() as session:
                await register(session, owner_url)
                assert await make(session, url, "before")
                await asyncio.to_thread(owner.stop, number)
                await asyncio.to_thread(other.until_said, RESTARTED)
                await until(lambda: ready(session, url))
                assert await make(session, url, "after")
                async with session.get(f"{url}/api/generate/tasks") as reply:
                    assert [task["prompt"] for task in (await reply.json())["items"]] == ["after", "before"]
            assert await asyncio.to_thread(other.stop) == 0
    await until(lambda: not leftovers(folder))


async def test_a_postgres_that_was_killed_is_started_again(folder: Path) -> None:
    with server_process(folder, generation__step_seconds=0) as server:
        url = server.url
        async with local_session() as session:
            await register(session, url)
            postmaster = Postmaster.read(folder / ".data" / "postgres")
            assert postmaster
            os.kill(postmaster.pid, signal.SIGKILL)
            await asyncio.to_thread(server.until_said, RESTARTED)
            await until(lambda: ready(session, url))
            assert await make(session, url, "after")
        assert await asyncio.to_thread(server.stop) == 0
    await until(lambda: not leftovers(folder))
