"""What makes room: tasks that ended long ago, sessions that are over, pictures without a task."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from server.config import GenerationSettings
from server.errors import ConfigurationError, PicturesUnavailable, StorageError
from server.storage.database import Database
from server.storage.images import ID_FILE, FileImages
from server.telemetry import logs
from server.telemetry.metrics import Metrics

_EVERY_SECONDS: Final = 3600.0
_YOUNG_SECONDS: Final = 3600.0
_AT_ONCE: Final = 500
_DAY_SECONDS: Final = 86_400.0
# A worker that is started together with the first server of all waits so long for the folder to get its id.
_PATIENCE_SECONDS: Final = 15.0
_LOOK_AGAIN_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class _TaskId:
    task_id: str


@dataclass(frozen=True, slots=True)
class _UserId:
    user_id: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Which database this is, and whether it is a standby, which may lag."""

    id: str
    standby: bool


@dataclass(frozen=True, slots=True)
class _Found:
    found: bool


async def join_folder(database: Database, images: FileImages) -> None:
    """Make sure that the folder of the pictures is this database's; one that is nobody's becomes it.

    Raises:
        ConfigurationError: it belongs to another database, or can't be used.
    """
    identity = await identify(database)
    was_empty = await _join(images, identity.id, make=False) is None
    found = await _join(images, identity.id, make=True)
    if found != identity.id:
        raise ConfigurationError(_foreign(images, found, identity.id))
    if was_empty and await images.is_empty():
        has_pictures = await database.fetch_one("has_pictures", _Found, retry=True)
        if has_pictures is not None and has_pictures.found:
            logs.log.warning(
                logs.PICTURES_MISSING,
                folder=str(images.folder),
                message="this folder is empty, but the database knows pictures: is database.data_dir the right one?",
            )


async def join_servers_folder(database: Database, images: FileImages) -> None:
    """Make sure that the folder of the pictures is the one that the server of this database uses.

    Raises:
        ConfigurationError: it isn't, or can't be used.
    """
    identity = await identify(database)
    found = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while (found := await _join(images, identity.id, make=False)) is None:
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)
    if found is None:
        raise ConfigurationError(
            f"{images.folder} isn't where the server keeps the pictures: the server has left no {ID_FILE} there."
            " Set database.data_dir to the folder that the server uses; on another machine, to the same shared one"
        )
    if found != identity.id:
        raise ConfigurationError(_foreign(images, found, identity.id))


async def identify(database: Database) -> Identity:
    """Return which database this is.

    Raises:
        ConfigurationError: it doesn't know.
    """
    identity = await database.fetch_one("identify", Identity, retry=True)
    if identity is None:
        raise ConfigurationError("longpoll.identity has lost its row: restore it, or insert one (DEFAULT VALUES)")
    return identity


async def _join(images: FileImages, database_id: str, *, make: bool) -> str | None:
    try:
        return await images.join(database_id, make=make)
    except PicturesUnavailable as error:
        raise ConfigurationError(
            f"the folder of the pictures, {images.folder}, can't be used: {error}."
            " See that this user may read and write it, or set database.data_dir to another one"
        ) from error


def _foreign(images: FileImages, found: str | None, wanted: str) -> str:
    return (
        f"the pictures in {images.folder} belong to another database: its id is {found}, this one's is {wanted}."
        " Nothing was changed there. Set database.data_dir to the folder of this database, or to a new one."
        f" If this database takes over those pictures, delete {images.folder / ID_FILE} and start again"
    )


def retention(keep_days: float) -> str:
    """Return the sentence that tells people how long what they make is kept."""
    if not keep_days:
        return "Pictures are kept until you delete them."
    return f"Pictures are kept for {keep_days:g} day{'' if keep_days == 1 else 's'} after they were made, then deleted."


class Retention:
    """Deletes what the settings no longer keep, and sees to the pictures that have no task."""

    def __init__(self, database: Database, images: FileImages, settings: GenerationSettings, metrics: Metrics) -> None:
        """Use these; `keep_days` and `bin_days` of the settings say what goes."""
        self._database = database
        self._images = images
        self._keep_seconds = settings.keep_days * _DAY_SECONDS
        self._bin_seconds = settings.bin_days * _DAY_SECONDS
        self._metrics = metrics

    async def run(self) -> None:
        """Clean now and then, for ever."""
        while True:
            await self.clean()
            await asyncio.sleep(_EVERY_SECONDS)

    async def clean(self) -> None:
        """Clean once. What fails is left for the next time, and stops nothing else."""
        for step in (self.expire_sessions, self.delete_ended, self.sweep):
            await self._try(step)

    async def _try(self, step: Callable[[], Awaitable[object]]) -> None:
        try:
            await step()
        except StorageError as error:
            self._metrics.cleaning_failures.inc()
            logs.log.warning(logs.CLEANING_FAILED, step=step.__name__, error=str(error))

    async def expire_sessions(self) -> None:
        """Delete the sessions that are over."""
        await self._database.fetch("expire_sessions", _UserId)

    async def delete_ended(self) -> int:
        """Delete the tasks that ended more than `keep_days` ago, and their pictures; returns how many. 0 days: none."""
        deleted = 0
        while self._keep_seconds:
            rows = await self._database.fetch(
                "delete_ended", _TaskId, older_than_seconds=self._keep_seconds, most=_AT_ONCE
            )
            for row in rows:
                with contextlib.suppress(PicturesUnavailable):  # logged and counted there; the sweep finds them
                    await self._images.delete_task(row.task_id)
            deleted += len(rows)
            if len(rows) < _AT_ONCE:
                break
        if deleted:
            logs.log.info(logs.TASKS_EXPIRED, deleted=deleted)
        return deleted

    async def sweep(self) -> None:
        """Put pictures without a task into the bin, and take those back whose task is there again."""
        identity = await identify(self._database)
        if identity.standby or identity.id != self._images.database_id:
            raise StorageError("the pictures are not swept: this database is a standby, or not the one they belong to")
        swept = await self._images.sweep(
            self.existing, older_than_seconds=_YOUNG_SECONDS, bin_seconds=self._bin_seconds
        )
        logs.log.info(logs.FILES_CLEANED, binned=swept.binned, restored=swept.restored, deleted=swept.deleted)

    async def existing(self, task_ids: Sequence[str]) -> set[str]:
        """Return those of the ids that still belong to a task."""
        rows = await self._database.fetch("existing_tasks", _TaskId, retry=True, task_ids=list(task_ids))
        return {row.task_id for row in rows}
