"""Which passwords are taken, and that the same one always opens, however it was typed."""

from __future__ import annotations

import unicodedata

import pytest

from server.errors import BadRequest, WrongCredentials
from server.storage import passwords
from server.storage.database import Database
from server.storage.users import Users
from server.web import keys
from tests.storage import test_users
from tests.support import rows
from tests.support.people import Start
from tests.support.postgres import Sql
from tests.web.test_login import ALICE, PAGE, post

shared_dsn, dsn = rows.shared_dsn, rows.dsn
database, hasher, users = test_users.database, test_users.hasher, test_users.users


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("short", "at least 8 characters"),
        ("e\u0301" * 4, "at least 8 characters"),  # four that are written as eight
        (" " * 8, "spaces alone"),
        ("\u00a0\u2003\u3000" * 3, "spaces alone"),
        ("\u200b\u2060\ufeff\u200d" * 2, "spaces alone"),
        ("alice@example.org", "your own email address"),
        ("ALICE@Example.ORG", "your own email address"),
        (" alice@example.org ", "your own email address"),
        ("password", "most common"),
        ("PassWord1", "most common"),
        ("12345678", "most common"),
        ("qwertyuiop", "most common"),
        ("iloveyou", "most common"),
        ("p\uff41ssword", "most common"),  # a full-width a
        ("x" * 1025, "at most 1024"),
        ("with\0nul!", "at most 1024"),
    ],
)
def test_what_anybody_would_try_is_refused(password: str, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        passwords.refuse_weak(password, "alice@example.org")


def test_the_name_before_the_at_sign_is_no_password() -> None:
    with pytest.raises(BadRequest, match="your own email address"):
        passwords.refuse_weak("Alexandra", "alexandra@example.org")


@pytest.mark.parametrize(
    "password", ["correct horse", "пароль 🔑 и ещё", "        x", "alice@example.org and more", "ﷺ" * 8, "x" * 1024]
)
def test_anything_else_is_taken(password: str) -> None:
    passwords.refuse_weak(password, "alice@example.org")


def test_the_list_holds_what_could_be_a_password_at_all() -> None:
    """Each in the form that it is compared in, once, and long enough to be refused for nothing else."""
    listed = passwords._common()
    assert 5000 < len(listed) < 10_000
    for each in listed:
        assert len(each) >= passwords.MIN_PASSWORD
        assert each == passwords.normalize(each).casefold() == each.strip()


async def test_both_forms_refuse_it_in_a_sentence(start: Start) -> None:
    client = await start()
    weak = {**ALICE, "password": "password123"}
    reply = await post(client, "/api/auth/register", 400, json=weak)
    assert "most common" in (await reply.json())["detail"]
    reply = await post(client, "/api/auth/register", 400, data=weak, headers=PAGE)
    assert "most common" in await reply.text()
    assert "password123" not in await reply.text()


async def test_whoever_has_a_weak_password_from_before_can_log_in(start: Start, sql: Sql) -> None:
    client = await start()
    await client.server.app[keys.USERS].register("alice@example.org", "password")  # type: ignore[attr-defined]
    await post(client, "/api/auth/login", 200, json={**ALICE, "password": "password"})


# However it is typed --------------------------------------------------------------------------------------------------

CAFE = "café au lait ½"


async def test_composed_and_decomposed_letters_are_the_same_password(users: Users) -> None:
    forms = [unicodedata.normalize(form, CAFE) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    assert len(set(forms)) == 4
    for number, first in enumerate(forms):
        alice = await users.register(f"a{number}@example.org", first)
        for form in forms:
            assert await users.log_in(f"a{number}@example.org", form) == alice
        with pytest.raises(WrongCredentials):
            await users.log_in(f"a{number}@example.org", "cafe au lait ½")


async def test_a_hash_from_before_goes_on_and_is_renewed(users: Users, hasher: test_users.Hasher, sql: Sql) -> None:
    """It was made of what was typed, as it was typed."""
    typed = unicodedata.normalize("NFD", CAFE)
    before = hasher.hash(typed)
    sql("SELECT longpoll.register_account('alice@example.org', %s)", (before,))
    with pytest.raises(WrongCredentials):
        await users.log_in("alice@example.org", "another one")
    await users.log_in("alice@example.org", typed)
    ((after,),) = sql("SELECT password_hash FROM longpoll.accounts")
    assert after != before
    await users.log_in("alice@example.org", unicodedata.normalize("NFC", CAFE))
    assert sql("SELECT password_hash FROM longpoll.accounts") == [(after,)], "once is enough"


async def test_a_plain_password_is_tried_once(users: Users, hasher: test_users.Hasher) -> None:
    """And one that has two forms is tried twice, whether there is an account or not."""
    await users.register("alice@example.org", "correct horse")
    for password, times in (("wrong horse", 1), (CAFE, 2)):
        for email in ("alice@example.org", "nobody@example.org"):
            hasher.verified = 0
            with pytest.raises(WrongCredentials):
                await users.log_in(email, password)
            assert hasher.verified == times


async def test_renewing_a_hash_does_not_undo_a_change_of_the_password(database: Database, sql: Sql) -> None:
    """Somebody logs in with the old password at the moment in which it is changed."""
    older = Users(database, test_users.Hasher())
    await older.register("alice@example.org", "correct horse")
    account = await older.find("alice@example.org")
    sql("UPDATE longpoll.accounts SET password_hash = 'another'")
    newer = Users(database, test_users.Hasher(time_cost=2))
    await newer.check(account, "correct horse")
    assert sql("SELECT password_hash FROM longpoll.accounts") == [("another",)]
    older.close()
    newer.close()


# Addresses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "email",
    [
        "a\u202egro.elpmaxe@ecila.example", "a\u200bb@example.org", "a\u00ad@example.org", "a\u200e@example.org",
        "a\u2066b\u2069@example.org", "a\ufeff@example.org", "a\x7f@example.org", "a\x85@example.org", "a\ue000@example.org",
        "a\u2028@example.org", "a@exam\u200dple.org", "a\U000e0041@example.org", "a\ufdd0@example.org",
    ],
)  # fmt: skip
async def test_an_address_with_what_cannot_be_seen_is_refused(start: Start, email: str) -> None:
    """Control characters, direction marks, zero-width ones, private ones: two addresses must not look like one."""
    client = await start()
    reply = await post(client, "/api/auth/register", 400, json={**ALICE, "email": email})
    assert "email must be an address" in (await reply.json())["detail"]


async def test_an_address_in_any_script_is_taken(start: Start) -> None:
    client = await start()
    for email in ("пётр@example.org", "josé@example.org", "用户@例子.广告", "o'neil+x@example.org"):
        await post(client, "/api/auth/register", 201, json={**ALICE, "email": email})
