"""A data folder that can't be used is refused in one sentence, before anything is begun."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from server.errors import ConfigurationError
from server.storage import data_folder
from tests.support.processes import ServerProcess


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    data_folder.prepare(str(tmp_path / "a" / "b"))
    assert list(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a" / "b"]
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) & 0o066 == 0


@pytest.mark.parametrize("place", ["file", "file/below", "link"])
def test_what_is_no_folder_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(ConfigurationError, match=f"database.data_dir is {tmp_path / place}, "):
        data_folder.prepare(str(tmp_path / place))


@pytest.mark.parametrize("place", ["/proc/nowhere", "/dev/null", "/" + "a" * 300])
def test_what_cannot_be_made_is_refused(place: str) -> None:
    with pytest.raises(ConfigurationError, match=f"database.data_dir is {place}, "):
        data_folder.prepare(place)


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    if os.geteuid() == 0:  # whom no mode keeps from writing
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)
        os.seteuid(65534)
    try:
        with pytest.raises(ConfigurationError, match="where this account can't write: Permission denied"):
            data_folder.prepare(str(tmp_path))
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


@pytest.mark.parametrize("command", ["serve", "worker", "migrate", "doctor"])
def test_every_command_says_so_in_one_sentence(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    server = ServerProcess(tmp_path, command, database__data_dir="file")
    assert server.wait() == 1
    assert server.said == f"error: database.data_dir is {tmp_path}/file, which isn't a folder, or isn't below one\n"
