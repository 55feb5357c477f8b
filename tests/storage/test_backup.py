"""Backing up and restoring, by the very commands of docs/backup.md."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from server.storage.embedded.cluster import EmbeddedPostgres
from tests.commands.test_serve import local_session
from tests.support.facts import until
from tests.support.postgres import database_of, execute
from tests.support.processes import ServerProcess, server_process

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(
    r"^```sh\n(.*?)^```", (ROOT / "docs" / "backup.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
)
BACK_UP, RESTORE, BACK_UP_EMBEDDED, RESTORE_EMBEDDED = BLOCKS
ACCOUNT = {"email": "a@example.org", "password": "a red bicycle in the rain"}


@dataclass
class Site:
    """Somebody's browser at a server."""

    session: aiohttp.ClientSession
    url: str

    async def make(self, prompt: str) -> str:
        """Have a picture made; returns the task's id."""
        order, wait = {"prompt": prompt, "size": "512x512"}, {"Prefer": "wait=30"}
        async with self.session.post(f"{self.url}/api/generate", json=order, headers=wait) as reply:
            body = await reply.json()
            assert body["data"]["status"] == "completed", body
            return str(body["taskId"])

    async def picture(self, task_id: str) -> bytes | None:
        """Return the picture of a task, or None if there is no such task."""
        async with self.session.get(f"{self.url}/api/generate/tasks/{task_id}/image") as reply:
            assert reply.status in {200, 404}
            return await reply.read() if reply.status == 200 else None


@asynccontextmanager
async def site(server: ServerProcess, how: str = "login") -> AsyncIterator[Site]:
    url = await asyncio.to_thread(lambda: server.url)
    async with local_session() as session:
        async with session.post(f"{url}/api/auth/{how}", json=ACCOUNT) as reply:
            assert reply.status in {200, 201, 204}, await reply.text()
        yield Site(session, url)


def run(block: str, binaries: Path | None = None, **variables: object) -> None:
    """Do what the page says."""
    path = [str(binaries or ""), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {
        "PATH": ":".join(path),
        "PYTHONPATH": str(ROOT),
        **{name: str(value) for name, value in variables.items()},
    }
    done = subprocess.run(
        ["bash", "-euc", block], env=environment, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def new_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A new, empty database."""
    name = f"restored_{os.getpid()}_{time.monotonic_ns()}"
    execute(postgres.dsn, f"CREATE DATABASE {name} TEMPLATE template0")
    yield database_of(postgres.dsn, name)
    execute(postgres.dsn, f"DROP DATABASE {name} WITH (FORCE)")


def server_on(dsn: str, data_dir: Path) -> object:
    return server_process(
        data_dir.parent,
        database__dsn=dsn,
        database__data_dir=data_dir,
        generation__step_seconds=0,
        generation__workers=1,
    )


@dataclass
class Backup:
    """A backup, the picture that is in it, the one that was made afterwards, and where they were made."""

    folder: Path
    data_dir: Path
    old: tuple[str, bytes]
    new: tuple[str, bytes]


@pytest.fixture
async def backup(postgres: EmbeddedPostgres, dsn: str, tmp_path: Path) -> Backup:
    """One that was made while the server ran, and work went on."""
    data_dir, target = tmp_path / "data", tmp_path / "backup"
    target.mkdir()
    with server_on(dsn, data_dir) as server:
        async with site(server, "register") as before:
            old, asked = await before.make("before"), asyncio.create_task(before.make("meanwhile"))
            binaries = postgres.location.binaries
            await asyncio.to_thread(lambda: run(BACK_UP, binaries, DSN=dsn, DATA_DIR=data_dir, BACKUP=target))
            new = await asked
            new = await before.make("after")
            pictures = [(task_id, await before.picture(task_id) or b"") for task_id in (old, new)]
        assert server.stop() == 0
    return Backup(target, data_dir, *pictures)


async def test_what_the_page_says_brings_everything_back(
    postgres: EmbeddedPostgres, backup: Backup, new_dsn: str, tmp_path: Path
) -> None:
    """In another database, with another folder, for the same people; and work goes on there."""
    new = tmp_path / "new data"
    run(RESTORE, postgres.location.binaries, NEW_DSN=new_dsn, NEW_DATA_DIR=new, BACKUP=backup.folder)
    with server_on(new_dsn, new) as server:
        async with site(server) as restored:
            assert await restored.picture(backup.old[0]) == backup.old[1]
            assert await restored.picture(backup.new[0]) is None
            assert await restored.picture(await restored.make("and on"))
            # Every picture that the dump speaks of is in the copy, also if it was made while both were made.
            for (task_id,) in execute(
                new_dsn, "SELECT task_id FROM public.image_generations WHERE status = 'completed'"
            ):
                assert await restored.picture(task_id)
        assert server.stop() == 0
    assert "another database" not in server.said


async def test_an_older_database_with_the_newer_folder_loses_no_picture(
    postgres: EmbeddedPostgres, backup: Backup, dsn: str, new_dsn: str, tmp_path: Path
) -> None:
    """What the older one doesn't know goes to the bin, and comes back with the newer one."""
    for path in (backup.data_dir / "images").glob("??/*"):
        os.utime(path, (time.time() - 7200,) * 2)
    run(RESTORE, postgres.location.binaries, NEW_DSN=new_dsn, NEW_DATA_DIR=tmp_path / "unused", BACKUP=backup.folder)
    swept: Callable[[], bool] = lambda: '"event":"files.cleaned"' in server.said.replace(" ", "")  # noqa: E731
    with server_on(new_dsn, backup.data_dir) as server:
        async with site(server) as older:
            assert await older.picture(backup.old[0]) == backup.old[1]
            await until(swept)
        assert server.stop() == 0
    binned = {path.name.partition(".")[0] for path in (backup.data_dir / "images" / "bin").glob("??/*")}
    assert backup.new[0] in binned
    assert backup.old[0] not in binned
    with server_on(dsn, backup.data_dir) as server:
        async with site(server) as newer:
            for task_id, content in (backup.old, backup.new):
                assert await newer.picture(task_id) == content
        assert server.stop() == 0


async def test_a_copy_of_the_data_folder_is_a_backup_of_the_embedded_postgres(
    begun_folder: Path, tmp_path: Path
) -> None:
    folder, data_dir = begun_folder, begun_folder / ".data"
    with server_process(folder, generation__step_seconds=0) as server:
        async with site(server, "register") as before:
            task_id = await before.make("a lake")
            content = await before.picture(task_id)
        assert server.stop() == 0
    assert f"Data lies in {data_dir}" in server.said
    run(BACK_UP_EMBEDDED, DATA_DIR=data_dir, BACKUP=tmp_path)
    shutil.rmtree(data_dir)
    run(RESTORE_EMBEDDED, DATA_DIR=data_dir, BACKUP=tmp_path)
    with server_process(folder, generation__step_seconds=0) as server:
        async with site(server) as restored:
            assert await restored.picture(task_id) == content
        assert server.stop() == 0
