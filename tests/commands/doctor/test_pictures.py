"""What the doctor says of the folder in which the pictures lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.storage.database import Database
from server.storage.images import FileImages
from server.storage.retention import join_folder
from tests.commands.doctor.conftest import Examine

OTHER = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
async def images(dsn: str, tmp_path: Path) -> FileImages:
    """The folder as a server has left it."""
    images, database = FileImages.below(str(tmp_path)), Database(dsn, pool_size=1, timeout=5)
    await database.open()
    await join_folder(database, images)
    await database.close()
    return images


async def test_the_servers_folder_is_found_and_written(examined: Examine, images: FileImages) -> None:
    examination = await examined()
    assert examination["pictures"].endswith(f"{images.folder} is this database's, and can be written.")
    assert [path.name for path in images.folder.iterdir()] == ["database-id"]


async def test_a_folder_that_no_server_has_used_is_not_judged(examined: Examine, tmp_path: Path) -> None:
    examination = await examined()
    assert examination.named("skipped")[0] == "pictures"
    assert f"no server has used {tmp_path}/images yet" in examination["pictures"]
    assert not (tmp_path / "images").exists()


async def test_another_databases_folder_is_told(examined: Examine, images: FileImages) -> None:
    (images.folder / "database-id").write_text(OTHER)
    examination = await examined()
    assert f"holds the pictures of another database: its id is {OTHER}" in examination.failure("pictures")


async def test_a_folder_that_can_not_be_written_is_told(
    examined: Examine, images: FileImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_size: int) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.storage.images.os.urandom", full)
    assert f"nothing can be written to {images.folder}" in (await examined()).failure("pictures")
