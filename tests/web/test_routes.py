"""Every URL, without exception: strangers are turned away, and nobody reaches what is another user's."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from server.web.routes import ROUTES
from tests.support.people import Person, Start
from tests.support.postgres import Sql

# What anybody may ask for. Whoever adds a route must decide, and say so here.
PUBLIC = {
    "GET /login", "GET /register", "POST /api/auth/register", "POST /api/auth/login", "POST /api/auth/logout",
    "GET /healthz", "GET /readyz", "GET /metrics", "GET /openapi.json", "GET /docs", "GET /static/{filename}",
    "GET /static/{folder}/{filename}",
}  # fmt: skip
# What needs a login, and names no task and no token. Whoever adds a route must decide here, too.
NAMES_NOTHING = {
    "GET /", "GET /tasks", "POST /api/generate", "POST /api/generate_advanced", "GET /api/generate/tasks",
    "GET /api/auth/tokens", "POST /api/auth/tokens", "GET /ops", "GET /ops/figures", "POST /", "GET /api/auth/user",
    "GET /account", "POST /account",  # its form does: see test_account.py
    "GET /api/auth/sessions", "POST /api/auth/password", "POST /api/auth/logout_everywhere",
    "POST /api/auth/delete_account",
}  # fmt: skip
# How the others name one, if not in their path.
NAMES_IT: dict[str, Callable[[str], dict[str, Any]]] = {
    "GET /api/generate/status": lambda task_id: {"params": {"taskId": task_id}},
    "GET /api/generate/status/batch": lambda task_id: {"params": {"task": f"{task_id}:1"}},
    "POST /api/generate/cancel": lambda task_id: {"json": {"taskId": task_id}},
}
ANY = {
    "task_id": "some-task", "token_id": "some-token", "session_id": "some-session", "folder": "longpoll",
    "filename": "follow.js",
}  # fmt: skip
FILES = {"/static/{filename}": "/static/longpoll.js", "/static/{folder}/{filename}": "/static/longpoll/follow.js"}
PAGE = {"Accept": "text/html"}


WORK = "/api/work/"  # for workers, whose tokens are tried in test_worker_tokens.py and test_work.py


def routes() -> list[tuple[str, str]]:
    found = [(route.method, route.path) for route in ROUTES if isinstance(route, web.RouteDef)]
    assert len(found) > 20
    return found


async def test_strangers_are_turned_away_from_all_that_is_not_public(start: Start) -> None:
    client = await start()
    for method, path in routes():
        name, url = f"{method} {path}", path.format_map(ANY)
        if name in PUBLIC:
            continue
        for headers in ({}, PAGE, {"Cookie": "longpoll=wrong"}, {"Authorization": "Bearer lp_wrong"}):
            async with client.request(method, url, headers=headers, allow_redirects=False) as reply:
                text = await reply.text()
                if (
                    headers is PAGE
                    and method == "GET"
                    and (not path.startswith("/api/") or path.startswith("/api/auth/"))
                ):
                    assert reply.status == 303, name
                    assert reply.headers["Location"] == f"/login?next={url.replace('/', '%2F')}", name
                else:
                    assert reply.status == 401, name
                    assert "Not signed in" in text, name
                assert reply.headers["Cache-Control"] == "private, no-store", name


async def test_what_is_public_needs_no_login(start: Start) -> None:
    client = await start()
    for method, path in routes():
        if f"{method} {path}" in PUBLIC:
            url = FILES.get(path, path)
            async with client.request(method, url, allow_redirects=False) as reply:
                assert reply.status not in {401, 403, 404, 500}, path


def named() -> list[str]:
    """Return the routes that name a task or a token: all of which nothing else was said."""
    return [
        name
        for method, path in routes()
        if (name := f"{method} {path}") not in PUBLIC | NAMES_NOTHING and not path.startswith(WORK)
    ]


def test_each_route_that_needs_a_login_says_how_it_names_a_task() -> None:
    unknown = [name for name in named() if "{" not in name and name not in NAMES_IT]
    assert not unknown, "decide in NAMES_NOTHING or NAMES_IT"


@pytest.mark.parametrize("name", named())
async def test_another_users_id_is_as_good_as_one_that_does_not_exist(
    alice: Person, bob: Person, sql: Sql, name: str
) -> None:
    """The whole reply is compared, whatever the route: nobody learns even whether there is such a task."""
    task_id, unknown = await alice.create(), "A" * 22
    async with alice.http.post("/api/auth/tokens", json={}) as reply:
        token_id = (await reply.json())["id"]
    session_id = sql("SELECT id::text FROM longpoll.sessions WHERE user_id = %s", (alice.user.user_id,))[0][0]
    before = sql("SELECT * FROM public.image_generations"), sql("SELECT * FROM longpoll.tokens")
    nothing = "00000000-0000-0000-0000-000000000000"
    foreign = await ask(bob, name, task_id, token_id, session_id)
    assert foreign == await ask(bob, name, unknown, nothing, nothing)
    assert foreign[0] == (200 if name.endswith("/batch") else 404)
    assert sql("SELECT count(*) FROM longpoll.sessions WHERE id = %s", (session_id,)) == [(1,)]
    assert before == (sql("SELECT * FROM public.image_generations"), sql("SELECT * FROM longpoll.tokens"))


async def ask(person: Person, name: str, task_id: str, token_id: str, session_id: str) -> tuple[int, str]:
    """Return status and body of a reply, without what every reply has of its own."""
    method, path = name.split()
    options = NAMES_IT.get(name, lambda _task_id: {})(task_id)
    url = path.format(task_id=task_id, token_id=token_id, session_id=session_id)
    async with person.http.request(method, url, headers=PAGE, allow_redirects=False, **options) as reply:
        text = (await reply.text()).replace(task_id, "ID").replace(token_id, "ID")
        return reply.status, re.sub(r'"waitedMs":[0-9]+', "", text.replace(reply.headers["X-Request-Id"], "NUMBER"))
