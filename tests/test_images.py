"""Pictures as files: whole or not at all, inside their folder, and gone when nobody needs them."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from server.storage.images import FileImages

HOUR = 3600.0


@pytest.fixture
def images(tmp_path: Path) -> FileImages:
    """A store in a folder that isn't there yet."""
    return FileImages(tmp_path / "images")


def files(images: FileImages) -> list[Path]:
    return sorted(path for path in images.folder.rglob("*") if path.is_file())


def make_old(path: Path) -> None:
    os.utime(path, (time.time() - 2 * HOUR,) * 2)


async def test_what_was_put_can_be_got(images: FileImages) -> None:
    content = bytes(range(256)) * 1000
    await images.put("task.1.png", content)
    assert await images.get("task.1.png") == content


async def test_what_was_never_put_is_nothing(images: FileImages) -> None:
    assert await images.get("task.1.png") is None


async def test_a_second_put_replaces_the_first(images: FileImages) -> None:
    await images.put("task.reference.png", b"first, and longer")
    await images.put("task.reference.png", b"second")
    assert await images.get("task.reference.png") == b"second"
    assert len(files(images)) == 1


async def test_a_store_is_shared_by_all_who_name_its_folder(tmp_path: Path) -> None:
    await FileImages.below(str(tmp_path)).put("task.1.png", b"picture")
    assert await FileImages.below(str(tmp_path)).get("task.1.png") == b"picture"


async def test_other_users_of_the_machine_can_not_read_them(images: FileImages) -> None:
    await images.put("task.1.png", b"picture")
    [path] = files(images)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_deleting_a_task_takes_all_of_its_pictures_and_no_others(images: FileImages) -> None:
    """Not even those of a task whose id begins alike, or lies in the same subfolder."""
    for name in ("ab.1.png", "ab.2.png", "ab.reference.png", "abc.1.png", "ba.1.png"):
        await images.put(name, b"picture")
    await images.delete_task("ab")
    assert {path.name for path in files(images)} == {"abc.1.png", "ba.1.png"}
    await images.delete_task("ab")


@pytest.mark.parametrize(
    "name",
    [
        "../task.1.png",
        "..",
        "../../etc/passwd",
        "/etc/passwd.png",
        "a/b.1.png",
        "a\\b.1.png",
        ".hidden.png",
        "task.1.png/../x.1.png",
        "task.1.png\n",
        "task.1.png\0",
        "task",
        "",
        "task..png",
        "task.1.2.png",
        "*.1.png",
        "ä.1.png",
        f"{'a' * 65}.1.png",
    ],
)
async def test_a_name_that_is_no_pictures_is_refused(images: FileImages, tmp_path: Path, name: str) -> None:
    (tmp_path / "task.1.png").write_bytes(b"outside")
    with pytest.raises(ValueError, match="not the name of a picture"):
        await images.get(name)
    with pytest.raises(ValueError, match="not the name of a picture"):
        await images.put(name, b"picture")
    assert files(FileImages(tmp_path)) == [tmp_path / "task.1.png"]


@pytest.mark.parametrize("task_id", ["../../outside", "*", "[ab]", "", "..", "/outside", "ab.1", "a\n", "**/ab"])
async def test_an_id_that_is_no_tasks_deletes_nothing(images: FileImages, tmp_path: Path, task_id: str) -> None:
    (tmp_path / "outside.1.png").write_bytes(b"outside")
    await images.put("ab.1.png", b"picture")
    with pytest.raises(ValueError, match="not the id of a task"):
        await images.delete_task(task_id)
    assert await images.get("ab.1.png") == b"picture"
    assert (tmp_path / "outside.1.png").exists()


async def test_a_put_that_fails_leaves_nothing(images: FileImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half a picture nor a file beside it; and what was there before is there still."""
    await images.put("task.1.png", b"before")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        await images.put("task.1.png", b"after")
    assert [path.name for path in files(images)] == ["task.1.png"]
    assert await images.get("task.1.png") == b"before"


async def test_a_picture_is_not_there_before_all_of_it_is(images: FileImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held just before its end, a put has shown nothing yet; its caller's leaving doesn't cut it short."""
    written, go_on = threading.Event(), threading.Event()

    def held(_descriptor: int) -> None:
        written.set()
        go_on.wait(15)

    monkeypatch.setattr(os, "fsync", held)
    putting = asyncio.create_task(images.put("task.1.png", b"picture"))
    assert await asyncio.to_thread(written.wait, 15)
    assert await images.get("task.1.png") is None
    go_on.set()
    await putting
    assert await images.get("task.1.png") == b"picture"
    assert len(files(images)) == 1


async def test_the_sweep_takes_old_files_of_tasks_that_are_no_more(images: FileImages) -> None:
    for name in ("alive.1.png", "gone.1.png", "gone.reference.png"):
        await images.put(name, b"picture")
    for path in files(images):
        make_old(path)
    await images.put("young.1.png", b"its row may be coming")

    async def existing(task_ids: Sequence[str]) -> set[str]:
        assert set(task_ids) == {"alive", "gone"}  # nobody is asked for the young
        return {"alive"}

    assert await images.sweep(existing, older_than_seconds=HOUR) == 2
    assert {path.name for path in files(images)} == {"alive.1.png", "young.1.png"}


async def test_the_sweep_takes_what_a_killed_process_left_half_written(images: FileImages) -> None:
    await images.put("gone.1.png", b"picture")
    unfinished = files(images)[0].rename(files(images)[0].with_name(".gone.1.png.0a1b2c3d"))
    make_old(unfinished)
    assert await images.get("gone.1.png") is None

    async def existing(task_ids: Sequence[str]) -> set[str]:
        assert list(task_ids) == ["gone"]
        return set()

    assert await images.sweep(existing, older_than_seconds=HOUR) == 1
    assert files(images) == []


async def test_the_sweep_asks_in_batches_and_forgets_none(images: FileImages) -> None:
    for number in range(7):
        await images.put(f"t{number}.1.png", b"picture")
    for path in files(images):
        make_old(path)
    asked: list[int] = []

    async def existing(task_ids: Sequence[str]) -> set[str]:
        asked.append(len(task_ids))
        return {"t3"}

    assert await images.sweep(existing, older_than_seconds=HOUR, batch_size=3) == 6
    assert asked == [3, 3, 1]
    assert [path.name for path in files(images)] == ["t3.1.png"]


async def test_a_sweep_of_nothing_asks_nobody(images: FileImages) -> None:
    async def existing(_task_ids: Sequence[str]) -> set[str]:
        raise AssertionError("nothing to ask for")

    assert await images.sweep(existing, older_than_seconds=HOUR) == 0


async def test_files_that_vanish_during_a_sweep_do_not_stop_it(
    images: FileImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process sweeps the same folder, or an owner deletes a task, at any moment of it."""
    for name in ("first.1.png", "second.1.png", "third.1.png"):
        await images.put(name, b"picture")
    first, second, third = files(images)
    for path in (first, second, third):
        make_old(path)
    listed = Path.glob

    def listed_before_it_vanished(folder: Path, pattern: str) -> list[Path]:
        found = list(listed(folder, pattern))
        first.unlink()
        return found

    async def existing(_task_ids: Sequence[str]) -> set[str]:
        second.unlink()
        return set()

    monkeypatch.setattr(Path, "glob", listed_before_it_vanished)
    await images.sweep(existing, older_than_seconds=HOUR)
    monkeypatch.undo()
    assert files(images) == []


async def test_a_sweep_that_can_not_ask_deletes_nothing(images: FileImages) -> None:
    await images.put("task.1.png", b"picture")
    make_old(files(images)[0])

    async def existing(_task_ids: Sequence[str]) -> set[str]:
        raise ConnectionError("the database is out of reach")

    with pytest.raises(ConnectionError):
        await images.sweep(existing, older_than_seconds=HOUR)
    assert await images.get("task.1.png") == b"picture"
