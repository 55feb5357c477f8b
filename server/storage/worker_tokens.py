"""Tokens of workers, as an operator makes, lists and revokes them. `Sessions` finds what is behind one."""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from server.storage.database import Database
from server.storage.sessions import WORKER_TOKEN_PREFIX, digest

# More are not listed: whoever has so many looks into the table.
_MOST_LISTED: Final = 1000


@dataclass(frozen=True, slots=True)
class WorkerToken:
    """A worker's token as its operator sees it; the secret itself is shown only once."""

    id: str
    name: str
    tags: list[str]
    concurrency: int
    created_at: dt.datetime
    expires_at: dt.datetime | None
    last_used_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class _Revoked:
    name: str


class WorkerTokens:
    """The tokens of all workers. Whatever one of them holds ends with it, in every process."""

    def __init__(self, database: Database) -> None:
        """Use this database."""
        self._database = database

    async def create(
        self, name: str, tags: Iterable[str], concurrency: int, expires_at: dt.datetime | None
    ) -> tuple[str, WorkerToken]:
        """Make a token; returns its secret, which can't be had again, and what will be listed."""
        secret = WORKER_TOKEN_PREFIX + secrets.token_urlsafe(32)
        token = await self._database.fetch_one(
            "create_worker_token",
            WorkerToken,
            secret_hash=digest(secret),
            name=name,
            tags=sorted(tags),
            concurrency=concurrency,
            expires_at=expires_at,
        )
        assert token is not None, "one row always"
        return secret, token

    async def list(self) -> list[WorkerToken]:
        """Return the tokens, newest first."""
        return await self._database.fetch("list_worker_tokens", WorkerToken, retry=True, most=_MOST_LISTED)

    async def revoke(self, token_id: str) -> str | None:
        """End a token, and whatever it holds; returns its name, or None if there is none of this id."""
        revoked = await self._database.fetch_one("revoke_worker_token", _Revoked, id=token_id)
        return revoked.name if revoked else None
