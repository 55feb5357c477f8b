"""Passwords that are guessed: slowed down by account and by network, without locking the owner out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server import config
from server.errors import TooManyRequests
from server.web import guesses, keys
from server.web.guesses import Guesses
from tests.support.people import Start
from tests.support.postgres import Sql
from tests.support.raw_http import connect
from tests.web.test_login import ALICE, PAGE, Client, register

LIMITED = {"limits": {"enabled": True, "login": "1000 per minute", "register": "1000 per minute"}}
BEHIND_A_PROXY: dict[str, Any] = {**LIMITED, "server": {"trusted_proxies": ("127.0.0.1",)}}


async def guess(client: Client, address: str, password: str = "wrong horse", **options: Any) -> int:
    """Try to log in from there; returns the status."""
    account = {**ALICE, "password": password, **options.pop("account", {})}
    headers = {"X-Forwarded-For": address, **options.pop("headers", {})}
    async with client.post("/api/auth/login", json=account, headers=headers, **options) as reply:
        if reply.status == 429:
            assert int(reply.headers["Retry-After"]) >= 1
            assert "where you have been logged in before" in await reply.text()
        return reply.status


def addresses(count: int) -> list[str]:
    return [f"198.51.100.{number}" for number in range(1, count + 1)]


async def register_from(client: Client, address: str) -> None:
    async with client.post("/api/auth/register", json=ALICE, headers={"X-Forwarded-For": address}) as reply:
        assert reply.status == 201


@pytest.mark.parametrize("at_once", [False, True])
async def test_sixty_guesses_from_sixty_addresses_are_slowed_down(start: Start, *, at_once: bool) -> None:
    """Also if they come all at once; and an account that doesn't exist shows nothing else."""
    client = await start(**BEHIND_A_PROXY)
    await register_from(client, "203.0.113.9")
    client.session.cookie_jar.clear()
    for account in ({}, {"email": "nobody@example.org"}):
        tries = [guess(client, address, account=account) for address in addresses(60)]
        seen = await asyncio.gather(*tries) if at_once else [await each for each in tries]
        assert (seen.count(401), seen.count(429)) == (10, 50)
    assert await guess(client, "198.51.100.99", ALICE["password"]) == 429, (
        "a stranger that guesses right is one too many"
    )


async def test_the_owner_is_not_locked_out_at_home(start: Start) -> None:
    """Neither is the browser that was logged in before, wherever it is now."""
    client = await start(**BEHIND_A_PROXY)
    await register_from(client, "203.0.113.9")
    mark = {
        "Cookie": "; ".join(f"{each.key}={each.value}" for each in client.session.cookie_jar if "known" in each.key)
    }
    client.session.cookie_jar.clear()
    for address in addresses(12):
        await guess(client, address)
    assert await guess(client, "192.0.2.1", ALICE["password"]) == 429
    assert await guess(client, "203.0.113.9", ALICE["password"]) == 200
    client.session.cookie_jar.clear()
    assert await guess(client, "192.0.2.1", ALICE["password"], headers=mark) == 200
    client.session.cookie_jar.clear()
    assert await guess(client, "192.0.2.1", ALICE["password"]) == 200, "a network that is known now"


async def test_after_a_restart_the_browser_is_known_still(start: Start) -> None:
    """What it shows stands in its cookie, and needs no memory but the account's own."""
    client = await start(**BEHIND_A_PROXY)
    await register_from(client, "203.0.113.9")
    mark = {
        "Cookie": "; ".join(f"{each.key}={each.value}" for each in client.session.cookie_jar if "known" in each.key)
    }
    again = await start(**BEHIND_A_PROXY)
    for address in addresses(12):
        await guess(again, address)
    assert await guess(again, "203.0.113.9", ALICE["password"]) == 429
    assert await guess(again, "203.0.113.9", ALICE["password"], headers=mark) == 200


async def test_where_the_owner_has_been_guesses_are_counted_too(start: Start) -> None:
    client = await start(**BEHIND_A_PROXY)
    await register_from(client, "203.0.113.9")
    client.session.cookie_jar.clear()
    assert [await guess(client, "203.0.113.9") for _ in range(12)] == [401] * 10 + [429] * 2
    assert await guess(client, "198.51.100.1") == 401, "and apart from strangers"


async def test_a_mark_of_another_account_or_of_none_is_none(start: Start) -> None:
    client = await start(**BEHIND_A_PROXY)
    await register_from(client, "203.0.113.9")
    mallory = {"X-Forwarded-For": "198.51.100.1"}
    account = {**ALICE, "email": "mallory@example.org"}
    client.session.cookie_jar.clear()
    async with client.post("/api/auth/register", json=account, headers=mallory) as reply:
        name, mark = next((name, each.value) for name, each in reply.cookies.items() if name.startswith("known-"))
    client.session.cookie_jar.clear()
    for address in addresses(12):
        await guess(client, address)
    for value in (mark, "", ".", "a" * 64, "0" * 64 + ".x", "é" * 9):
        headers = {"Cookie": f"{name}={value}"}
        assert await guess(client, "192.0.2.1", ALICE["password"], headers=headers) == 429


async def test_the_mark_is_out_of_reach_and_outlives_the_session(start: Start) -> None:
    client = await start(server={"public_url": "https://pictures.example.org"})
    first = next(each for each in (await register(client)).cookies.values() if "known-" in each.key)
    assert first.key.startswith("__Host-known-longpoll-")
    assert (first["secure"], first["httponly"], first["samesite"], first["path"]) == (True, True, "Lax", "/")
    assert int(first["max-age"]) == 400 * 86_400
    header = {"Cookie": f"{first.key}={first.value}"}
    async with client.post("/api/auth/login", json=ALICE, headers=header) as reply:
        assert reply.status == 200
        assert first.key not in reply.cookies, "it has it already"
    async with client.post("/api/auth/register", json={**ALICE, "email": "b@example.org"}, headers=header) as reply:
        marks = reply.cookies[first.key].value.split(".")
        assert (len(marks), marks[1]) == (2, first.value)
    junk = {"Cookie": f"{first.key}={'.'.join(['x', *('0123456789abcdef'[n] * 64 for n in range(9))])}"}
    async with client.post("/api/auth/login", json=ALICE, headers=junk) as reply:
        assert len(reply.cookies[first.key].value.split(".")) == 5


async def test_guesses_are_not_limited_if_limits_are_off(start: Start) -> None:
    client = await start(server={"trusted_proxies": ("127.0.0.1",)})
    assert {await guess(client, address) for address in addresses(15)} == {401}


async def test_an_address_in_other_capitals_is_the_same_account(start: Start) -> None:
    client = await start(**BEHIND_A_PROXY)
    for email in ("alice@example.org", "nobody@example.org"):
        if email == ALICE["email"]:
            await register_from(client, "203.0.113.9")
            client.session.cookie_jar.clear()
        seen = [
            await guess(client, address, account={"email": email if number % 2 else email.upper()})
            for number, address in enumerate(addresses(12))
        ]
        assert seen == [401] * 10 + [429] * 2


async def test_ipv6_of_one_network_is_one_client(start: Start) -> None:
    client = await start(limits={"enabled": True, "login": "3 per minute"}, server={"trusted_proxies": ("127.0.0.1",)})
    seen = []
    for number in range(5):
        address = f"[2001:db8:1:2::{number + 1}]:4711"
        async with client.post("/api/auth/login", json=ALICE, headers={"X-Forwarded-For": address}) as reply:
            seen.append(reply.status)
    assert seen == [401] * 3 + [429] * 2
    for address in ("2001:db8:1:3::1", "198.51.100.1"):
        async with client.post("/api/auth/login", json=ALICE, headers={"X-Forwarded-For": address}) as reply:
            assert reply.status == 401


async def test_bytes_that_are_no_text_in_these_headers_are_nothing_special(start: Start) -> None:
    client = await start(**BEHIND_A_PROXY)
    seen = []
    for junk in (b"\xff\xfe", b"\xed\xb2\x80", b"1.2.3.4:\xff", b"[\xff"):
        head = b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
        headers = b"".join(
            name + junk + b"\r\n" for name in (b"X-Forwarded-For: ", b"X-Forwarded-Proto: ", b"Origin: ")
        )
        for block in (headers, headers.replace(b"Origin", b"X-Forwarded-Host")):
            async with connect(str(client.host), client.port or 0) as connection:
                await connection.send(head + block + b"\r\n{}")
                seen.append((await connection.reply()).status)
    assert set(seen) == {400, 403}
    assert client.server.app[keys.METRICS].value("longpoll_request_crashes_total") == 0  # type: ignore[attr-defined]


# The counting itself --------------------------------------------------------------------------------------------------


def make(rule: str = "3 per hour") -> Guesses:
    return Guesses(config.LimitSettings(guesses=rule))


def test_what_was_right_is_not_counted() -> None:
    counted = make()
    for _ in range(10):
        bucket = counted.bucket("alice", "here", marked=True)
        counted.begin(bucket)
        counted.was_right(bucket, "alice", "here")
    assert counted._counts == {}


def test_the_count_begins_anew_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(guesses.time, "monotonic", lambda: now[0])
    counted = make()
    bucket = counted.bucket("alice", "there", marked=False)
    for _ in range(3):
        counted.begin(bucket)
    with pytest.raises(TooManyRequests) as refused:
        counted.begin(bucket)
    assert refused.value.retry_after is not None
    assert 3600 <= refused.value.retry_after <= 3600 * 1.25
    now[0] += 3600
    counted.begin(bucket)


def test_memory_is_bounded_whatever_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guesses, "_MOST_COUNTED", 10)
    monkeypatch.setattr(guesses, "_MOST_KNOWN", 10)
    counted = make()
    for number in range(100):
        account = f"{'x' * 10_000}{number}"
        counted.begin(counted.bucket(account, "there", marked=False))
        counted.remember(account, "there")
    assert len(counted._counts) == len(counted._known) == 10
    assert {len(key) for key in (*counted._counts, *counted._known)} == {16}


async def test_a_person_is_told_on_the_form(start: Start, sql: Sql) -> None:
    client = await start(**BEHIND_A_PROXY)
    for address in addresses(11):
        async with client.post(
            "/api/auth/login", data={**ALICE, "password": "wrong"}, headers={**PAGE, "X-Forwarded-For": address}
        ) as reply:
            text = await reply.text()
    assert reply.status == 429
    assert "where you have been logged in before" in text
    assert 'value="alice@example.org"' in text
