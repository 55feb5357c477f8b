"""Tokens of workers: good for /api/work/ and for nothing else, and users are nobody there."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from aiohttp import web

from server.web.routes import ROUTES
from tests.support.facts import until
from tests.support.people import Person, Start
from tests.support.postgres import Sql
from tests.support.raw_http import secret_of
from tests.support.workers import WorkerToken, add_worker_token
from tests.web.test_routes import ANY, PUBLIC, WORK
from tests.web.test_tokens import bearer, make_token

PATHS = [(route.method, route.path) for route in ROUTES if isinstance(route, web.RouteDef)]
WORKS = [each for each in PATHS if each[1].startswith(WORK)]


async def ask(person: Person, headers: dict[str, str], method: str = "GET", path: str = "/api/work/token") -> Any:
    """Return the status and the code of a reply; of a success, its body."""
    async with person.http.request(method, path.format_map(ANY), headers=headers, allow_redirects=False) as reply:
        if reply.content_type == "application/problem+json":
            problem = await reply.json()
            return reply.status, problem["code"], problem.get("detail", "")
        return reply.status, await reply.json() if reply.content_type == "application/json" else await reply.text()


async def test_a_worker_learns_what_its_token_is_good_for(alice: Person, sql: Sql) -> None:
    token = add_worker_token(sql, "gpu in the cellar", tags=["basic"], concurrency=3)
    status, body = await ask(alice, token.header)
    assert status == 200
    assert dt.datetime.fromisoformat(body.pop("expiresAt")) > dt.datetime.now(dt.UTC)
    assert body == {"id": token.id, "name": "gpu in the cellar", "tags": ["basic"], "concurrency": 3}


@pytest.mark.parametrize(("method", "path"), [each for each in PATHS if not each[1].startswith(WORK)])
async def test_a_workers_token_is_refused_wherever_users_are_served(
    start: Start, sql: Sql, method: str, path: str
) -> None:
    """And says what would be right. What is for everybody is for it too: it is a stranger there."""
    client = await start()
    token = add_worker_token(sql)
    async with client.request(method, path.format_map(ANY), headers=token.header, allow_redirects=False) as reply:
        text = await reply.text()
        if f"{method} {path}" in PUBLIC | {"POST /"}:
            assert reply.status != 403, text
        else:
            assert reply.status == 403, text
            assert (await reply.json())["code"] == "worker_token_refused"
            assert "It is for /api/work/ alone." in text
    assert sql("SELECT count(*) FROM public.image_generations") == [(0,)]


@pytest.mark.parametrize(("method", "path"), WORKS)
async def test_users_are_refused_wherever_workers_are_served(alice: Person, sql: Sql, method: str, path: str) -> None:
    """With a cookie, and with either kind of token: 403, and what would be right."""
    for scope in ("read", "write"):
        _, secret = await make_token(alice, scope=scope)
        status, code, detail = await ask(alice, bearer(secret), method, path)
        assert (status, code) == (403, "worker_token_required")
    status, code, detail = await ask(alice, {}, method, path)
    assert (status, code) == (403, "worker_token_required")
    assert "python -m server token worker make" in detail


@pytest.mark.parametrize(("method", "path"), WORKS)
async def test_a_token_that_is_not_valid_is_401_even_with_a_cookie(
    alice: Person, sql: Sql, method: str, path: str
) -> None:
    expired = add_worker_token(sql, days=-0.001)
    for secret in ("lpw_wrong", expired.secret, expired.secret.replace("lpw_", "lp_")):
        status, code, _ = await ask(alice, bearer(secret), method, path)
        assert (status, code) == (401, "not_signed_in"), secret


async def test_a_workers_token_is_no_cookie(alice: Person, sql: Sql) -> None:
    token, session = add_worker_token(sql), secret_of(alice)
    alice.http.session.cookie_jar.clear()
    assert (await ask(alice, {"Cookie": f"longpoll={session}"}, path="/api/generate/tasks"))[0] == 200
    for path in ("/api/work/token", "/api/generate/tasks"):
        assert (await ask(alice, {"Cookie": f"longpoll={token.secret}"}, path=path))[0] == 401
    assert (await ask(alice, bearer(session)))[0] == 401


async def test_only_the_hash_is_kept(sql: Sql) -> None:
    token = add_worker_token(sql)
    assert token.secret not in str(sql("SELECT * FROM longpoll.worker_tokens"))


ENDS = {
    "revoked": "DELETE FROM longpoll.worker_tokens",
    "moved into the past": "UPDATE longpoll.worker_tokens SET expires_at = now() - interval '1 second'",
}


@pytest.mark.parametrize("end", ENDS)
async def test_an_end_by_sql_is_heard_in_every_process(alice: Person, start: Start, sql: Sql, end: str) -> None:
    token, other = add_worker_token(sql), Person(await start(), alice.user)
    for person in (alice, other):
        assert (await ask(person, token.header))[0] == 200
    sql(ENDS[end])
    for person in (alice, other):
        await until(lambda person=person: is_dead(person, token))


async def is_dead(person: Person, token: WorkerToken) -> bool:
    return bool((await ask(person, token.header))[0] == 401)


async def test_a_grant_that_is_narrowed_by_sql_is_heeded(alice: Person, sql: Sql) -> None:
    token = add_worker_token(sql, concurrency=3)
    assert (await ask(alice, token.header))[1]["concurrency"] == 3
    sql("UPDATE longpoll.worker_tokens SET concurrency = 1, tags = '{basic}'")

    async def is_narrow() -> bool:
        body = (await ask(alice, token.header))[1]
        return bool((body["concurrency"], body["tags"]) == (1, ["basic"]))

    await until(is_narrow)


async def test_that_a_token_is_used_is_written_down(alice: Person, sql: Sql) -> None:
    token = add_worker_token(sql)
    assert (await ask(alice, token.header))[0] == 200
    await until(lambda: sql("SELECT last_used_at FROM longpoll.worker_tokens")[0][0] is not None)
