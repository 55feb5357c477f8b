"""Accounts and their passwords."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import argon2

from server.errors import AddressTaken, ConstraintViolated, WrongCredentials
from server.storage.database import Database

# Two at a time: each takes 64 MiB and a core for a while, and a flood of logins must not take more.
_HASHING_THREADS: Final = 2


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who is logged in."""

    user_id: str
    email: str


@dataclass(frozen=True, slots=True)
class _Account:
    user_id: str
    email: str
    password_hash: str


@dataclass(frozen=True, slots=True)
class _UserId:
    user_id: str


class Users:
    """Registers people and recognises them by their password."""

    def __init__(self, database: Database, hasher: argon2.PasswordHasher | None = None) -> None:
        """Use this database; the hasher's default follows RFC 9106 (low memory)."""
        self._database = database
        self._hasher = hasher or argon2.PasswordHasher()
        self._executor = ThreadPoolExecutor(_HASHING_THREADS, thread_name_prefix="argon2")
        self._decoy = ""

    async def open(self) -> None:
        """Prepare what an unknown address is compared with, so that it takes as long as a known one."""
        self._decoy = await self._hash("nobody's password")

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

    async def log_in(self, email: str, password: str) -> User:
        """Return the user with this address and password.

        Raises:
            WrongCredentials: the address is unknown or the password wrong; both take the same time.
        """
        account = await self._database.fetch_one("find_account", _Account, retry=True, email=email)
        right = await self._verify(account.password_hash if account else self._decoy, password)
        if account is None or not right:
            raise WrongCredentials
        if self._hasher.check_needs_rehash(account.password_hash):
            await self._database.fetch(
                "update_password_hash", _UserId, user_id=account.user_id, password_hash=await self._hash(password)
            )
        return User(account.user_id, account.email)

    async def _hash(self, password: str) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._hasher.hash, password)

    async def _verify(self, password_hash: str, password: str) -> bool:
        def verify() -> bool:
            try:
                return self._hasher.verify(password_hash, password)
            except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
                return False

        return await asyncio.get_running_loop().run_in_executor(self._executor, verify)
