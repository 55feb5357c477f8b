"""Accounts and their passwords."""

from __future__ import annotations

import asyncio
import base64
import hmac
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import argon2
import argon2.low_level

from server.errors import AddressTaken, ConstraintViolated, WrongCredentials
from server.storage.database import Database
from server.storage.passwords import normalize

# Two at a time: each takes 64 MiB and a core for a while, and a flood of logins must not take more.
_HASHING_THREADS: Final = 2


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who is logged in."""

    user_id: str
    email: str


@dataclass(frozen=True, slots=True)
class Account:
    """What is kept of somebody."""

    user_id: str
    email: str
    password_hash: str

    @property
    def mark(self) -> str:
        """What only those know who have been logged in to this account since its password was changed.

        The hash is random enough to be the key, and known to nobody; so nothing more must be kept for this.
        """
        return hmac.digest(self.password_hash.encode(), b"has been logged in", "sha256").hex()


@dataclass(frozen=True, slots=True)
class _UserId:
    user_id: str


@dataclass(frozen=True, slots=True)
class _SecretHash:
    secret_hash: str


@dataclass(frozen=True, slots=True)
class _TaskId:
    task_id: str


def decoy(hasher: argon2.PasswordHasher) -> str:
    """Return a hash that no password has and that takes as long to verify as this hasher's own: for unknown addresses."""
    costs = f"m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}"
    salt, digest = (
        base64.b64encode(secrets.token_bytes(length)).decode().rstrip("=")
        for length in (hasher.salt_len, hasher.hash_len)
    )
    return f"$argon2id$v={argon2.low_level.ARGON2_VERSION}${costs}${salt}${digest}"


class Users:
    """Registers people and recognises them by their password."""

    def __init__(self, database: Database, hasher: argon2.PasswordHasher | None = None) -> None:
        """Use this database; the hasher's default follows RFC 9106 (low memory)."""
        self._database = database
        self._hasher = hasher or argon2.PasswordHasher()
        self._executor = ThreadPoolExecutor(_HASHING_THREADS, thread_name_prefix="argon2")

    def close(self) -> None:
        """Stop the threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def register(self, email: str, password: str) -> User:
        """Make an account.

        Raises:
            AddressTaken: there is one with this address, in whatever capitals.
        """
        password_hash = await self._hash(password)
        try:
            made = await self._database.fetch_one("register_account", _UserId, email=email, password_hash=password_hash)
        except ConstraintViolated as error:
            if error.constraint == "accounts_email":
                raise AddressTaken("Log in instead, or register with another address.") from error
            raise
        assert made is not None
        return User(made.user_id, email)

    async def find(self, email: str) -> Account | None:
        """Return the account with this address, in whatever capitals."""
        return await self._database.fetch_one("find_account", Account, retry=True, email=email)

    async def log_in(self, email: str, password: str) -> User:
        """Return the user with this address and password, as `check` does."""
        return await self.check(await self.find(email), password)

    async def check(self, account: Account | None, password: str) -> User:
        """Return the user of this account if the password is right.

        Raises:
            WrongCredentials: it is wrong, or there is no account; both take the same time.
        """
        right = await self._find_right(account.password_hash if account else decoy(self._hasher), password)
        if account is None or right is None:
            raise WrongCredentials
        if right != normalize(password) or self._hasher.check_needs_rehash(account.password_hash):
            # Unless it was changed meanwhile.
            await self._database.fetch(
                "renew_password_hash",
                _UserId,
                user_id=account.user_id,
                before=account.password_hash,
                password_hash=await self._hash(password),
            )
        return User(account.user_id, account.email)

    async def change_password(self, user: User, password: str, *, but: str) -> list[str]:
        """Give the account another password and end all its sessions; `but`: except for the one with this key.

        Returns the keys of those that ended.
        """
        rows = await self._database.fetch(
            "change_password",
            _SecretHash,
            user_id=user.user_id,
            password_hash=await self._hash(password),
            but=bytes.fromhex(but),
        )
        return [row.secret_hash for row in rows]

    async def delete(self, user: User) -> list[str]:
        """Delete the account and all that is its own; returns the ids of its tasks, whose pictures are files."""
        rows = await self._database.fetch("delete_account", _TaskId, user_id=user.user_id)
        return [row.task_id for row in rows]

    async def _hash(self, password: str) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._hasher.hash, normalize(password))

    async def _find_right(self, password_hash: str, password: str) -> str | None:
        """Return the form of the password that has this hash: what was hashed first was taken as it came."""

        def find() -> str | None:
            return next((form for form in forms if self._verify(password_hash, form)), None)

        forms = dict.fromkeys((normalize(password), password))
        return await asyncio.get_running_loop().run_in_executor(self._executor, find)

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False
