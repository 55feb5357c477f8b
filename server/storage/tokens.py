"""Bearer tokens as their owner makes, lists and ends them. `Sessions` finds who is behind one."""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from server.errors import TooManyTokens
from server.storage.database import Database
from server.storage.logins import Scope
from server.storage.sessions import TOKEN_PREFIX, digest
from server.storage.users import User

MOST_TOKENS: Final = 100


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token as its owner sees it in a list; the secret itself is shown only once."""

    id: str
    name: str
    scope: str
    created_at: dt.datetime
    expires_at: dt.datetime | None
    last_used_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class _SecretHash:
    secret_hash: str


class Tokens:
    """The tokens of all users."""

    def __init__(self, database: Database, forget: Callable[[str], None]) -> None:
        """Use this database. `forget` is told the key of each token that is revoked here."""
        self._database = database
        self._forget = forget

    async def create(self, user: User, name: str, scope: Scope, expires_at: dt.datetime | None) -> tuple[str, Token]:
        """Make a bearer token; returns its secret, which can't be had again, and what will be listed.

        Raises:
            TooManyTokens: the user has as many as may be.
        """
        secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
        token = await self._database.fetch_one(
            "create_token",
            Token,
            secret_hash=digest(secret),
            user_id=user.user_id,
            name=name,
            scope=str(scope),
            expires_at=expires_at,
            most=MOST_TOKENS,
        )
        if token is None:
            raise TooManyTokens(f"You have {MOST_TOKENS} tokens already; revoke one that you don't need any more.")
        return secret, token

    async def list(self, user: User, *, limit: int, before: tuple[dt.datetime, str] | None = None) -> list[Token]:
        """Return a page of the user's tokens, newest first, that begins behind (creation time, id)."""
        before_time, before_id = before or (None, None)
        return await self._database.fetch(
            "list_tokens",
            Token,
            retry=True,
            user_id=user.user_id,
            limit=limit,
            before_time=before_time,
            before_id=before_id,
        )

    async def revoke(self, user: User, token_id: str) -> bool:
        """End a token, and whatever it holds; returns whether the user had it."""
        rows = await self._database.fetch("revoke_token", _SecretHash, id=token_id, user_id=user.user_id)
        for row in rows:
            self._forget(row.secret_hash)
        return bool(rows)
