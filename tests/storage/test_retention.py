"""What is deleted, when, and what never is: retention, sessions, and pictures that have no task."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.config import GenerationSettings
from server.errors import StorageError
from server.storage.database import Database
from server.storage.images import FileImages
from server.storage.retention import Retention, join_folder
from server.telemetry.metrics import Metrics
from tests.support import rows
from tests.support.postgres import Sql, execute
from tests.support.rows import add_task, add_user

shared_dsn, dsn, own_dsn = rows.shared_dsn, rows.dsn, rows.own_dsn
DAY = dt.timedelta(days=1)


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    """As the server opens it."""
    opened = Database(dsn, pool_size=2, timeout=5)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def images(database: Database, tmp_path: Path) -> FileImages:
    """The folder of that database's pictures."""
    joined = FileImages(tmp_path / "images")
    await join_folder(database, joined)
    return joined


@pytest.fixture
def alice(sql: Sql) -> str:
    """The id of somebody who is registered."""
    return add_user(sql)


def cleaning(database: Database, images: FileImages, **settings: float) -> Retention:
    return Retention(database, images, GenerationSettings(**settings), Metrics())  # type: ignore[arg-type]


async def add_picture(images: FileImages, task_id: str, *, age: dt.timedelta = 2 * DAY) -> None:
    await images.put(f"{task_id}.1.png", task_id.encode())
    moment = time.time() - age.total_seconds()
    for path in images.folder.glob(f"??/{task_id}.*"):
        os.utime(path, (moment, moment))


def kept(images: FileImages) -> set[str]:
    return {path.name.partition(".")[0] for path in images.folder.glob("??/*")}


def binned(images: FileImages) -> set[str]:
    return {path.name.partition(".")[0] for path in images.folder.glob("bin/??/*")}


def task_ids(sql: Sql) -> set[str]:
    return {task_id for (task_id,) in sql("SELECT task_id FROM public.image_generations")}


def ago(days: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) - days * DAY


# --- retention


@pytest.fixture
async def aged(sql: Sql, alice: str, images: FileImages) -> None:
    """Tasks that ended ten, eight and one days ago, one that waited for a year before, and two that go on."""
    for days in (10, 8, 1):
        for status in ("completed", "failed", "canceled"):
            columns = {"result": "/a.png"} if status == "completed" else {}
            add_task(sql, alice, f"{status}-{days}", status=status, finished_at=ago(days), **columns)
            await add_picture(images, f"{status}-{days}", age=days * DAY)
    add_task(sql, alice, "waited", status="completed", result="/a.png", created_at=ago(365), finished_at=ago(0.01))
    add_task(sql, alice, "pending", created_at=ago(365))
    add_task(sql, alice, "processing", status="processing", created_at=ago(365), started_at=ago(365))
    await add_picture(images, "waited", age=DAY)


async def test_by_default_everything_is_kept(sql: Sql, aged: None, database: Database, images: FileImages) -> None:
    before = task_ids(sql)
    await cleaning(database, images).clean()
    assert task_ids(sql) == before
    assert len(kept(images)) == 10
    assert binned(images) == set()


async def test_what_ended_longer_ago_than_is_kept_is_deleted_with_its_pictures(
    sql: Sql, aged: None, database: Database, images: FileImages
) -> None:
    """Counted from the end: what waited for a year and was made just now stays."""
    assert await cleaning(database, images, keep_days=9).delete_ended() == 3
    left = {f"{status}-{days}" for days in (8, 1) for status in ("completed", "failed", "canceled")}
    assert task_ids(sql) == {*left, "waited", "pending", "processing"}
    assert kept(images) == {*left, "waited"}
    assert binned(images) == set()


async def test_any_number_of_old_tasks_is_deleted(
    sql: Sql, alice: str, database: Database, images: FileImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.storage.retention._AT_ONCE", 3)
    for number in range(10):
        add_task(sql, alice, f"t{number}", status="canceled", finished_at=ago(2))
    assert await cleaning(database, images, keep_days=1).delete_ended() == 10
    assert task_ids(sql) == set()


async def test_sessions_go_when_they_are_over(sql: Sql, alice: str, database: Database, images: FileImages) -> None:
    """Their end is what the row says at that moment, whoever has moved it."""
    for secret, moment in (("over", "now() - interval '1 second'"), ("moved", "now() + interval '1 hour'")):
        sql(
            "INSERT INTO longpoll.sessions (secret_hash, user_id, expires_at)"
            f" VALUES (sha256('{secret}'), %s, {moment})",
            (alice,),
        )
    await cleaning(database, images).clean()
    assert sql("SELECT secret_hash = sha256('moved') FROM longpoll.sessions") == [(True,)]
    sql("UPDATE longpoll.sessions SET expires_at = now() - interval '1 second'")
    await cleaning(database, images).clean()
    assert sql("SELECT secret_hash FROM longpoll.sessions") == []


# --- pictures without a task


async def test_an_older_backup_loses_no_picture(sql: Sql, alice: str, database: Database, images: FileImages) -> None:
    """The backup doesn't know the latest picture; a newer one, restored after it, does."""
    for task_id in ("old", "latest"):
        add_task(sql, alice, task_id, status="completed", result="/a.png")
        await add_picture(images, task_id)
    sql("DELETE FROM public.image_generations WHERE task_id = 'latest'")
    await cleaning(database, images).clean()
    assert (kept(images), binned(images)) == ({"old"}, {"latest"})
    add_task(sql, alice, "latest", status="completed", result="/a.png")
    await cleaning(database, images).clean()
    assert (kept(images), binned(images)) == ({"old", "latest"}, set())


async def test_the_bin_is_emptied_after_the_days_that_are_set(database: Database, images: FileImages) -> None:
    await add_picture(images, "gone")
    await cleaning(database, images).clean()
    [path] = images.folder.glob("bin/??/*")
    for age, left in ((6.9 * DAY, {"gone"}), (7.1 * DAY, set())):
        os.utime(path, (time.time() - age.total_seconds(),) * 2)
        await cleaning(database, images).clean()
        assert binned(images) == left


async def test_without_a_bin_orphans_go_at_once(database: Database, images: FileImages) -> None:
    await add_picture(images, "gone")
    await cleaning(database, images, bin_days=0).clean()
    assert (kept(images), binned(images)) == (set(), set())


@pytest.mark.parametrize("why", ["another database answers", "another folder is mounted"])
async def test_nothing_is_swept_where_the_ids_differ(own_dsn: str, tmp_path: Path, why: str) -> None:
    """However that came about while the server ran: nothing is moved or deleted, though the database knows no task."""
    database, images = Database(own_dsn, pool_size=1, timeout=5), FileImages(tmp_path / "images")
    await database.open()
    await join_folder(database, images)
    await add_picture(images, "task")
    if why == "another database answers":
        execute(own_dsn, "UPDATE longpoll.identity SET id = gen_random_uuid()")
    else:
        (images.folder / "database-id").write_text("00000000-0000-0000-0000-000000000000\n")
    cleaner = cleaning(database, images, bin_days=0)
    with pytest.raises(StorageError):
        await cleaner.sweep()
    await cleaner.clean()  # says so, and goes on
    assert cleaner._metrics.value("longpoll_cleaning_failures_total") == 1
    assert kept(images) == {"task"}
    await database.close()


async def test_one_fault_stops_no_other_part_of_the_clean_up(
    sql: Sql, alice: str, database: Database, images: FileImages, tmp_path: Path
) -> None:
    add_task(sql, alice, "old", status="canceled", finished_at=ago(2))
    images.folder.rename(tmp_path / "away")
    images.folder.touch()
    cleaner = cleaning(database, images, keep_days=1)
    await cleaner.clean()
    assert task_ids(sql) == set()
    assert cleaner._metrics.value("longpoll_cleaning_failures_total") == 1
