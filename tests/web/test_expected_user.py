"""A page outlives a login in another tab: what it asks for one user never happens to another."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import FormData

from server.web.routes import ROUTES
from tests.support.people import Person
from tests.support.postgres import Sql
from tests.support.raw_http import connect_to, status_request
from tests.web.test_routes import WORK
from tests.web.test_tasks import form

PAGE = {"Accept": "text/html"}


def expecting(person: Person) -> dict[str, str]:
    return {"Expected-User": person.user.user_id}


def routes() -> list[tuple[str, str]]:
    """Return all that needs a login, but what forms send: they name their user in a field."""
    public = {
        "/login",
        "/register",
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/docs",
        "/static/{filename}",
        "/static/{folder}/{filename}",
    }
    public |= {"/api/auth/register", "/api/auth/login", "/api/auth/logout"}
    found = [(str(route.method), str(route.path)) for route in ROUTES]  # type: ignore[attr-defined]
    return [
        (method, path)
        for method, path in found
        if path not in public
        and not path.startswith(WORK)
        and (method, path) not in {("POST", "/"), ("POST", "/account")}
    ]


@pytest.mark.parametrize(("method", "path"), routes())
async def test_whatever_is_asked_for_somebody_else_does_not_happen(
    alice: Person, bob: Person, sql: Sql, method: str, path: str
) -> None:
    task_id = await alice.create()
    async with alice.http.post("/api/auth/tokens", json={}) as reply:
        token_id = (await reply.json())["id"]
    before = sql("SELECT * FROM public.image_generations"), sql("SELECT * FROM longpoll.tokens")
    url = path.format(task_id=task_id, token_id=token_id, session_id="some-session")
    body: dict[str, Any] = {"json": {"prompt": "x"}} if method == "POST" else {}
    async with alice.http.request(method, url, headers=expecting(bob), **body) as reply:
        assert reply.status == 409, await reply.text()
        assert (await reply.json())["code"] == "other_user"
    assert before == (sql("SELECT * FROM public.image_generations"), sql("SELECT * FROM longpoll.tokens"))


async def test_who_is_expected_is_served_and_so_is_who_says_nothing(alice: Person) -> None:
    task_id = await alice.create()
    for headers in (expecting(alice), {}):
        async with alice.http.get("/api/auth/user", headers=headers) as reply:
            assert await reply.json() == {"user": {"id": alice.user.user_id, "email": "alice@example.org"}}
        await alice.status(task_id, wait=0, headers=headers)
        async with alice.http.post("/api/generate", json={"prompt": "x"}, headers=headers) as reply:
            assert reply.status == 202


async def test_a_token_is_held_to_it_too(alice: Person, bob: Person) -> None:
    async with alice.http.post("/api/auth/tokens", json={}) as reply:
        token = {"Authorization": f"Bearer {(await reply.json())['token']}"}
    for person, status in ((alice, 200), (bob, 409)):
        async with bob.http.get("/api/generate/tasks", headers=token | expecting(person)) as reply:
            assert reply.status == status


async def test_a_poll_on_a_connection_that_was_parked_for_another_is_refused(alice: Person, bob: Person) -> None:
    """The same bytes but for the user who is expected: nothing of the earlier poll is taken for this one."""
    task_id = await alice.create()
    async with connect_to(alice) as connection:
        for expected, status in ((alice, 200), (bob, 409), (alice, 200)):
            head = f"\r\nExpected-User: {expected.user.user_id}\r\n\r\n"
            request = status_request(alice, task_id, version=1, wait="0.1")
            await connection.send(request.removesuffix("\r\n\r\n") + head)
            assert (await connection.reply()).status == status


async def test_a_form_of_somebody_elses_page_is_shown_again_and_not_sent(alice: Person, bob: Person, sql: Sql) -> None:
    order = form(prompt="for <alice> only", user=alice.user.user_id)
    async with bob.http.post("/", data=order, headers=PAGE, allow_redirects=False) as reply:
        text = await reply.text()
        assert reply.status == 409
    assert "for &lt;alice&gt; only" in text
    assert "send it again to create the picture as bob@example.org" in text
    assert f'name="user" value="{bob.user.user_id}"' in text
    assert sql("SELECT count(*) FROM public.image_generations") == [(0,)]
    again = FormData({"prompt": "x", "user": bob.user.user_id}, default_to_multipart=True)
    async with bob.http.post("/", data=again, headers=PAGE, allow_redirects=False) as reply:
        assert reply.status == 303
    assert sql("SELECT user_id::text FROM public.image_generations") == [(bob.user.user_id,)]
