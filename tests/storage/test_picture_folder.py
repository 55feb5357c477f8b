"""A folder of pictures that is full, read-only, gone or broken: told, waited for, and nobody's task is lost by it."""

from __future__ import annotations

import contextlib
import io
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import FormData
from PIL import Image

from server.storage.images import reference_name, result_name
from server.web import keys
from tests.support.facts import until
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql
from tests.support.rows import read_task

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often whether the folder can be written again."""
    monkeypatch.setattr("server.storage.images._CHECK_AGAIN_SECONDS", 0.02)
    monkeypatch.setattr("server.generation.worker._UNREACHABLE_PAUSE_SECONDS", 0.02)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path) -> Path:
    """Leave no room; returns the file that takes it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\1" * 4096)
    return filler


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


def picture(size: int = 256) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((size, size), 100).save(file, "PNG")
    return file.getvalue()


async def upload(person: Person, status: int) -> Any:
    form = FormData()
    form.add_field("prompt", "a lake")
    form.add_field("reference_image", io.BytesIO(picture()), filename="a.png", content_type="image/png")
    async with person.http.post("/api/generate_advanced", data=form) as reply:
        assert reply.status == status, await reply.text()
        return {**(await reply.json()), "headers": reply.headers}


async def readiness(person: Person) -> tuple[int, bool]:
    async with person.http.get("/readyz") as reply:
        return reply.status, (await reply.json())["checks"]["pictures"]


def is_ready(person: Person) -> Callable[[], Any]:
    async def ready() -> bool:
        return await readiness(person) == (200, True)

    return ready


def breakage(name: str) -> tuple[Callable[[Path], Any], Callable[[Path], Any]]:
    """Return what breaks a file system, and what mends it."""
    return {
        "full": (fill, lambda disk: (disk / "filler").unlink()),
        "read-only": (lambda disk: remount(disk, "ro"), lambda disk: remount(disk, "rw")),
        "gone": (
            lambda disk: (disk / "images").rename(disk / "away"),
            lambda disk: (disk / "away").rename(disk / "images"),
        ),
        "a file": (
            lambda disk: ((disk / "images").rename(disk / "away"), (disk / "images").touch()),
            lambda disk: ((disk / "images").unlink(), (disk / "away").rename(disk / "images")),
        ),
        "empty": (
            lambda disk: ((disk / "images").rename(disk / "away"), (disk / "images").mkdir()),
            lambda disk: ((disk / "images").rmdir(), (disk / "away").rename(disk / "images")),
        ),
    }[name]


BREAKAGES = ["full", "read-only", "gone", "a file", "empty"]


@pytest.mark.parametrize("name", BREAKAGES)
async def test_an_upload_is_refused_until_it_can_be_stored(start: Start, enter: Enter, disk: Path, name: str) -> None:
    """503 with a time to come back, unready meanwhile; nothing half-written stays, and no folder is made anew."""
    alice = await enter(await start(database={"data_dir": str(disk)}))
    break_it, mend_it = breakage(name)
    break_it(disk)
    refused = await upload(alice, 503)
    assert (refused["code"], refused["detail"]) == ("unavailable", "Pictures can't be stored or read just now.")
    assert 0 < int(refused["headers"]["Retry-After"]) <= 5
    assert await readiness(alice) == (503, False)
    assert alice.metric("longpoll_pictures_usable") == 0
    assert alice.metric("longpoll_picture_failures") > 0
    assert alice.metric("longpoll_request_crashes_total") == 0
    assert (await alice.status(await alice.create(), wait=0))["data"]["status"] == "pending"  # the rest goes on
    mend_it(disk)
    await until(is_ready(alice))
    made = await upload(alice, 202)
    kept = {path.name for path in (disk / "images").rglob("*.png*")}
    assert kept == {reference_name(made["taskId"])}


@pytest.mark.parametrize("name", BREAKAGES)
async def test_a_task_waits_until_its_picture_can_be_stored(
    start: Start, enter: Enter, sql: Sql, disk: Path, name: str
) -> None:
    """Even with a single try: those that found no room don't count."""
    generation = {"workers": 1, "max_attempts": 1, "step_seconds": 0.0}
    alice = await enter(await start(database={"data_dir": str(disk)}, generation=generation))
    break_it, mend_it = breakage(name)
    break_it(disk)
    task_id = await alice.create()
    await until(lambda: read_task(sql, task_id, "given_back")[0])
    state = read_task(sql, task_id, "status::text, error, message")
    assert state == ("pending", None, "Pictures can't be stored just now. This one will be tried again.")
    assert await readiness(alice) == (503, False)
    mend_it(disk)
    assert (await alice.status(task_id, until="terminal"))["data"]["status"] == "completed"
    async with alice.http.get(f"/api/generate/tasks/{task_id}/image") as reply:
        assert (reply.status, reply.content_type) == (200, "image/png")


async def test_no_task_is_claimed_while_there_is_nowhere_to_put_it(
    start: Start, enter: Enter, sql: Sql, disk: Path
) -> None:
    """A worker elsewhere may have room: it must find the task waiting, and its lease taken by nobody."""
    generation = {"workers": 1, "step_seconds": 0.0}
    alice = await enter(await start(database={"data_dir": str(disk)}, generation=generation))
    fill(disk)
    first = await alice.create()
    await until(lambda: read_task(sql, first, "given_back")[0])
    checks = alice.app[keys.IMAGES].failures
    second = await alice.create()
    await until(lambda: alice.app[keys.IMAGES].failures > checks + 20)
    assert [read_task(sql, task_id, "attempt")[0] for task_id in (first, second)] == [1, 0]
    (disk / "filler").unlink()
    for task_id in (first, second):
        assert (await alice.status(task_id, until="terminal"))["data"]["status"] == "completed"


async def test_as_much_room_is_waited_for_as_was_missing(start: Start, enter: Enter, disk: Path) -> None:
    """Room for a word is no room for a picture."""
    alice = await enter(await start(database={"data_dir": str(disk)}))
    images, filler = alice.app[keys.IMAGES], fill(disk)
    with pytest.raises(Exception, match="No space left"):
        await images.put("task.1.png", b"\1" * MIB)
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - MIB // 2)
    assert await images.check() is False
    filler.unlink()
    assert await images.check() is True
    # Behind our own check the process goes on with its own, which writes a file and deletes it.
    await until(lambda: [path.name for path in (disk / "images").rglob("*") if path.is_file()] == ["database-id"])


@pytest.mark.parametrize("name", ["gone", "empty"])
async def test_a_folder_that_is_gone_loses_nobodys_picture(
    start: Start, enter: Enter, sql: Sql, tmp_path: Path, name: str
) -> None:
    """The reply is not that the picture is gone: that would be final. Nor is the folder begun anew."""
    alice = await enter(await start(database={"data_dir": str(tmp_path)}))
    task_id = await alice.create()
    await alice.app[keys.IMAGES].put(result_name(task_id, 1), picture())
    sql("UPDATE public.image_generations SET status = 'completed', result = '/picture', attempt = 1")
    break_it, mend_it = breakage(name)
    break_it(tmp_path)
    url = f"/api/generate/tasks/{task_id}/image"
    async with alice.http.get(url) as reply:
        assert (reply.status, (await reply.json())["code"]) == (503, "unavailable")
    assert await readiness(alice) == (503, False)
    mend_it(tmp_path)
    await until(is_ready(alice))
    async with alice.http.get(url) as reply:
        assert reply.status == 200


async def test_a_reference_that_can_not_be_read_fails_no_task(
    start: Start, enter: Enter, sql: Sql, tmp_path: Path
) -> None:
    generation = {"workers": 1, "max_attempts": 1, "step_seconds": 0.0}
    alice = await enter(await start(database={"data_dir": str(tmp_path)}, generation=generation))
    alice.app[keys.IMAGES].usable = False  # so that no worker takes it yet
    task_id = (await upload(alice, 202))["taskId"]
    break_it, mend_it = breakage("gone")
    break_it(tmp_path)
    alice.app[keys.IMAGES].usable = True
    await until(lambda: read_task(sql, task_id, "given_back")[0])
    mend_it(tmp_path)
    assert (await alice.status(task_id, until="terminal"))["data"]["status"] == "completed"


async def test_one_broken_file_makes_nobody_unready(start: Start, enter: Enter, sql: Sql, tmp_path: Path) -> None:
    alice = await enter(await start(database={"data_dir": str(tmp_path)}))
    task_id = await alice.create()
    images = alice.app[keys.IMAGES]
    images._path(result_name(task_id, 1)).mkdir(parents=True)
    sql("UPDATE public.image_generations SET status = 'completed', result = '/picture', attempt = 1")
    async with alice.http.get(f"/api/generate/tasks/{task_id}/image") as reply:
        assert (reply.status, (await reply.json())["code"]) == (503, "unavailable")
    assert await readiness(alice) == (200, True)
    assert images.failures == 1


async def test_a_task_can_be_deleted_without_its_folder(start: Start, enter: Enter, tmp_path: Path) -> None:
    """What is left there is found by the sweep."""
    alice = await enter(await start(database={"data_dir": str(tmp_path)}))
    task_id = await alice.create()
    break_it, _ = breakage("a file")
    break_it(tmp_path)
    async with alice.http.delete(f"/api/generate/tasks/{task_id}") as reply:
        assert reply.status == 204
    async with alice.http.delete(f"/api/generate/tasks/{task_id}") as reply:
        assert reply.status == 404
