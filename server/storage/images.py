"""Pictures as files. What it offers is small on purpose: an object store can take its place."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import stat
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

_LEGAL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_LEGAL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9]{1,16}){1,2}\Z")


class ImageStore(Protocol):
    """Keeps pictures by name: ``<task id>.<attempt>.png`` for results, ``<task id>.reference.png`` for references."""

    async def put(self, name: str, content: bytes) -> None:
        """Store it, whole or not at all."""

    async def get(self, name: str) -> bytes | None:
        """Return it, or None if there is none."""

    async def delete_task(self, task_id: str) -> None:
        """Delete everything that belongs to a task."""


class FileImages:
    """An ImageStore in a folder, in 256 subfolders so that none grows long."""

    def __init__(self, folder: Path) -> None:
        """Use this folder; it is made when it is needed."""
        self.folder = folder

    @classmethod
    def below(cls, data_dir: str) -> FileImages:
        """Return the one that every process with this data folder shares."""
        return cls(Path(data_dir).absolute() / "images")

    async def put(self, name: str, content: bytes) -> None:
        """Store it, whole or not at all: written beside its place, then renamed."""
        await asyncio.to_thread(self._put, name, content)

    async def get(self, name: str) -> bytes | None:
        """Return it, or None if there is none."""
        return await asyncio.to_thread(self._get, name)

    async def delete_task(self, task_id: str) -> None:
        """Delete everything that belongs to a task."""
        await asyncio.to_thread(self._delete_task, task_id)

    async def sweep(
        self,
        existing: Callable[[Sequence[str]], Awaitable[set[str]]],
        *,
        older_than_seconds: float,
        batch_size: int = 500,
    ) -> int:
        """Delete the files of tasks that are no more; returns how many. Young files are left: their row may be coming."""
        old = await asyncio.to_thread(self._files_before, time.time() - older_than_seconds)
        deleted = 0
        for start in range(0, len(old), batch_size):
            part = old[start : start + batch_size]
            alive = await existing(sorted({_task_of(path) for path in part}))
            orphans = [path for path in part if _task_of(path) not in alive]
            await asyncio.to_thread(_unlink, orphans)
            deleted += len(orphans)
        return deleted

    def _path(self, name: str) -> Path:
        if not _LEGAL_NAME.fullmatch(name):
            raise ValueError(f"not the name of a picture: {name!r}")
        return self._subfolder(name.partition(".")[0]) / name

    def _subfolder(self, task_id: str) -> Path:
        return self.folder / f"{sum(task_id.encode()) % 256:02x}"

    def _put(self, name: str, content: bytes) -> None:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = path.with_name(f".{name}.{secrets.token_hex(4)}")
        try:
            with unfinished.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _get(self, name: str) -> bytes | None:
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None

    def _delete_task(self, task_id: str) -> None:
        if not _LEGAL_ID.fullmatch(task_id):
            raise ValueError(f"not the id of a task: {task_id!r}")
        _unlink(list(self._subfolder(task_id).glob(f"{task_id}.*")))

    def _files_before(self, moment: float) -> list[Path]:
        return [path for path in self.folder.glob("??/*") if _is_file_before(path, moment)]


def _is_file_before(path: Path, moment: float) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:  # somebody else has just deleted it
        return False
    return stat.S_ISREG(status.st_mode) and status.st_mtime < moment


def _task_of(path: Path) -> str:
    return path.name.lstrip(".").partition(".")[0]


def _unlink(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
