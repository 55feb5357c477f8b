"""What is looked at: the settings, the Postgres they lead to, and the site in front."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Literal

from server.config import Config
from server.errors import DatabaseUnavailable, StorageError
from server.storage.database import Connection, Database, connected

_APPLICATION: Final = "longpoll-doctor"


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
                connection = await stack.enter_async_context(connected(given or self.dsn, self.timeout, _APPLICATION))
            except DatabaseUnavailable as error:
                raise DatabaseUnavailable(f"{self.name_of(setting)} can't be reached: {error}") from error
            except StorageError:  # what was said of a malformed one may hold its password
                raise DatabaseUnavailable(
                    f'{self.name_of(setting)} is malformed: write "host=… dbname=… user=…" or "postgresql://…"'
                ) from None
            yield connection

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
