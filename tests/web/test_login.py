"""Accounts, sessions and tokens: who gets in, by which door, and how they are put out again."""

from __future__ import annotations

import re
from http.cookies import SimpleCookie
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, CookieJar, web
from aiohttp.test_utils import TestClient

from server.storage.embedded.cluster import EmbeddedPostgres
from server.web.handlers.login import safe_target
from tests.support.facts import until
from tests.support.people import Enter, Person, Start
from tests.support.postgres import fresh_database
from tests.support.raw_http import secret_of

Client = TestClient[web.Request, web.Application]
ALICE = {"email": "alice@example.org", "password": "correct horse"}
PAGE = {"Accept": "text/html,*/*"}


async def post(client: Client, url: str, status: int, **options: Any) -> ClientResponse:
    """Send a request with no other cookies than those given; returns the reply, read."""
    reply = await client.post(url, allow_redirects=False, **options)
    await reply.read()
    assert reply.status == status, await reply.text()
    return reply


async def register(client: Client, **account: str) -> ClientResponse:
    return await post(client, "/api/auth/register", 201, json={**ALICE, **account})


def cookie_of(reply: ClientResponse) -> Any:
    """Return the cookie of the session, the only one but for the mark that a browser keeps."""
    set_by_reply = [morsel for header in reply.headers.getall("Set-Cookie") for morsel in SimpleCookie(header).values()]
    (cookie,) = [morsel for morsel in set_by_reply if "known-" not in morsel.key]
    return cookie


async def tasks_status(client: Client, headers: dict[str, str]) -> int:
    """Ask for something that only a signed-in user gets, with these headers and no cookie jar."""
    client.session.cookie_jar.clear()
    async with client.get("/api/generate/tasks", headers=headers) as reply:
        return reply.status


async def test_registering_logs_in(start: Start) -> None:
    client = await start()
    reply = await register(client)
    user = (await reply.json())["user"]
    assert user["email"] == "alice@example.org"
    assert reply.headers["Cache-Control"] == "private, no-store"
    again = await post(client, "/api/auth/login", 200, json=ALICE)
    assert (await again.json())["user"] == user
    async with client.get("/api/generate/tasks") as listed:
        assert listed.status == 200


async def test_an_address_is_registered_once_in_whatever_capitals(start: Start) -> None:
    client = await start()
    await register(client)
    for email in ("alice@example.org", "Alice@Example.ORG", " alice@example.org "):
        reply = await post(client, "/api/auth/register", 409, json={**ALICE, "email": email})
        assert (await reply.json())["code"] == "address_taken"
        assert "Set-Cookie" not in reply.headers
    await post(client, "/api/auth/login", 200, json={**ALICE, "email": "ALICE@example.org"})


async def test_a_wrong_password_and_an_unknown_address_look_the_same(start: Start) -> None:
    client = await start()
    await register(client)
    bodies = set()
    for account in (
        {"password": "wrong horse"},
        {"email": "bob@example.org"},
        {"password": ""},
        {"password": "x" * 1024},
    ):
        reply = await post(client, "/api/auth/login", 401, json={**ALICE, **account})
        assert "Set-Cookie" not in reply.headers
        bodies.add((await reply.text()).replace(reply.headers["X-Request-Id"], "…"))
    assert len(bodies) == 1
    assert "Wrong email address or password" in bodies.pop()


async def test_what_cannot_be_an_account_is_refused(start: Start) -> None:
    client = await start()
    emails = (
        "",
        "alice",
        "a@b",
        "@example.org",
        "alice@",
        "a b@example.org",
        "a@b@example.org",
        "a@example.org\0",
        "a@example.org.",
        "a" * 250 + "@x.org",
    )
    for email in emails:
        reply = await post(client, "/api/auth/register", 400, json={**ALICE, "email": email})
        assert "email must be an address" in await reply.text(), email
    for password, text in (
        ("short", "at least 8"),
        ("", "at least 8"),
        ("x" * 1025, "at most 1024"),
        ("with\0nul!", "at most"),
    ):
        reply = await post(client, "/api/auth/register", 400, json={**ALICE, "password": password})
        assert text in await reply.text()
    for url in ("/api/auth/register", "/api/auth/login"):
        for body, text in (
            ({**ALICE, "admin": True}, "Unknown field: admin. Known are: email, next, password."),
            ({**ALICE, "password": 12345678}, "must be texts"),
            ({**ALICE, "email": None}, "must be texts"),
        ):
            assert text in await (await post(client, url, 400, json=body)).text()
        assert "Unknown field: admin" in await (await post(client, url, 400, data={**ALICE, "admin": "1"})).text()
        urlencoded = {"Content-Type": "application/x-www-form-urlencoded"}
        assert "twice" in await (await post(client, url, 400, data=b"email=a&email=b", headers=urlencoded)).text()
        assert "UTF-8" in await (await post(client, url, 400, data=b"email=\xff", headers=urlencoded)).text()
        await post(client, url, 415, data=b"{}", headers={"Content-Type": "text/plain"})
        await post(client, url, 413, data={"email": "x" * 70_000})
    await register(client, password="пароль 🔑")
    await post(client, "/api/auth/login", 200, json={**ALICE, "password": "пароль 🔑"})


async def test_the_form_goes_on_to_where_the_person_wanted_to_be(start: Start) -> None:
    client = await start()
    reply = await post(client, "/api/auth/register", 303, data={**ALICE, "next": "/tasks?status=failed"}, headers=PAGE)
    assert reply.headers["Location"] == "/tasks?status=failed"
    for target in ("//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", ""):
        reply = await post(client, "/api/auth/login", 303, data={**ALICE, "next": target}, headers=PAGE)
        assert reply.headers["Location"] == "/"


@pytest.mark.parametrize(
    "target",
    [
        None, "", "//evil.example", "///evil.example", "https://evil.example", "/\\evil.example", "/a\\b", "\\\\evil",
        "javascript:alert(1)", "evil", "/\t/evil.example", "/\n/evil", "\t//evil", " //evil", "/\r\nSet-Cookie: a=b", "?x",
    ],
)  # fmt: skip
def test_only_paths_of_this_site_are_gone_on_to(target: str | None) -> None:
    assert safe_target(target) == "/"


def test_a_path_of_this_site_is_kept_whole() -> None:
    for target in ("/", "/tasks", "/tasks/abc?x=1&y=//z#end", "/tasks?next=https://example.org"):
        assert safe_target(target) == target


async def test_a_failed_form_is_shown_again_with_what_was_wrong(start: Start) -> None:
    client = await start()
    await register(client)
    for url, account, status, text in (
        ("/api/auth/login", {"password": "wrong"}, 401, "Wrong email address or password"),
        ("/api/auth/register", {}, 409, "Log in instead"),
        ("/api/auth/register", {"password": "short"}, 400, "at least 8 characters"),
    ):
        reply = await post(client, url, status, data={**ALICE, **account, "next": "/tasks"}, headers=PAGE)
        page = await reply.text()
        assert reply.content_type == "text/html"
        assert text in page
        assert 'value="alice@example.org"' in page
        assert 'value="/tasks"' in page
        assert ALICE["password"] not in page
    evil = {"email": '"><script>x</script>', "password": "x"}
    assert "<script>x" not in await (await post(client, "/api/auth/login", 400, data=evil, headers=PAGE)).text()


async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(start: Start) -> None:
    cookie = cookie_of(await register(await start()))
    assert re.fullmatch("longpoll-[0-9a-f]{8}", cookie.key)
    assert (cookie["httponly"], cookie["samesite"], cookie["path"], cookie["domain"]) == (True, "Lax", "/", "")
    assert not cookie["secure"]
    assert int(cookie["max-age"]) == 14 * 86_400


async def test_over_https_the_cookie_is_bound_to_this_host(start: Start) -> None:
    """Also when it is deleted: browsers ignore a `__Host-` cookie that isn't Secure."""
    client = await start(server={"public_url": "https://pictures.example.org"})
    cookie = cookie_of(await register(client))
    assert re.fullmatch("__Host-longpoll-[0-9a-f]{8}", cookie.key)
    assert (cookie["httponly"], cookie["samesite"], cookie["path"], cookie["domain"]) == (True, "Lax", "/", "")
    assert cookie["secure"] is True
    gone = cookie_of(await post(client, "/api/auth/logout", 204, headers={"Cookie": f"{cookie.key}={cookie.value}"}))
    assert (gone.key, gone.value, gone["max-age"], gone["secure"], gone["path"]) == (
        cookie.key,
        "",
        "0",
        True,
        "/",
    )


async def test_logging_in_changes_the_secret_and_ends_the_old_one(start: Start) -> None:
    client = await start()
    first = cookie_of(await register(client)).value
    second = cookie_of(await post(client, "/api/auth/login", 200, json=ALICE)).value
    assert first != second
    assert await tasks_status(client, {"Cookie": f"longpoll={first}"}) == 401
    assert await tasks_status(client, {"Cookie": f"longpoll={second}"}) == 200
    planted = {"Cookie": "longpoll=planted"}
    third = cookie_of(await post(client, "/api/auth/login", 200, json=ALICE, headers=planted)).value
    assert third not in {first, second, "planted"}


async def test_a_cookie_copied_before_the_logout_is_dead_after_it_everywhere(start: Start) -> None:
    here, there = await start(), await start()
    copied = {"Cookie": f"longpoll={cookie_of(await register(here)).value}"}
    assert await tasks_status(there, copied) == 200  # known there now, in memory
    reply = await post(here, "/api/auth/logout", 204, headers=copied)
    assert cookie_of(reply).value == ""
    assert await tasks_status(here, copied) == 401

    async def is_dead() -> bool:
        return await tasks_status(there, copied) == 401

    await until(is_dead, seconds=5)


async def test_two_sites_on_one_host_leave_each_others_logins_alone(
    start: Start, postgres: EmbeddedPostgres, template: str
) -> None:
    """Browsers keep cookies apart by host and name, and look at no port."""
    here = await start()
    for other_dsn in fresh_database(postgres.dsn, template):
        there = await start(other_dsn)
        jar = CookieJar(unsafe=True)
        async with ClientSession(cookie_jar=jar) as browser:

            async def send(site: Client, url: str) -> int:
                async with browser.post(site.make_url(url), json=None if "logout" in url else ALICE) as reply:
                    return reply.status

            async def is_logged_in(site: Client) -> bool:
                async with browser.get(site.make_url("/api/generate/tasks")) as reply:
                    return reply.status == 200

            for site in (here, there):
                assert await send(site, "/api/auth/register") == 201
            assert await is_logged_in(here)
            assert await is_logged_in(there)
            assert await send(here, "/api/auth/login") == 200
            assert await is_logged_in(there)
            assert await send(here, "/api/auth/logout") == 204
            assert not await is_logged_in(here)
            assert await is_logged_in(there)
            assert len([each for each in jar if each.key.startswith("longpoll")]) == 1
        await there.close()


async def test_a_login_from_before_the_cookie_had_the_sites_name_goes_on(start: Start, enter: Enter) -> None:
    alice = await enter(await start())  # with the bare name
    async with alice.http.post("/api/auth/logout") as reply:
        gone = cookie_of(reply)
        assert (gone.key, gone.value) == ("longpoll", "")
    await post(alice.http, "/api/auth/register", 201, json={**ALICE, "email": "carol@example.org"})
    for planted in ("x", secret_of_jar(alice)):  # the bare one counts for nothing beside our own
        alice.http.session.cookie_jar.update_cookies({"longpoll": planted}, alice.http.make_url("/"))
        async with alice.http.get("/api/generate/tasks") as reply:
            assert reply.status == 200


def secret_of_jar(person: Person) -> str:
    """Return the secret of a cookie that a login has set."""
    (secret,) = [each.value for each in person.http.session.cookie_jar if each.key.startswith("longpoll-")]
    return secret


async def test_logging_out_of_nothing_does_nothing(start: Start) -> None:
    client = await start()
    reply = await post(client, "/api/auth/logout", 204)
    assert "Set-Cookie" not in reply.headers
    reply = await post(client, "/api/auth/logout", 303, headers=PAGE)
    assert reply.headers["Location"] == "/login"


async def test_a_logout_ends_one_session_and_not_the_others(start: Start) -> None:
    client = await start()
    phone = {"Cookie": f"longpoll={cookie_of(await register(client)).value}"}
    client.session.cookie_jar.clear()
    desk = {"Cookie": f"longpoll={cookie_of(await post(client, '/api/auth/login', 200, json=ALICE)).value}"}
    client.session.cookie_jar.clear()
    await post(client, "/api/auth/logout", 204, headers=desk)
    assert await tasks_status(client, desk) == 401
    assert await tasks_status(client, phone) == 200


async def test_an_expired_session_is_none(start: Start, enter: Enter, sql: Any) -> None:
    client = await start()
    alice = await enter(client)
    sql("UPDATE longpoll.sessions SET expires_at = now() - interval '1 second'")
    assert await tasks_status(client, {"Cookie": f"longpoll={secret_of(alice)}"}) == 401
