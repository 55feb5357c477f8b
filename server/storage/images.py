"""Pictures as files: an `ImageStore` in a folder.

images/database-id             the id of the database whose pictures these are
images/1f/<task>.<attempt>.png
images/bin/1f/…                pictures without a task, kept for a while: they come back with their task
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from server.errors import PicturesUnavailable
from server.telemetry import logs
from server.telemetry.metrics import Metrics

T = TypeVar("T")

ID_FILE: Final = "database-id"
_LEGAL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_LEGAL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9]{1,16}){1,2}\Z")
_CHECK_SECONDS: Final = 30.0
_CHECK_AGAIN_SECONDS: Final = 2.0
_LONGEST_ID: Final = 100


def result_name(task_id: str, attempt: int) -> str:
    """Return the name under which the picture of an attempt is stored: a stale worker can't overwrite a newer one."""
    return f"{task_id}.{attempt}.png"


def reference_name(task_id: str) -> str:
    """Return the name under which the reference image of a task is stored."""
    return f"{task_id}.reference.png"


@dataclass(frozen=True, slots=True)
class Swept:
    """What became of pictures without a task, and of those in the bin: how many files."""

    binned: int = 0
    restored: int = 0
    deleted: int = 0

    def __add__(self, other: Swept) -> Swept:
        return Swept(self.binned + other.binned, self.restored + other.restored, self.deleted + other.deleted)


class _NotOurs(OSError):
    """The folder isn't, or isn't any more, the one that belongs to our database."""


class FileImages:
    """An `ImageStore` in a folder, in 256 subfolders so that none grows long.

    Attributes:
        failures: how often something couldn't be read or written.
        database_id: the database whose pictures these are, once that is known.
    """

    def __init__(self, folder: Path) -> None:
        """Use this folder. Until `join` says whose it is, it is made when it is needed."""
        self.folder = folder
        self.usable = True
        self.failures = 0
        self.database_id: str | None = None
        self._largest_failed = 1
        self._lost = asyncio.Event()

    @classmethod
    def below(cls, data_dir: str) -> FileImages:
        """Return the one that every process with this data folder shares."""
        return cls(Path(data_dir).absolute() / "images")

    async def put(self, name: str, content: bytes) -> None:
        """Store it, whole or not at all: written beside its place, then renamed."""
        try:
            await self._run(self._put, name, content)
        except PicturesUnavailable:
            self._largest_failed = max(self._largest_failed, len(content))
            self._set_usable(usable=False)
            raise

    async def get(self, name: str) -> bytes | None:
        """Return it, or None if there is none."""
        return await self._run(self._get, name)

    async def delete(self, name: str) -> None:
        """Delete it, if it is there."""
        await self._run(self._path(name).unlink, True)

    async def delete_task(self, task_id: str) -> None:
        """Delete everything that belongs to a task."""
        await self._run(self._delete_task, task_id)

    # Whose the folder is, and whether it can be written ---------------------------------------------------------------

    async def join(self, database_id: str, *, make: bool) -> str | None:
        """Take the folder for this database's; returns the id that it has: another one, or None, and it isn't.

        With `make`, the folder is made and takes this id if it has none.
        """
        found = await self._run(self._join, database_id, make)
        if found == database_id:
            self.database_id = database_id
        return found

    async def is_empty(self) -> bool:
        """Return whether there is no picture at all."""
        return not await self._run(self._any_picture)

    async def check(self) -> bool:
        """Find out whether pictures can be stored: as much is written as could last not be."""
        try:
            await self._run(self._probe)
        except PicturesUnavailable:
            self._set_usable(usable=False)
        else:
            self._largest_failed = 1
            self._set_usable(usable=True)
        return self.usable

    def add_gauges(self, metrics: Metrics) -> None:
        """Have the metrics tell how the folder is."""
        metrics.gauge("longpoll_pictures_usable", "Whether pictures can be stored", lambda: self.usable)
        metrics.gauge("longpoll_picture_failures", "Files that couldn't be read or written", lambda: self.failures)

    async def watch(self) -> None:
        """Check for ever: now and then, and often while it can't be written."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CHECK_SECONDS):
                    await self._lost.wait()
                    await asyncio.sleep(_CHECK_AGAIN_SECONDS)
            await self.check()

    def _set_usable(self, *, usable: bool) -> None:
        if usable != self.usable:
            self.usable = usable
            if usable:
                self._lost.clear()  # nobody waits on it but `watch`
            else:
                self._lost.set()
            report = logs.log.info if usable else logs.log.warning
            report(logs.PICTURES_RESTORED if usable else logs.PICTURES_LOST, folder=str(self.folder))

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        """Do it in a thread: here end the errors of files."""
        try:
            return await asyncio.to_thread(work, *arguments)
        except OSError as error:
            self.failures += 1
            if isinstance(error, _NotOurs):
                self._set_usable(usable=False)
            logs.log.warning(logs.PICTURES_FAILED, operation=work.__name__.strip("_"), error=str(error))
            raise PicturesUnavailable(str(error)) from error

    def _join(self, database_id: str, make: bool) -> str | None:  # noqa: FBT001 - called by position in a thread
        if make:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._read_id() is None:
                _write_whole(self.folder / ID_FILE, f"{database_id}\n".encode())
        return self._read_id()

    def _read_id(self) -> str | None:
        try:
            with (self.folder / ID_FILE).open("rb") as file:
                return file.read(_LONGEST_ID).decode(errors="replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _any_picture(self) -> bool:
        return any(self.folder.glob("??/*"))

    def _check_id(self) -> None:
        """Refuse a folder that isn't ours any more: it was replaced, or what was mounted there is gone."""
        if self.database_id is not None and self._read_id() != self.database_id:
            raise _NotOurs(f"{self.folder / ID_FILE} is gone, or another database's: is the right folder mounted?")

    def _probe(self) -> None:
        self._check_id()
        if self.database_id is None and not self.folder.exists():
            return  # it will be made when it is needed
        probe = self.folder / f".probe.{secrets.token_hex(4)}"
        try:
            with probe.open("xb") as file:
                file.write(os.urandom(self._largest_failed))  # zeros may take no room
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)

    # Reading and writing -------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        if not _LEGAL_NAME.fullmatch(name):
            raise ValueError(f"not the name of a picture: {name!r}")
        return self.folder / _subfolder(name.partition(".")[0]) / name

    def _binned(self, path: Path) -> Path:
        return self.folder / "bin" / path.parent.name / path.name

    def _put(self, name: str, content: bytes) -> None:
        path = self._path(name)
        self._check_id()
        self._make_folder(path.parent)
        _write_whole(path, content)

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            # Once it is known whose it is, the folder itself is never made anew: a mount that is gone must be noticed.
            folder.mkdir(parents=self.database_id is None, exist_ok=True, mode=0o700)
            _flush_folder(folder.parent)

    def _get(self, name: str) -> bytes | None:
        path = self._path(name)
        with contextlib.suppress(FileNotFoundError):
            return path.read_bytes()
        self._check_id()  # if it isn't one file that is missing, nobody must be told that it is
        return path.read_bytes() if self._restore(path) else None

    def _restore(self, path: Path) -> bool:
        """Take a picture out of the bin again; returns whether it was there."""
        if not self._binned(path).is_file():
            return False
        self._make_folder(path.parent)
        try:
            self._binned(path).replace(path)
        except FileNotFoundError:  # another process was quicker, with this or with emptying the bin
            return path.is_file()
        return True

    def _delete_task(self, task_id: str) -> None:
        if not _LEGAL_ID.fullmatch(task_id):
            raise ValueError(f"not the id of a task: {task_id!r}")
        for folder in (self.folder, self.folder / "bin"):
            with contextlib.suppress(FileNotFoundError):
                _each(_unlink, _files_of(folder / _subfolder(task_id), task_id))

    # Sweeping --------------------------------------------------------------------------------------------------------------

    async def sweep(
        self,
        existing: Callable[[Sequence[str]], Awaitable[set[str]]],
        *,
        older_than_seconds: float,
        bin_seconds: float,
        batch_size: int = 500,
    ) -> Swept:
        """Put the pictures of tasks that are no more into the bin, take those back whose task is there, empty the bin.

        Young files are left: their row may be coming. What has been in the bin for longer than `bin_seconds` is deleted.
        """
        swept, now = Swept(), time.time()
        for name in await self._run(self._subfolders):
            folder = self.folder / name
            # The bin first: the time of what is thrown away is that of the kernel's last tick, a moment before now.
            for part in await self._batches(self._binned(folder / "any").parent, now, batch_size):
                alive = await existing(_tasks_of(part))
                swept += await self._run(self._sort_bin, part, alive, now - bin_seconds)
            for part in await self._batches(folder, now - older_than_seconds, batch_size):
                alive = await existing(_tasks_of(part))
                swept += await self._run(self._bin_orphans, part, alive, bin_seconds)
        return swept

    def _subfolders(self) -> list[str]:
        """Return the names of those that are there, for what is kept or for what was thrown away."""
        there: set[str] = set()
        for folder in (self.folder, self.folder / "bin"):
            with contextlib.suppress(FileNotFoundError):
                there.update(path.name for path in folder.iterdir())
        return [name for name in map("{:02x}".format, range(256)) if name in there]

    async def _batches(self, folder: Path, moment: float, size: int) -> list[list[Path]]:
        paths = await self._run(_files_before, folder, moment)
        return [paths[start : start + size] for start in range(0, len(paths), size)]

    def _bin_orphans(self, paths: list[Path], alive: set[str], bin_seconds: float) -> Swept:
        self._check_id()
        unfinished = [path for path in paths if path.name.startswith(".")]  # of a process that was killed
        orphans = [path for path in paths if not path.name.startswith(".") and _task_of(path) not in alive]
        if bin_seconds <= 0:
            return Swept(deleted=_each(_unlink, unfinished + orphans))
        return Swept(binned=_each(self._throw_away, orphans), deleted=_each(_unlink, unfinished))

    def _throw_away(self, path: Path) -> None:
        binned = self._binned(path)
        binned.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.utime(path)  # from now on its time is that of being thrown away
        path.replace(binned)

    def _sort_bin(self, paths: list[Path], alive: set[str], moment: float) -> Swept:
        self._check_id()
        back = [self.folder / path.parent.name / path.name for path in paths if _task_of(path) in alive]
        old = [path for path in paths if _task_of(path) not in alive and _is_file_before(path, moment)]
        return Swept(restored=_each(self._restore, back), deleted=_each(_unlink, old))


def _subfolder(task_id: str) -> str:
    return f"{sum(task_id.encode()) % 256:02x}"


def _write_whole(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with unfinished.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files_of(folder: Path, task_id: str) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(f"{task_id}.")]


def _files_before(folder: Path, moment: float) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if _is_file_before(path, moment)]
    except FileNotFoundError:
        return []


def _is_file_before(path: Path, moment: float) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:  # somebody else has just deleted it
        return False
    return stat.S_ISREG(status.st_mode) and status.st_mtime < moment


def _tasks_of(paths: Sequence[Path]) -> list[str]:
    return sorted({_task_of(path) for path in paths})


def _task_of(path: Path) -> str:
    return path.name.lstrip(".").partition(".")[0]


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


def _each(act: Callable[[Path], object], paths: Sequence[Path]) -> int:
    """Do it to each, whatever becomes of the others; returns how many it was done to. The first error is raised, last."""
    done, failed = 0, None
    for path in paths:
        try:
            act(path)
            done += 1
        except FileNotFoundError:
            continue  # another process was quicker
        except OSError as error:
            failed = failed or error
    if failed is not None:
        raise failed
    return done
