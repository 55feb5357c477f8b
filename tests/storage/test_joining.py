"""The folder of the pictures and the database know each other: what doesn't belong together isn't run together."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import psycopg2.extensions
import pytest
from structlog.testing import capture_logs

from server.config import GenerationSettings
from server.errors import ConfigurationError, StorageError
from server.storage.database import Database
from server.storage.embedded.binaries import spawn
from server.storage.embedded.cluster import EmbeddedPostgres, end
from server.storage.images import FileImages
from server.storage.retention import Retention, join_folder, join_servers_folder
from server.telemetry import logs
from server.telemetry.metrics import Metrics
from tests.faults.postgres import MortalPostgres, mortal_postgres
from tests.storage.test_retention import add_picture, binned, kept
from tests.support.people import Enter, Start
from tests.support.postgres import Sql, database_of, execute
from tests.support.processes import server_process
from tests.support.rows import add_task, add_user

OTHER = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait no longer than a moment for a server that won't come."""
    monkeypatch.setattr("server.storage.retention._PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr("server.storage.retention._LOOK_AGAIN_SECONDS", 0.01)


@pytest.fixture
def images(tmp_path: Path) -> FileImages:
    """A folder that isn't there yet."""
    return FileImages.below(str(tmp_path))


def id_of(sql: Sql) -> str:
    return str(sql("SELECT id FROM longpoll.identity")[0][0])


def id_in(images: FileImages) -> str:
    return (images.folder / "database-id").read_text().strip()


async def join(dsn: str, images: FileImages, *, as_worker: bool = False) -> None:
    database = Database(dsn, pool_size=1, timeout=5)
    await database.open()
    try:
        await (join_servers_folder if as_worker else join_folder)(database, images)
    finally:
        await database.close()


async def test_a_new_folder_takes_the_databases_id(start: Start, enter: Enter, sql: Sql, images: FileImages) -> None:
    await enter(await start())
    assert id_in(images) == id_of(sql)
    await enter(await start())  # and a second start finds it
    assert id_in(images) == id_of(sql)


async def test_a_folder_from_before_ids_were_kept_is_taken_over(dsn: str, sql: Sql, images: FileImages) -> None:
    await add_picture(images, "task")
    await join(dsn, images)
    assert id_in(images) == id_of(sql)
    assert kept(images) == {"task"}


@pytest.mark.parametrize("who", ["server", "worker"])
@pytest.mark.parametrize("found", [OTHER, "", "\0" * 5000])
async def test_another_databases_folder_is_refused_and_left_as_it_is(
    dsn: str, sql: Sql, images: FileImages, found: str, who: str
) -> None:
    await add_picture(images, "task")
    (images.folder / "database-id").write_text(found)
    with pytest.raises(ConfigurationError, match=rf"belong to another database: .* this one's is {id_of(sql)}\."):
        await join(dsn, images, as_worker=who == "worker")
    assert (images.folder / "database-id").read_text() == found
    assert kept(images) == {"task"}


def test_the_start_refuses_another_databases_folder(dsn: str, sql: Sql, tmp_path: Path, images: FileImages) -> None:
    """In one sentence, with a way out that works."""
    images.folder.mkdir()
    (images.folder / "database-id").write_text(OTHER)
    settings = {"database__dsn": dsn, "database__data_dir": tmp_path, "generation__workers": 0}
    with server_process(tmp_path, **settings) as server:
        assert server.wait() == 1
    assert re.search(rf"^error: the pictures in {images.folder} belong to another database", server.said, re.MULTILINE)
    assert "Traceback" not in server.said
    (images.folder / "database-id").unlink()
    with server_process(tmp_path, **settings) as server:
        assert server.url
        assert server.stop() == 0
    assert id_in(images) == id_of(sql)


def test_a_worker_refuses_a_folder_that_is_not_the_servers(dsn: str, tmp_path: Path) -> None:
    """The one on its own disk, which it would fill with pictures that nobody can see."""
    here, there = {"database__data_dir": tmp_path / "here"}, {"database__data_dir": tmp_path / "there"}
    with server_process(tmp_path, database__dsn=dsn, generation__workers=0, **here) as server:
        assert server.url
        with server_process(tmp_path, "worker", database__dsn=dsn, **there) as worker:
            assert worker.wait() == 1
        assert f"error: {tmp_path}/there/images isn't where the server keeps the pictures" in worker.said
        assert not (tmp_path / "there" / "images").exists()
        with server_process(tmp_path, "worker", database__dsn=dsn, **here) as worker:
            worker.until_said(re.compile(r"worker\(s\) running"))


async def test_a_worker_makes_no_folder_of_its_own(dsn: str, images: FileImages) -> None:
    with pytest.raises(ConfigurationError, match="isn't where the server keeps the pictures"):
        await join(dsn, images, as_worker=True)
    assert not images.folder.exists()


async def test_a_worker_waits_for_the_first_server(
    dsn: str, sql: Sql, images: FileImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may be started together, on a folder that is still empty."""
    monkeypatch.setattr("server.storage.retention._PATIENCE_SECONDS", 15.0)
    look = images.join

    async def look_until_the_server_comes(database_id: str, *, make: bool) -> str | None:
        found = await look(database_id, make=make)
        await join(dsn, FileImages(images.folder))
        return found

    monkeypatch.setattr(images, "join", look_until_the_server_comes)
    await join(dsn, images, as_worker=True)
    assert id_in(images) == id_of(sql)


async def test_a_folder_that_can_not_be_used_is_told_at_the_start(dsn: str, images: FileImages) -> None:
    images.folder.touch()
    with pytest.raises(
        ConfigurationError, match=r"the folder of the pictures, .*/images, can't be used: .*File exists"
    ):
        await join(dsn, images)


async def test_an_empty_folder_for_a_database_with_pictures_is_told(dsn: str, sql: Sql, images: FileImages) -> None:
    """Somebody has forgotten to mount the right one."""
    add_task(sql, add_user(sql), status="completed", result="/picture")
    with capture_logs() as logged:
        await join(dsn, images)
        await join(dsn, images)
    assert [line["event"] for line in logged] == [logs.PICTURES_MISSING]


async def test_a_copy_of_a_database_keeps_its_folder(postgres: EmbeddedPostgres, dsn: str, images: FileImages) -> None:
    """As a restored backup does, whatever it is called."""
    await join(dsn, images)
    name, copy = psycopg2.extensions.parse_dsn(dsn)["dbname"], f"copy_{uuid.uuid4().hex}"
    execute(postgres.dsn, f"CREATE DATABASE {copy} TEMPLATE {name}")
    try:
        await join(database_of(dsn, copy), images)
    finally:
        execute(postgres.dsn, f"DROP DATABASE {copy} WITH (FORCE)")


async def test_a_database_that_has_lost_its_id_is_told(dsn: str, sql: Sql, images: FileImages) -> None:
    sql("DELETE FROM longpoll.identity")
    with pytest.raises(ConfigurationError, match=r"longpoll\.identity has lost its row"):
        await join(dsn, images)


# --- a standby


@pytest.fixture
def mortal(made_before: Path) -> Iterator[MortalPostgres]:
    """A Postgres of this test's own."""
    with mortal_postgres(made_before) as postgres:
        yield postgres


async def test_a_standby_bins_nothing(mortal: MortalPostgres, tmp_path: Path) -> None:
    """It lags: what it doesn't know may well be there."""
    database, images = Database(mortal.dsn, pool_size=1, timeout=5), FileImages(tmp_path / "images")
    await database.open()
    await join_folder(database, images)
    await add_picture(images, "latest")
    await mortal.shut_down()
    with standby_of(mortal):
        cleaning = Retention(database, images, GenerationSettings(), Metrics())
        with pytest.raises(StorageError, match="a standby"):
            await cleaning.sweep()
    assert (kept(images), binned(images)) == ({"latest"}, set())
    await database.close()


@contextlib.contextmanager
def standby_of(postgres: MortalPostgres) -> Iterator[None]:
    """Run the data of a Postgres that was shut down as a standby, which waits for its primary for ever."""
    (postgres.location.data / "standby.signal").touch()
    postgres._account.give(postgres.location.data / "standby.signal")
    process = spawn(postgres._command(), postgres._account, postgres.location.data, subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(psycopg2.OperationalError):
                execute(postgres.dsn, "SELECT 1")
                break
            time.sleep(0.05)
        assert execute(postgres.dsn, "SELECT pg_is_in_recovery()") == [(True,)]
        yield
    finally:
        end(process)
