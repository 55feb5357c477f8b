"""What people do with their account, by the API and by the plain forms of its page."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.storage.images import FileImages
from server.web import keys
from tests.support.facts import until
from tests.support.people import Person, Start
from tests.support.postgres import Sql
from tests.web.test_login import ALICE, PAGE, Client, cookie_of, post, register, tasks_status
from tests.web.test_revocations import ask, held, is_refused
from tests.web.test_tokens import bearer

NEW = "a better horse"


class Home:
    """Somebody with a password, and the same person elsewhere."""

    def __init__(self, client: Client, here: str, elsewhere: str) -> None:
        self.client = client
        self.here = {"Cookie": f"longpoll={here}"}
        self.elsewhere = {"Cookie": f"longpoll={elsewhere}"}

    async def api(self, method: str, url: str, status: int, **options: Any) -> Any:
        """Ask the API from here."""
        self.client.session.cookie_jar.clear()
        headers = {**self.here, **options.pop("headers", {})}
        async with self.client.request(method, url, headers=headers, allow_redirects=False, **options) as reply:
            assert reply.status == status, await reply.text()
            return await reply.json() if reply.content_type.endswith("json") else reply

    async def form(self, status: int, **fields: str) -> Any:
        """Send a form of the page from here; returns the reply and its text."""
        self.client.session.cookie_jar.clear()
        headers = {**self.here, **PAGE}
        async with self.client.post("/account", data=fields, headers=headers, allow_redirects=False) as reply:
            text = html.unescape(await reply.text())
            assert reply.status == status, text
            return reply, text

    async def page(self, url: str = "/account") -> str:
        self.client.session.cookie_jar.clear()
        async with self.client.get(url, headers={**self.here, **PAGE}, allow_redirects=False) as reply:
            assert reply.status == 200
            return await reply.text()

    async def sessions(self) -> Any:
        return (await self.api("GET", "/api/auth/sessions", 200))["items"]

    async def alive(self) -> tuple[bool, bool]:
        """Whether the login here and the one elsewhere are alive."""
        status = [await tasks_status(self.client, headers) for headers in (self.here, self.elsewhere)]
        return status[0] == 200, status[1] == 200


@pytest.fixture
async def home(start: Start) -> Home:
    client = await start()
    here = cookie_of(await register(client)).value
    client.session.cookie_jar.clear()
    firefox = {"User-Agent": "Firefox <b>on</b> Linux"}
    elsewhere = cookie_of(await post(client, "/api/auth/login", 200, json=ALICE, headers=firefox)).value
    return Home(client, here, elsewhere)


# The password ---------------------------------------------------------------------------------------------------------


async def by_api(home: Home, current: str, new: str, status: int) -> str:
    fields = {"currentPassword": current, "newPassword": new}
    told = await home.api("POST", "/api/auth/password", 204 if status == 303 else status, json=fields)
    return str(told)


async def by_form(home: Home, current: str, new: str, status: int) -> str:
    _, text = await home.form(status, action="password", currentPassword=current, newPassword=new)
    return str(text)


Change = Callable[[Home, str, str, int], Awaitable[str]]


@pytest.mark.parametrize("change", [by_api, by_form])
async def test_changing_the_password_ends_the_sessions_elsewhere(home: Home, change: Change) -> None:
    await change(home, ALICE["password"], NEW, 303)
    assert await home.alive() == (True, False)
    await post(home.client, "/api/auth/login", 401, json=ALICE)
    await post(home.client, "/api/auth/login", 200, json={**ALICE, "password": NEW})


@pytest.mark.parametrize("change", [by_api, by_form])
async def test_the_password_is_changed_by_nobody_who_does_not_know_it(home: Home, change: Change) -> None:
    for current, new, status, why in (
        ("wrong horse", NEW, 403, "currentPassword is not the password of this account."),
        ("", NEW, 403, "currentPassword is not"),
        (ALICE["password"], "short", 400, "newPassword must have at least 8 characters."),
        (ALICE["password"], "password", 400, "newPassword is one of the most common ones"),
        (ALICE["password"], "alice@example.org", 400, "newPassword must not be your own"),
        (ALICE["password"], ALICE["password"], 400, "newPassword is the one that you have already."),
        ("x" * 1025, NEW, 400, "currentPassword may have at most"),
    ):
        assert why in await change(home, current, new, status)
    assert await home.alive() == (True, True)
    await post(home.client, "/api/auth/login", 200, json=ALICE)


async def test_the_present_password_is_not_guessed_by_whoever_has_found_a_session(start: Start) -> None:
    client = await start(limits={"enabled": True, "guesses": "3 per hour", "login": "99 per minute"})
    home = Home(client, cookie_of(await register(client)).value, "")
    for status in (403, 403, 403, 429):
        fields = {"currentPassword": "wrong horse", "newPassword": NEW}
        await home.api("POST", "/api/auth/password", status, json=fields)
    reply, _ = await home.form(429, action="delete-account", currentPassword="wrong horse")
    assert int(reply.headers["Retry-After"]) > 60


# Where somebody is logged in ------------------------------------------------------------------------------------------


async def test_sessions_are_listed_without_anything_that_opens(home: Home, sql: Sql) -> None:
    elsewhere, here = sorted(await home.sessions(), key=lambda each: bool(each["current"]))
    assert (here["current"], elsewhere["current"]) == (True, False)
    assert elsewhere["agent"] == "Firefox <b>on</b> Linux"
    text = str([here, elsewhere]) + await home.page()
    assert "Firefox &lt;b&gt;on&lt;/b&gt; Linux" in text
    for secret in (home.here["Cookie"], home.elsewhere["Cookie"]):
        assert secret.partition("=")[2] not in text
    for (key,) in sql("SELECT encode(secret_hash, 'hex') FROM longpoll.sessions"):
        assert key not in text


async def test_what_a_browser_calls_itself_is_kept_as_text(start: Start, sql: Sql) -> None:
    client = await start()
    await register(client)
    for agent in (b"x" * 8000, b"\xff\xfe\x80", b"a\tb", "\u202eevil".encode(), b""):
        client.session.cookie_jar.clear()
        headers = {"User-Agent": agent.decode("utf-8", "surrogateescape")}
        await post(client, "/api/auth/login", 200, json=ALICE, headers=headers)
    kept = [agent for (agent,) in sql("SELECT agent FROM longpoll.sessions ORDER BY created_at")]
    assert (len(kept[1]), kept[3], kept[4], kept[5]) == (200, "a b", "evil", "")
    assert all(agent.isprintable() for agent in kept)


@pytest.mark.parametrize("by_page", [False, True])
async def test_a_session_elsewhere_is_ended(home: Home, *, by_page: bool) -> None:
    (elsewhere,) = [each["id"] for each in await home.sessions() if not each["current"]]
    for given, found in ((elsewhere, True), (elsewhere, False), ("x", False), ("%00", False)):
        if by_page:
            reply, text = await home.form(303 if found else 404, action="end-session", id=given)
            assert found or "You have no such session." in text
            assert not found or "That session has ended." in await home.page(reply.headers["Location"])
        else:
            await home.api("DELETE", f"/api/auth/sessions/{given}", 204 if found else 404)
    assert await home.alive() == (True, False)


async def test_another_users_session_is_none(home: Home) -> None:
    theirs = [each["id"] for each in await home.sessions()]
    account = {**ALICE, "email": "bob@example.org"}
    home.client.session.cookie_jar.clear()
    bob = Home(home.client, cookie_of(await post(home.client, "/api/auth/register", 201, json=account)).value, "")
    for session_id in theirs:
        await bob.api("DELETE", f"/api/auth/sessions/{session_id}", 404)
        await bob.form(404, action="end-session", id=session_id)
        await bob.form(404, action="revoke-token", id=session_id)
    assert len(await bob.sessions()) == 1
    assert await home.alive() == (True, True)


@pytest.mark.parametrize("by_page", [False, True])
async def test_logging_out_everywhere_ends_this_session_too(home: Home, *, by_page: bool) -> None:
    reply = (await home.form(303, action="log-out-everywhere"))[0] if by_page else None
    if reply is None:
        reply = await home.api("POST", "/api/auth/logout_everywhere", 204)
    else:
        assert reply.headers["Location"] == "/login"
    assert cookie_of(reply).value == ""
    assert await home.alive() == (False, False)


# Leaving --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_page", [False, True])
async def test_an_account_is_deleted_with_all_that_is_its_own(home: Home, sql: Sql, *, by_page: bool) -> None:
    """And with nothing that is anybody else's."""
    token = (await home.api("POST", "/api/auth/tokens", 201, json={}))["token"]
    account = {**ALICE, "email": "bob@example.org"}
    bob = {"Cookie": f"longpoll={cookie_of(await post(home.client, '/api/auth/register', 201, json=account)).value}"}
    images: FileImages = home.client.server.app[keys.IMAGES]  # type: ignore[attr-defined]
    made = {}
    for name, headers in (("alice", home.here), ("bob", bob)):
        home.client.session.cookie_jar.clear()
        reply = await post(home.client, "/api/generate", 202, json={"prompt": "x"}, headers=headers)
        made[name] = (await reply.json())["taskId"]
        for file in (f"{made[name]}.1.png", f"{made[name]}.reference.png"):
            await images.put(file, b"\x89PNG")
    if by_page:
        reply, _ = await home.form(303, action="delete-account", currentPassword=ALICE["password"])
        assert reply.headers["Location"] == "/register"
    else:
        reply = await home.api("POST", "/api/auth/delete_account", 204, json={"currentPassword": ALICE["password"]})
    assert cookie_of(reply).value == ""
    assert await home.alive() == (False, False)
    assert await tasks_status(home.client, bearer(token)) == 401
    assert await tasks_status(home.client, bob) == 200
    left = "SELECT {} FROM {} ORDER BY 1"
    assert sql(left.format("email", "auth.users")) == [("bob@example.org",)]
    assert sql(left.format("email", "longpoll.accounts")) == [("bob@example.org",)]
    assert sql(left.format("task_id", "public.image_generations")) == [(made["bob"],)]
    assert sql(left.format("count(*)", "longpoll.tokens")) == [(0,)]
    assert sql(left.format("count(*)", "longpoll.sessions")) == [(1,)]
    files = sorted(path.name for path in images.folder.glob("??/*"))
    assert files == [f"{made['bob']}.1.png", f"{made['bob']}.reference.png"]
    await post(home.client, "/api/auth/login", 401, json=ALICE)
    await post(home.client, "/api/auth/register", 201, json=ALICE)


async def test_an_account_is_deleted_by_nobody_who_does_not_know_the_password(home: Home, sql: Sql) -> None:
    for current in ("", "wrong horse"):
        await home.api("POST", "/api/auth/delete_account", 403, json={"currentPassword": current})
        _, text = await home.form(403, action="delete-account", currentPassword=current)
        assert "currentPassword is not the password of this account." in text
    await home.api("POST", "/api/auth/delete_account", 403, json={})
    assert sql("SELECT count(*) FROM longpoll.accounts") == [(1,)]
    assert await home.alive() == (True, True)


@pytest.mark.parametrize("leave", [True, False])
async def test_whatever_is_held_elsewhere_ends_at_once(home: Home, *, leave: bool) -> None:
    """By deleting the account, or changing its password."""
    reply = await post(home.client, "/api/generate", 202, json={"prompt": "x"}, headers=home.here)
    task_id = (await reply.json())["taskId"]
    home.client.session.cookie_jar.clear()
    user: Any = (await (await post(home.client, "/api/auth/login", 200, json=ALICE)).json())["user"]
    person = Person(home.client, user)
    home.client.session.cookie_jar.clear()
    polls = await held(person, *(ask(person, way, task_id, home.elsewhere) for way in ("parked", "batch")))
    fields = {"currentPassword": ALICE["password"]} | ({} if leave else {"newPassword": NEW})
    await home.api("POST", "/api/auth/delete_account" if leave else "/api/auth/password", 204, json=fields)
    for poll in polls:
        status, text = await poll
        assert (leave and status == 410) or is_refused((status, text))


async def test_a_create_that_is_under_way_when_its_account_goes_is_refused(
    home: Home, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = home.client.server.app[keys.TASKS]  # type: ignore[attr-defined]
    real_create = tasks.create

    async def create(task: Any) -> Any:
        sql("DELETE FROM auth.users")
        return await real_create(task)

    monkeypatch.setattr(tasks, "create", create)
    reply = await post(home.client, "/api/generate", 401, json={"prompt": "x"}, headers=home.here)
    assert (await reply.json())["code"] == "not_signed_in"


# Who may --------------------------------------------------------------------------------------------------------------


async def test_a_token_does_nothing_with_the_account(home: Home, sql: Sql) -> None:
    """Not even one that may write: who has found it must not be able to take the account over."""
    header = bearer((await home.api("POST", "/api/auth/tokens", 201, json={"scope": "write"}))["token"])
    for method, url in (
        ("GET", "/api/auth/sessions"), ("DELETE", f"/api/auth/sessions/{(await home.sessions())[0]['id']}"),
        ("POST", "/api/auth/password"), ("POST", "/api/auth/delete_account"), ("POST", "/api/auth/logout_everywhere"),
        ("GET", "/account"), ("POST", "/account"),
    ):  # fmt: skip
        home.client.session.cookie_jar.clear()
        async with home.client.request(method, url, headers=header) as reply:
            assert (reply.status, (await reply.json())["code"]) == (403, "session_required"), url
    assert await home.alive() == (True, True)


async def test_a_page_of_another_user_does_nothing_with_the_account(home: Home) -> None:
    """It is left open in a tab while somebody else logs in; what its buttons meant was the other account."""
    page = await home.page()
    assert page.count('name="action"') == page.count('name="user"') > 4
    nobody = "00000000-0000-0000-0000-000000000000"
    for action in ("log-out-everywhere", "make-token", "delete-account"):
        fields = {"action": action, "user": nobody, "currentPassword": ALICE["password"]}
        _, text = await home.form(409, **fields)
        assert "nothing was done" in text
    assert await home.alive() == (True, True)


async def test_another_sites_page_does_nothing_with_the_account(home: Home) -> None:
    for headers in (
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        for url in ("/account", "/api/auth/logout_everywhere", "/api/auth/delete_account", "/api/auth/password"):
            await home.api("POST", url, 403, data={"action": "log-out-everywhere"}, headers=headers)
    assert await home.alive() == (True, True)


# The page -------------------------------------------------------------------------------------------------------------


async def test_a_token_is_made_shown_once_and_revoked_on_the_page(home: Home) -> None:
    _, text = await home.form(200, action="make-token", name="<i>cron</i>", scope="read", expiresInDays="30")
    (secret,) = re.findall(r'class="secret">(lp_[^<]+)<', text)
    assert await tasks_status(home.client, bearer(secret)) == 200
    page = await home.page()
    assert secret not in page
    assert "<i>cron" not in page
    assert "reads only" in page
    (token,) = (await home.api("GET", "/api/auth/tokens", 200))["items"]
    assert f'value="{token["id"]}"' in page
    reply, _ = await home.form(303, action="revoke-token", id=token["id"])
    assert "The token is revoked." in await home.page(reply.headers["Location"])
    assert await tasks_status(home.client, bearer(secret)) == 401


async def test_a_token_without_an_end_is_made_on_the_page(home: Home) -> None:
    await home.form(200, action="make-token", name="for ever", scope="write", expiresInDays="")
    (token,) = (await home.api("GET", "/api/auth/tokens", 200))["items"]
    assert (token["expiresAt"], token["scope"]) == (None, "write")
    assert "without an end" in await home.page()


async def test_the_pages_list_of_tokens_goes_on_to_the_last(home: Home, sql: Sql) -> None:
    sql(
        "INSERT INTO longpoll.tokens (secret_hash, user_id, name, created_at)"
        " SELECT sha256(number::text::bytea), user_id, 'script ' || number, now() - number * interval '1 minute'"
        "   FROM longpoll.accounts, generate_series(1, 45) AS number"
    )
    url, seen = "/account", []
    while url:
        page = await home.page(url)
        seen += re.findall(r"<strong>script (\d+)<", page)
        url = html.unescape("".join(re.findall(r'href="(/account\?cursor=[^"]+)"', page)))
    assert seen == [str(number) for number in range(1, 46)]


async def test_what_a_form_cannot_mean_is_said_on_the_page(home: Home) -> None:
    for fields, why in (
        ({}, "action must be one of"),
        ({"action": "dance"}, "action must be one of"),
        ({"action": "make-token", "name": "x", "expiresInDays": "1e3"}, "expiresInDays must be"),
        ({"action": "make-token", "name": "x", "expiresInDays": "99999"}, "expiresInDays must be"),
        ({"action": "make-token", "name": "x", "scope": "all"}, "scope must be one of"),
        ({"action": "make-token", "name": " "}, "name must be"),
        ({"action": "password", "colour": "red"}, "Unknown field: colour"),
    ):
        _, text = await home.form(400, **fields)
        assert why in text
        assert "Where you are logged in" in text
    assert "evil" not in await home.page("/account?done=evil")


async def test_strangers_are_sent_to_the_login(start: Start) -> None:
    client = await start()
    async with client.get("/account", headers=PAGE, allow_redirects=False) as reply:
        assert (reply.status, reply.headers["Location"]) == (303, "/login?next=%2Faccount")


async def test_an_account_goes_though_its_pictures_cannot_be_deleted_just_now(home: Home, sql: Sql) -> None:
    """Its rows are gone by then: to say that it failed would be untrue. The sweep finds the files later."""
    images: FileImages = home.client.server.app[keys.IMAGES]  # type: ignore[attr-defined]
    for _ in range(2):
        home.client.session.cookie_jar.clear()
        reply = await post(home.client, "/api/generate", 202, json={"prompt": "x"}, headers=home.here)
        await images.put(f"{(await reply.json())['taskId']}.1.png", b"\x89PNG")
    stuck = next(images.folder.glob("??/*.png"))
    stuck.unlink()
    stuck.mkdir()  # what can't be unlinked, whoever asks
    body = {"currentPassword": ALICE["password"]}
    reply = await home.api("POST", "/api/auth/delete_account", 204, json=body)
    assert cookie_of(reply).value == ""
    assert sql("SELECT count(*) FROM auth.users") == [(0,)]
    assert list(images.folder.glob("??/*.png")) == [stuck], "all but that one"


async def test_a_picture_is_deleted_also_if_its_owner_does_not_wait(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are gone by then: nobody would know whose the files are."""
    images = home.client.server.app[keys.IMAGES]  # type: ignore[attr-defined]
    began, gate, deleted = asyncio.Event(), asyncio.Event(), []

    async def delete_task(task_id: str) -> None:
        began.set()
        await gate.wait()
        deleted.append(task_id)

    reply = await post(home.client, "/api/generate", 202, json={"prompt": "x"}, headers=home.here)
    task_id = (await reply.json())["taskId"]
    monkeypatch.setattr(images, "delete_task", delete_task)
    leaving = asyncio.create_task(
        home.api("POST", "/api/auth/delete_account", 204, json={"currentPassword": ALICE["password"]})
    )
    await began.wait()
    leaving.cancel()
    counted = home.client.server.app[keys.METRICS].registry  # type: ignore[attr-defined]
    route = {"route": "/api/auth/delete_account", "method": "POST", "code": "499"}
    await until(lambda: counted.get_sample_value("longpoll_http_requests_total", route))
    gate.set()
    await until(lambda: deleted == [task_id])
