"""That sessions and tokens are used: written down rarely, many at once, and never on the way of a request."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from server.errors import StorageError
from server.storage.database import Database
from server.storage.logins import SESSION_USE_SECONDS, TOKEN_USE_SECONDS, Login
from server.telemetry import logs

# Those that come within so long are written together.
_GATHER_SECONDS: Final = 1.0
_MOST_AT_ONCE: Final = 1000
# What could not be written is tried again when it is used after so long.
_AGAIN_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Used:
    secret_hash: str
    expires_at: float | None


class Uses:
    """Puts off the end of sessions that are used, and takes note of when tokens were."""

    def __init__(self, database: Database, *, session_seconds: float, gather_seconds: float = _GATHER_SECONDS) -> None:
        """Use this database. A session ends so many seconds after its last use, give or take a day."""
        self._database = database
        self._session_seconds = session_seconds
        self._gather_seconds = gather_seconds
        self._waiting: dict[str, Login] = {}
        self._wanted = asyncio.Event()

    def due_after(self, last_used_at: float | None, *, is_token: bool) -> float:
        """Return when the use of something that was last used then is to be written down, in seconds since 1970."""
        if last_used_at is None:
            return 0.0
        rarely = TOKEN_USE_SECONDS if is_token else min(SESSION_USE_SECONDS, self._session_seconds / 2)
        return last_used_at + rarely

    def note(self, login: Login) -> None:
        """Have this use written down soon."""
        login.use_due_at = time.time() + _AGAIN_SECONDS
        login.cookie_due = True
        self._waiting[login.key] = login
        self._wanted.set()

    async def run(self) -> None:
        """Write down what was noted, for ever."""
        while True:
            await self._wanted.wait()
            await asyncio.sleep(self._gather_seconds)
            self._wanted.clear()  # ours alone: nobody waits on it but this loop
            logins = [self._waiting.pop(key) for key in list(self._waiting)[:_MOST_AT_ONCE]]
            if self._waiting:
                self._wanted.set()
            try:
                await self._write(logins)
            except StorageError as error:
                logs.log.warning(logs.USES_UNWRITTEN, logins=len(logins), error=str(error))

    async def _write(self, logins: list[Login]) -> None:
        by_key = {login.key: login for login in logins}
        rows = await self._database.fetch(
            "note_uses",
            _Used,
            secret_hashes=[bytes.fromhex(key) for key in by_key],
            session_seconds=self._session_seconds,
        )
        now = time.time()
        for row in rows:
            login = by_key[row.secret_hash]
            login.use_due_at = self.due_after(now, is_token=login.is_token)
            if row.expires_at is not None:
                login.expires_at = row.expires_at
