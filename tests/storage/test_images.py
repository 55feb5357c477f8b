"""Pictures as files: whole or not at all, inside their folder, and gone when nobody needs them."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from server.errors import PicturesUnavailable
from server.storage import images as storage_images
from server.storage.images import FileImages, Swept

HOUR = 3600.0
DAY = 24 * HOUR


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
    with pytest.raises(PicturesUnavailable, match="No space left"):
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


# --- the sweep, and the bin


async def sweep(
    images: FileImages, alive: Collection[str] = (), *, bin_seconds: float = DAY, **options: Any
) -> tuple[Swept, list[str]]:
    """Sweep with these tasks alive; returns what became of the files, and the tasks that were asked for."""
    asked: list[str] = []

    async def existing(task_ids: Sequence[str]) -> set[str]:
        asked.extend(task_ids)
        return set(alive) & set(task_ids)

    swept = await images.sweep(existing, older_than_seconds=HOUR, bin_seconds=bin_seconds, **options)
    return swept, asked


def names(images: FileImages) -> dict[str, set[str]]:
    """Return the names of the pictures in their places, and of those in the bin."""
    binned = images.folder / "bin"
    return {
        "kept": {path.name for path in files(images) if binned not in path.parents},
        "bin": {path.name for path in files(images) if binned in path.parents},
    }


async def put_old(images: FileImages, *tasks: str) -> None:
    for task in tasks:
        await images.put(f"{task}.1.png", task.encode())
    for path in files(images):
        make_old(path)


async def test_the_sweep_bins_old_files_of_tasks_that_are_no_more(images: FileImages) -> None:
    await images.put("gone.reference.png", b"picture")
    await put_old(images, "alive", "gone")
    await images.put("young.1.png", b"its row may be coming")
    swept, asked = await sweep(images, {"alive"})
    assert swept == Swept(binned=2)
    assert set(asked) == {"alive", "gone"}  # nobody is asked for the young
    assert names(images) == {
        "kept": {"alive.1.png", "young.1.png"},
        "bin": {"gone.1.png", "gone.reference.png"},
    }


async def test_what_was_binned_is_deleted_after_a_while(images: FileImages) -> None:
    """The while begins when it is binned, not when the picture was made."""
    await put_old(images, "gone")
    await sweep(images, bin_seconds=HOUR)
    assert await sweep(images, bin_seconds=HOUR) == (Swept(), ["gone"])
    make_old(files(images)[0])
    assert (await sweep(images, bin_seconds=HOUR))[0] == Swept(deleted=1)
    assert files(images) == []


async def test_without_a_bin_orphans_are_deleted_at_once(images: FileImages) -> None:
    await put_old(images, "alive", "gone", "binned")
    await sweep(images, {"alive", "gone"})
    assert (await sweep(images, {"alive"}, bin_seconds=0))[0] == Swept(deleted=2)
    assert names(images) == {"kept": {"alive.1.png"}, "bin": set()}


async def test_a_picture_leaves_the_bin_when_its_task_is_back(images: FileImages) -> None:
    """However long it has lain there: nothing that has a task is ever deleted."""
    await put_old(images, "task", "other")
    await sweep(images)
    for path in files(images):
        make_old(path)
    assert (await sweep(images, {"task"}, bin_seconds=1))[0] == Swept(restored=1, deleted=1)
    assert await images.get("task.1.png") == b"task"


async def test_a_picture_that_is_wanted_comes_out_of_the_bin_at_once(images: FileImages) -> None:
    await put_old(images, "task")
    await sweep(images)
    assert await images.get("task.1.png") == b"task"
    assert names(images) == {"kept": {"task.1.png"}, "bin": set()}


async def test_deleting_a_task_empties_the_bin_of_it(images: FileImages) -> None:
    await put_old(images, "task", "tasks")
    await sweep(images)
    await images.delete_task("task")
    assert names(images) == {"kept": set(), "bin": {"tasks.1.png"}}


async def test_the_sweep_takes_what_a_killed_process_left_half_written(images: FileImages) -> None:
    """Also that of a task which is there: nobody will go on writing it."""
    await images.put("task.1.png", b"picture")
    unfinished = files(images)[0].with_name(".task.2.png.0a1b2c3d")
    unfinished.write_bytes(b"pict")
    make_old(unfinished)
    assert (await sweep(images, {"task"}))[0] == Swept(deleted=1)
    assert names(images) == {"kept": {"task.1.png"}, "bin": set()}


async def test_the_sweep_asks_in_batches_and_forgets_none(images: FileImages) -> None:
    # All in one subfolder: their names have the same letters.
    tasks = ["abcd", "abdc", "acbd", "acdb", "adbc", "adcb", "bacd"]
    await put_old(images, *tasks)
    asked: list[int] = []

    async def existing(task_ids: Sequence[str]) -> set[str]:
        asked.append(len(task_ids))
        return {"acdb"}

    swept = await images.sweep(existing, older_than_seconds=HOUR, bin_seconds=0, batch_size=3)
    assert swept == Swept(deleted=6)
    assert asked == [3, 3, 1]
    assert [path.name for path in files(images)] == ["acdb.1.png"]


async def test_a_sweep_of_nothing_asks_nobody(images: FileImages) -> None:
    assert await sweep(images) == (Swept(), [])


async def test_a_sweep_looks_only_into_folders_that_are_there(
    images: FileImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every start begins with one, and each folder costs a thread's attention: twice, for its part of the bin."""
    await put_old(images, "kept", "thrown")
    await sweep(images, {"kept"})
    looked: list[str] = []
    look = storage_images._files_before
    monkeypatch.setattr(
        storage_images, "_files_before", lambda folder, moment: looked.append(folder.name) or look(folder, moment)
    )
    await sweep(images, {"kept"})
    assert len(looked) == 4
    assert len(set(looked)) == 2


async def test_files_that_vanish_during_a_sweep_do_not_stop_it(images: FileImages) -> None:
    """Another process sweeps the same folder, or an owner deletes a task, at any moment of it."""
    await put_old(images, "abc", "acb", "bac")
    first = files(images)[0]

    async def existing(_task_ids: Sequence[str]) -> set[str]:
        first.unlink()
        return set()

    swept = await images.sweep(existing, older_than_seconds=HOUR, bin_seconds=DAY)
    assert swept == Swept(binned=2)


async def test_a_sweep_that_can_not_ask_deletes_nothing(images: FileImages) -> None:
    await put_old(images, "task")

    async def existing(_task_ids: Sequence[str]) -> set[str]:
        raise ConnectionError("the database is out of reach")

    with pytest.raises(ConnectionError):
        await images.sweep(existing, older_than_seconds=HOUR, bin_seconds=0)
    assert await images.get("task.1.png") == b"task"


async def test_a_file_that_can_not_be_moved_keeps_no_other_from_it(images: FileImages) -> None:
    """A folder has taken its place in the bin."""
    await put_old(images, "abc", "acb", "bac")
    stuck = files(images)[0]
    (images.folder / "bin" / stuck.parent.name / stuck.name / "full").mkdir(parents=True)
    with pytest.raises(PicturesUnavailable):
        await sweep(images)
    assert names(images) == {"kept": {stuck.name}, "bin": {"acb.1.png", "bac.1.png"}}
    assert images.failures == 1


async def test_a_picture_and_its_name_survive_a_power_cut(images: FileImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content first, then the name, and that of a new subfolder: each is on the disk before the row says so."""
    flushed: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.partition(".png")[0].lstrip("."))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    await images.put("task.1.png", b"picture")
    [subfolder] = [path.name for path in images.folder.iterdir()]
    assert flushed == ["images", "task.1", subfolder]
