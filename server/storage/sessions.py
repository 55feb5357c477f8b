"""Sessions and tokens: secrets that stand for a user until they are revoked.

What is known of a secret is kept in memory, so that a poll costs no query. Two things take it out again: a
notification that the row is gone, and any doubt whether such notifications still arrive.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Final

from server.errors import DatabaseUnavailable, StorageError
from server.storage.database import Database
from server.storage.users import User

# While the database is out of reach nobody can revoke anything in it either; who was known goes on for so long.
OFFLINE_GRACE_SECONDS: Final = 120.0
# While notifications don't arrive, a secret is looked up again after so long.
UNPROVEN_SECONDS: Final = 2.0
# And for so long the database may think about somebody who was known, before the grace begins.
_PATIENCE_SECONDS: Final = 0.5
TOKEN_PREFIX: Final = "lp_"  # noqa: S105 - lets secret scanners recognise a leaked one


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token as its owner sees it in a list; the secret itself is shown only once."""

    id: str
    name: str
    created_at: dt.datetime


@dataclass(frozen=True, slots=True)
class _Credential:
    secret_hash: str
    user_id: str
    email: str
    expires_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class _UserId:
    user_id: str


@dataclass(frozen=True, slots=True)
class _TokenId:
    id: str


@dataclass(frozen=True, slots=True)
class _Site:
    id: str


@dataclass(slots=True)
class _Known:
    user: User
    expires_at: float
    read_at: float
    proven: bool


class Sessions:
    """Finds the user behind a secret, mostly without a query."""

    def __init__(self, database: Database, *, days: float, cache_size: int) -> None:
        """Use this database; a session lasts that many days."""
        self._database = database
        self._seconds = days * 86_400
        self._cache_size = cache_size
        self._known: dict[str, _Known] = {}
        self._reading: dict[str, asyncio.Future[User | None]] = {}
        self._wanted: set[str] = set()
        self._revoked_meanwhile: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening = False
        self._doubts = 0

    def __len__(self) -> int:
        return len(self._known)

    @property
    def max_age(self) -> int:
        """How long a session lasts, in seconds."""
        return int(self._seconds)

    async def read_site(self) -> str:
        """Return a short id of the database in which the sessions are, for the names of cookies. Not secret."""
        try:
            site = await self._database.fetch_one("find_site", _Site, retry=True)
        except DatabaseUnavailable:
            raise
        except StorageError:  # a host that lets nobody ask for the cluster's identifier
            site = await self._database.fetch_one("find_site_by_name", _Site, retry=True)
        assert site is not None
        return site.id

    async def create(self, user: User) -> str:
        """Begin a session; returns its secret, for the cookie."""
        secret = secrets.token_urlsafe(32)
        expires_at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=self._seconds)
        await self._database.fetch(
            "create_session", _UserId, secret_hash=_digest(secret), user_id=user.user_id, expires_at=expires_at
        )
        return secret

    async def revoke(self, secret: str) -> None:
        """End a session here at once, and in every other process by the notification that its row's deletion sends."""
        key = _digest(secret).hex()
        self.forget(key)
        await self._database.fetch("revoke_session", _UserId, secret_hash=_digest(secret), retry=True)
        self.forget(key)  # somebody may have looked it up while the row was still there

    async def create_token(self, user: User, name: str) -> tuple[str, Token]:
        """Make a bearer token; returns its secret, which can't be had again, and what will be listed."""
        secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
        token = await self._database.fetch_one(
            "create_token", Token, secret_hash=_digest(secret), user_id=user.user_id, name=name
        )
        assert token is not None
        return secret, token

    async def list_tokens(self, user: User) -> list[Token]:
        """Return the user's tokens, newest first."""
        return await self._database.fetch("list_tokens", Token, retry=True, user_id=user.user_id)

    async def revoke_token(self, user: User, token_id: str) -> bool:
        """End a token; returns whether the user had it."""
        return bool(await self._database.fetch("revoke_token", _TokenId, id=token_id, user_id=user.user_id))

    @staticmethod
    def key_of(secret: str) -> str:
        """Return what may be kept to ask for the same secret again: its hash."""
        return _digest(secret).hex()

    def recall(self, key: str) -> User | None:
        """Return the user behind a secret's hash if that can be told from memory alone, and now."""
        known = self._known.get(key)
        if known is None or not self._is_trusted(known) or known.expires_at <= time.time():
            return None
        return known.user

    async def find(self, secret: str) -> User | None:
        """Return the user behind a session's or token's secret, or None if it is unknown, expired or revoked.

        Raises:
            StorageError: it isn't known here and can't be read.
        """
        key = _digest(secret).hex()
        known = self._known.get(key)
        if known is not None and self._is_trusted(known):
            return known.user if known.expires_at > time.time() else None
        in_grace = known is not None and time.monotonic() - known.read_at <= OFFLINE_GRACE_SECONDS
        try:
            return await self._look_up(key, _PATIENCE_SECONDS if in_grace and not self._listening else None)
        except StorageError:
            if known is None or not in_grace or key not in self._known:
                raise
            return known.user if known.expires_at > time.time() else None

    def forget(self, key: str) -> None:
        """Drop what is known of a secret (its hash in hexadecimal), because its row is gone."""
        self._known.pop(key, None)
        if key in self._reading or key in self._wanted:
            self._revoked_meanwhile.add(key)

    def lost(self) -> None:
        """From now on revocations may go unheard."""
        self._listening = False
        self._doubt_all()

    def restored(self) -> None:
        """From now on revocations are heard again; those before are found by reading."""
        self._listening = True
        self._doubt_all()

    def _doubt_all(self) -> None:
        self._doubts += 1
        until_now = time.monotonic() - UNPROVEN_SECONDS  # looked up at once, but the grace begins now
        for known in self._known.values():
            if known.proven:
                known.proven, known.read_at = False, max(known.read_at, until_now)

    def _is_trusted(self, known: _Known) -> bool:
        if self._listening and known.proven:
            return True
        return not self._listening and time.monotonic() - known.read_at < UNPROVEN_SECONDS

    async def _look_up(self, key: str, patience: float | None) -> User | None:
        future = self._reading.get(key)
        if future is None:
            future = self._reading[key] = asyncio.get_running_loop().create_future()
            if not self._wanted:
                # One read for everybody who asks in this turn of the loop, in a task that no client's leaving cancels.
                task = asyncio.create_task(self._read_wanted(), name="session read")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            self._wanted.add(key)
        try:
            async with asyncio.timeout(patience):
                return await asyncio.shield(future)
        except TimeoutError:
            raise DatabaseUnavailable("the database takes long to answer") from None

    async def _read_wanted(self) -> None:
        await asyncio.sleep(0)
        keys, self._wanted = list(self._wanted), set()
        doubts = self._doubts
        try:
            rows = await self._database.fetch(
                "find_credentials", _Credential, retry=True, secret_hashes=[bytes.fromhex(key) for key in keys]
            )
        except BaseException as error:
            for key in keys:
                future = self._reading.pop(key)
                self._revoked_meanwhile.discard(key)
                future.set_exception(error if isinstance(error, StorageError) else StorageError(repr(error)))
                future.exception()  # whoever asked may be gone
            if not isinstance(error, StorageError):
                raise
            return
        found = {row.secret_hash: row for row in rows}
        for key in keys:
            self._settle(key, found.get(key), proven=self._listening and doubts == self._doubts)

    def _settle(self, key: str, row: _Credential | None, *, proven: bool) -> None:
        future = self._reading.pop(key)
        if row is None or key in self._revoked_meanwhile:
            self._revoked_meanwhile.discard(key)
            self._known.pop(key, None)
            future.set_result(None)
            return
        user = User(row.user_id, row.email)
        expires_at = row.expires_at.timestamp() if row.expires_at else float("inf")
        self._known.pop(key, None)
        self._known[key] = _Known(user, expires_at, time.monotonic(), proven)
        while len(self._known) > self._cache_size:
            del self._known[next(iter(self._known))]
        future.set_result(user)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()
