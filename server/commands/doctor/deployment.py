"""What is looked at: the settings, the Postgres they lead to, and the site in front."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Literal

from server.config import Config
from server.errors import DatabaseUnavailable, StorageError
from server.storage.database import Connection, Database, connected

_APPLICATION: Final = "longpoll-doctor"
_REFUSED_SECONDS: Final = 0.5
_PAUSE_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Deployment:
    """One server with all that belongs to it. Without a URL nothing stands in front."""

    config: Config
    dsn: str
    url: str = ""

    @property
    def timeout(self) -> float:
        """How long, in seconds, Postgres may think."""
        return self.config.database.timeout_seconds

    @contextlib.asynccontextmanager
    async def connected(self, setting: Literal["dsn", "admin_dsn", "listen_dsn"] = "dsn") -> AsyncIterator[Connection]:
        """Open a connection to where this setting leads, or `dsn` if it is empty.

        Raises:
            DatabaseUnavailable: it can't be reached; the message names the setting.
        """
        given = getattr(self.config.database, setting)
        async with contextlib.AsyncExitStack() as stack:
            try:
                connection = await self._connect(stack, given or self.dsn)
            except DatabaseUnavailable as error:
                raise DatabaseUnavailable(f"{self.name_of(setting)} can't be reached: {error}") from error
            except StorageError:  # what was said of a malformed one may hold its password
                raise DatabaseUnavailable(
                    f'{self.name_of(setting)} is malformed: write "host=… dbname=… user=…" or "postgresql://…"'
                ) from None
            yield connection

    async def _connect(self, stack: contextlib.AsyncExitStack, dsn: str) -> Connection:
        """Connect; again for a moment if it is refused, for the connection of the check before may count until Postgres has ended it."""
        started = time.monotonic()
        while True:
            try:
                return await stack.enter_async_context(connected(dsn, self.timeout, _APPLICATION))
            except DatabaseUnavailable:
                if time.monotonic() - started > _REFUSED_SECONDS:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)

    def name_of(self, setting: str) -> str:
        """Return what an operator calls the place where this setting leads."""
        if getattr(self.config.database, setting):
            return f"database.{setting}"
        return "database.dsn" if self.config.database.dsn else "the embedded Postgres"

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Database]:
        """Open what the server itself runs its statements through."""
        database = Database(self.dsn, pool_size=1, timeout=self.timeout, application=_APPLICATION)
        try:
            await database.open()
            yield database
        finally:
            await database.close()
