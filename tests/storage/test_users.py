"""Accounts: who may log in, and how little a stranger learns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import argon2
import pytest

from server.errors import AddressTaken, ConstraintViolated, WrongCredentials
from server.storage.database import Database
from server.storage.users import Users, decoy
from tests.support import rows
from tests.support.facts import until
from tests.support.postgres import Sql

shared_dsn, dsn = rows.shared_dsn, rows.dsn


class Hasher(argon2.PasswordHasher):
    """Argon2 at its cheapest, which counts its work."""

    def __init__(self, time_cost: int = 1) -> None:
        super().__init__(time_cost=time_cost, memory_cost=8, parallelism=1)
        self.hashed = 0
        self.verified = 0

    def hash(self, *arguments: object, **options: object) -> str:
        self.hashed += 1
        return super().hash(*arguments, **options)  # type: ignore[arg-type]

    def verify(self, *arguments: object) -> bool:  # type: ignore[override]
        self.verified += 1
        return super().verify(*arguments)  # type: ignore[arg-type]


@pytest.fixture
def hasher() -> Hasher:
    return Hasher()


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    database = Database(dsn, pool_size=2, timeout=5)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
async def users(database: Database, hasher: Hasher) -> AsyncIterator[Users]:
    users = Users(database, hasher)
    yield users
    users.close()


async def test_who_registers_can_log_in(users: Users) -> None:
    alice = await users.register("alice@example.org", "correct horse")
    assert await users.log_in("alice@example.org", "correct horse") == alice
    assert alice.email == "alice@example.org"


async def test_capitals_of_the_address_do_not_matter(users: Users) -> None:
    alice = await users.register("Alice@Example.org", "correct horse")
    assert await users.log_in("aLICE@example.ORG", "correct horse") == alice


async def test_the_password_must_match_exactly(users: Users) -> None:
    await users.register("alice@example.org", "pässwörd 🐎")
    for wrong in ("passwörd 🐎", "pässwörd", "PÄSSWÖRD 🐎", ""):
        with pytest.raises(WrongCredentials):
            await users.log_in("alice@example.org", wrong)


async def test_a_wrong_password_and_an_unknown_address_cannot_be_told_apart(users: Users, hasher: Hasher) -> None:
    """The same error after the same work: one verification each."""
    await users.register("alice@example.org", "correct horse")
    errors = []
    for email in ("alice@example.org", "nobody@example.org"):
        hasher.hashed = hasher.verified = 0
        with pytest.raises(WrongCredentials) as caught:
            await users.log_in(email, "battery staple")
        errors.append((str(caught.value), caught.value.detail))
        assert (hasher.verified, hasher.hashed) == (1, 0)
    assert errors[0] == errors[1]


async def test_a_flood_of_logins_hashes_two_at_a_time_and_leaves_the_loop_free(users: Users, hasher: Hasher) -> None:
    gate, busy = threading.Event(), threading.Semaphore(0)

    def verify(*_arguments: object) -> bool:
        busy.release()
        assert gate.wait(15)
        raise argon2.exceptions.VerifyMismatchError

    hasher.verify = verify  # type: ignore[method-assign]
    logins = [asyncio.create_task(users.log_in("nobody@example.org", "battery staple")) for _ in range(20)]
    await until(lambda: busy._value == 2)  # type: ignore[attr-defined]
    await until(lambda: users._executor._work_queue.qsize() == 18)
    assert busy._value == 2  # type: ignore[attr-defined]
    gate.set()
    assert {type(error) for error in await asyncio.gather(*logins, return_exceptions=True)} == {WrongCredentials}


@pytest.mark.parametrize("hasher", [argon2.PasswordHasher(), Hasher(time_cost=2)])
def test_a_decoy_costs_what_a_hash_of_ours_costs(hasher: argon2.PasswordHasher) -> None:
    """To be verified, as each attempt at an unknown address is; and nothing has that hash."""
    assert argon2.extract_parameters(decoy(hasher)) == argon2.extract_parameters(hasher.hash("a password"))
    with pytest.raises(argon2.exceptions.VerifyMismatchError):
        hasher.verify(decoy(hasher), "a password")


@pytest.mark.parametrize("stored", ["", "no hash", "$argon2id$v=19$broken"])
async def test_a_hash_that_is_none_lets_nobody_in(users: Users, sql: Sql, stored: str) -> None:
    sql("SELECT longpoll.register_account('alice@example.org', %s)", (stored,))
    with pytest.raises(WrongCredentials):
        await users.log_in("alice@example.org", stored)


@pytest.mark.parametrize("again", ["alice@example.org", "ALICE@Example.Org"])
async def test_an_address_is_taken_in_whatever_capitals(users: Users, sql: Sql, again: str) -> None:
    await users.register("alice@example.org", "correct horse")
    with pytest.raises(AddressTaken):
        await users.register(again, "another password")
    assert sql("SELECT (SELECT count(*) FROM longpoll.accounts), (SELECT count(*) FROM auth.users)") == [(1, 1)]
    await users.log_in("alice@example.org", "correct horse")


async def test_another_broken_rule_is_not_called_a_taken_address(users: Users) -> None:
    with pytest.raises(ConstraintViolated):
        await users.register("a", "correct horse")


async def test_a_hash_of_older_settings_is_renewed_at_login(database: Database, hasher: Hasher, sql: Sql) -> None:
    older = Users(database, hasher)
    alice = await older.register("alice@example.org", "correct horse")
    older.close()
    newer = Users(database, Hasher(time_cost=2))
    (before,) = sql("SELECT password_hash FROM longpoll.accounts")
    with pytest.raises(WrongCredentials):
        await newer.log_in("alice@example.org", "wrong")
    assert sql("SELECT password_hash FROM longpoll.accounts") == [before]
    assert await newer.log_in("alice@example.org", "correct horse") == alice
    (after,) = sql("SELECT password_hash FROM longpoll.accounts")
    assert "t=2" in after[0]
    assert await newer.log_in("alice@example.org", "correct horse") == alice
    assert sql("SELECT password_hash FROM longpoll.accounts") == [after], "once is enough"
    newer.close()
