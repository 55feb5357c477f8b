"""Every URL, without exception: strangers are turned away, and nobody reaches what is another user's."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from server.routes import ROUTES
from tests.conftest import Person, Start

# What anybody may ask for. Whoever adds a route must decide, and say so here.
PUBLIC = {
    "GET /login", "GET /register", "POST /api/auth/register", "POST /api/auth/login", "POST /api/auth/logout",
    "GET /healthz", "GET /readyz", "GET /metrics", "GET /openapi.json", "GET /docs", "GET /static/{filename}",
}  # fmt: skip
# Where the id of a task stands, if it isn't in the path.
IN_THE_QUERY = {"/api/generate/status": "taskId"}
IN_THE_BODY = {"/api/generate/cancel": "taskId"}
ANY = {"task_id": "some-task", "token_id": "some-token", "filename": "longpoll.js"}
PAGE = {"Accept": "text/html"}


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
            url = path.format(filename="longpoll.js")
            async with client.request(method, url, allow_redirects=False) as reply:
                assert reply.status not in {401, 403, 404, 500}, path


async def test_another_users_id_is_a_404_wherever_one_can_be_given(alice: Person, bob: Person, sql: Any) -> None:
    task_id = await alice.create()
    async with alice.http.post("/api/auth/tokens", json={}) as reply:
        token_id = (await reply.json())["id"]
    asked = 0
    for method, path in routes():
        options: dict[str, Any] = {"headers": {"Accept": "text/html"}}
        if path in IN_THE_QUERY:
            options["params"] = {IN_THE_QUERY[path]: task_id}
        elif path in IN_THE_BODY:
            options["json"] = {IN_THE_BODY[path]: task_id}
        elif "_id}" not in path:
            continue
        asked += 1
        url = path.format(task_id=task_id, token_id=token_id)
        async with bob.http.request(method, url, allow_redirects=False, **options) as reply:
            assert reply.status == 404, f"{method} {path}"
            assert task_id not in await reply.text(), f"{method} {path}"
    assert asked >= 6
    assert sql("SELECT status::text, version FROM public.image_generations") == [("pending", 1)]
    assert sql("SELECT count(*) FROM longpoll.tokens") == [(1,)]
