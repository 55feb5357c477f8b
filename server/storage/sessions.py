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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from server.errors import DatabaseUnavailable, StorageError
from server.storage.database import Database
from server.storage.grants import WorkerGrant
from server.storage.logins import Login, Scope
from server.storage.users import User
from server.storage.uses import Uses

# While the database is out of reach nobody can revoke anything in it either; who was known goes on for so long.
OFFLINE_GRACE_SECONDS: Final = 120.0
# While notifications don't arrive, a secret is looked up again after so long.
UNPROVEN_SECONDS: Final = 2.0
# And for so long the database may think about somebody who was known, before the grace begins.
_PATIENCE_SECONDS: Final = 0.5
# Of one user; the oldest gives way to a new one.
MOST_SESSIONS: Final = 100
TOKEN_PREFIX: Final = "lp_"  # noqa: S105 - lets secret scanners recognise a leaked one
WORKER_TOKEN_PREFIX: Final = "lpw_"  # noqa: S105
TOKEN_PREFIXES: Final = (TOKEN_PREFIX, WORKER_TOKEN_PREFIX)


@dataclass(frozen=True, slots=True)
class Session:
    """A session as its owner sees it in a list. `agent`: what the browser called itself at the login."""

    id: str
    agent: str
    created_at: dt.datetime
    last_used_at: dt.datetime
    expires_at: dt.datetime
    secret_hash: str


@dataclass(frozen=True, slots=True)
class _Credential:
    secret_hash: str
    user_id: str
    email: str
    expires_at: float | None
    last_used_at: float | None
    is_token: bool
    scope: str
    tags: list[str] | None
    concurrency: int | None


@dataclass(frozen=True, slots=True)
class _UserId:
    user_id: str


@dataclass(frozen=True, slots=True)
class _SecretHash:
    secret_hash: str


@dataclass(frozen=True, slots=True)
class _Site:
    id: str


def _nobody(_key: str) -> None:
    """Tell nobody."""


class Sessions:
    """Finds the user behind a secret, mostly without a query."""

    def __init__(
        self,
        database: Database,
        uses: Uses,
        *,
        days: float,
        cache_size: int,
        revoked: Callable[[str], None] = _nobody,
    ) -> None:
        """Use this database; a session lasts that many days after its last use.

        `revoked` is told the key of each secret that is found to be worth nothing any more.
        """
        self._database = database
        self._uses = uses
        self._revoked = revoked
        self._seconds = days * 86_400
        self._cache_size = cache_size
        self._known: dict[str, Login] = {}
        self._reading: dict[str, asyncio.Future[Login | None]] = {}
        self._wanted: set[str] = set()
        self._revoked_meanwhile: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._invalidations = 0
        self.listening = False

    def __len__(self) -> int:
        return len(self._known)

    @property
    def max_age(self) -> int:
        """How long a session lasts without being used, in seconds."""
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

    # The user's own -----------------------------------------------------------------------------------------------------

    async def create(self, user: User, agent: str = "") -> str:
        """Begin a session; returns its secret, for the cookie. Beyond `MOST_SESSIONS` the user's oldest one ends."""
        secret = secrets.token_urlsafe(32)
        expires_at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=self._seconds)
        await self._database.fetch(
            "create_session",
            _UserId,
            secret_hash=digest(secret),
            user_id=user.user_id,
            expires_at=expires_at,
            agent=agent,
            most=MOST_SESSIONS,
        )
        return secret

    async def revoke(self, secret: str) -> None:
        """End a session here at once, and in every other process by the notification that its row's deletion sends."""
        key = digest(secret).hex()
        self._drop(key)
        if await self._database.fetch("revoke_session", _UserId, secret_hash=digest(secret), retry=True):
            self._revoked(key)
        self._drop(key)  # somebody may have looked it up while the row was still there

    async def list(self, user: User) -> list[Session]:
        """Return the user's sessions, the latest used first."""
        return await self._database.fetch("list_sessions", Session, retry=True, user_id=user.user_id)

    async def end(self, user: User, session_id: str) -> bool:
        """End one of the user's sessions; returns whether there was such a one."""
        return await self._end("end_session", {"user_id": user.user_id, "id": session_id})

    async def end_all(self, user: User, *, but: str | None = None) -> None:
        """End all of the user's sessions; `but`: except for the one with this key."""
        await self._end("end_sessions", {"user_id": user.user_id, "but": bytes.fromhex(but or "")})

    async def _end(self, query: str, which: dict[str, Any]) -> bool:
        rows = await self._database.fetch(query, _SecretHash, **which)
        for row in rows:
            self.forget(row.secret_hash)
        return bool(rows)

    # Finding ------------------------------------------------------------------------------------------------------------

    def peek(self, key: str) -> Login | None:
        """Return the login behind a secret's hash if that can be told from memory alone, and now."""
        known = self._known.get(key)
        if known is None or not self._is_trusted(known):
            return None
        now = time.time()
        if known.expires_at <= now:
            return None
        if known.use_due_at <= now:
            self._uses.note(known)
        return known

    async def find(self, secret: str) -> Login | None:
        """Return the login behind a session's or token's secret, or None if it is unknown, expired or revoked.

        Raises:
            StorageError: it isn't known here and can't be read.
        """
        key = digest(secret).hex()
        found = self.peek(key)
        if found is not None:
            return found
        known = self._known.get(key)
        in_grace = known is not None and time.monotonic() - known.read_at <= OFFLINE_GRACE_SECONDS
        try:
            found = await self._look_up(key, _PATIENCE_SECONDS if in_grace and not self.listening else None)
        except StorageError:
            if known is None or not in_grace or key not in self._known:
                raise
            return known if known.expires_at > time.time() else None
        if found is not None and found.use_due_at <= time.time():
            self._uses.note(found)
        return found

    def forget(self, key: str) -> None:
        """Drop what is known of a secret (its hash in hexadecimal), because its row is gone; whatever it holds ends."""
        self._drop(key)
        self._revoked(key)

    def _drop(self, key: str) -> None:
        self._known.pop(key, None)
        if key in self._reading or key in self._wanted:
            self._revoked_meanwhile.add(key)

    def invalidate(self, key: str) -> None:
        """Invalidate a cached login by its hash in hexadecimal: its row has changed, so the next use reads it."""
        self._invalidations += 1  # a read that has begun may have seen the row as it was
        if key in self._known:
            self._known[key].proven = False

    async def recheck(self, keys: Sequence[str]) -> None:
        """Read these now, whatever is cached, and revoke those that are no longer valid.

        Raises:
            StorageError: they can't be read.
        """
        for key, found in (await self._read(keys)).items():
            if found is None:
                self.forget(key)
            elif key in self._known:
                self._fill_in(self._known[key], found)

    def on_listener_lost(self) -> None:
        """Called when the listener is unhealthy: from now on revocations may be missed."""
        self.listening = False
        self._invalidate_all()

    def on_listener_restored(self) -> None:
        """Called when the listener is healthy again: revocations that were missed are found by reading."""
        self.listening = True
        self._invalidate_all()

    def _invalidate_all(self) -> None:
        self._invalidations += 1
        until_now = time.monotonic() - UNPROVEN_SECONDS  # looked up at once, but the grace begins now
        for known in self._known.values():
            if known.proven:
                known.proven, known.read_at = False, max(known.read_at, until_now)

    def _is_trusted(self, known: Login) -> bool:
        if self.listening:
            return known.proven
        return time.monotonic() - known.read_at < UNPROVEN_SECONDS

    async def _look_up(self, key: str, patience: float | None) -> Login | None:
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
        invalidations = self._invalidations
        try:
            rows = await self._read(keys)
        except BaseException as error:
            for key in keys:
                future = self._reading.pop(key)
                self._revoked_meanwhile.discard(key)
                future.set_exception(error if isinstance(error, StorageError) else StorageError(repr(error)))
                future.exception()  # whoever asked may be gone
            if not isinstance(error, StorageError):
                raise
            return
        for key, row in rows.items():
            self._settle(key, row, proven=self.listening and invalidations == self._invalidations)

    async def _read(self, keys: Sequence[str]) -> dict[str, _Credential | None]:
        rows = await self._database.fetch(
            "find_credentials", _Credential, retry=True, secret_hashes=[bytes.fromhex(key) for key in keys]
        )
        found = {row.secret_hash: row for row in rows}
        return {key: found.get(key) for key in keys}

    def _settle(self, key: str, row: _Credential | None, *, proven: bool) -> None:
        future = self._reading.pop(key)
        known = self._known.pop(key, None)
        if row is None or key in self._revoked_meanwhile:
            self._revoked_meanwhile.discard(key)
            future.set_result(None)
            if known is not None:
                self._revoked(key)
            return
        login = self._known[key] = known or Login(key, User(row.user_id, row.email))
        self._fill_in(login, row)
        login.read_at, login.proven = time.monotonic(), proven
        while len(self._known) > self._cache_size:
            del self._known[next(iter(self._known))]
        future.set_result(login)

    def _fill_in(self, login: Login, row: _Credential) -> None:
        if login.user.email != row.email:
            login.user = User(row.user_id, row.email)
        login.expires_at = float("inf") if row.expires_at is None else row.expires_at
        login.is_token, login.scope = row.is_token, Scope(row.scope)
        if row.tags is not None:
            login.worker = WorkerGrant(row.user_id, row.email, frozenset(row.tags), row.concurrency or 0)
        login.use_due_at = self._uses.due_after(row.last_used_at, is_token=row.is_token)


def digest(secret: str) -> bytes:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()
