"""Bearer tokens for scripts: what they open, for how long, and what they never may."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
from typing import Any

import pytest
from aiohttp import web

from server.errors import TooManyTokens
from server.storage.logins import TOKEN_USE_SECONDS, Scope
from server.storage.tokens import MOST_TOKENS
from server.web import keys
from server.web.routes import ROUTES
from tests.support.facts import until
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql
from tests.support.raw_http import secret_of
from tests.web.test_login import post, tasks_status
from tests.web.test_routes import ANY, PUBLIC, WORK


async def make_token(person: Person, **fields: Any) -> tuple[str, str]:
    """Return the id and the secret of a new token."""
    body = await (await post(person.http, "/api/auth/tokens", 201, json=fields)).json()
    return body["id"], body["token"]


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def test_a_token_opens_the_door_until_it_is_revoked(alice: Person, start: Start, sql: Any) -> None:
    token_id, secret = await make_token(alice)
    header = {"Authorization": f"Bearer {secret}"}
    other_process = await start()
    assert await tasks_status(other_process, header) == 200
    assert await tasks_status(other_process, {"Authorization": f"bEARER  {secret}"}) == 200
    async with alice.http.get("/api/auth/tokens") as reply:
        text = await reply.text()
        assert [item["id"] for item in (await reply.json())["items"]] == [token_id]
    assert secret not in text
    assert secret not in str(sql("SELECT * FROM longpoll.tokens"))
    async with alice.http.delete(f"/api/auth/tokens/{token_id}") as reply:
        assert reply.status == 204

    async def is_dead() -> bool:
        return await tasks_status(other_process, header) == 401

    await until(is_dead, seconds=5)
    async with alice.http.delete(f"/api/auth/tokens/{token_id}") as reply:
        assert reply.status == 404


async def test_another_users_token_cannot_be_seen_or_revoked(alice: Person, bob: Person) -> None:
    token_id, secret = await make_token(alice)
    for given in (token_id, "unknown", "00000000-0000-0000-0000-000000000000", "%00", "'"):
        async with bob.http.delete(f"/api/auth/tokens/{given}") as reply:
            assert reply.status == 404, given
    async with bob.http.get("/api/auth/tokens") as reply:
        assert await reply.json() == {"items": [], "nextCursor": None}
    assert await tasks_status(bob.http, {"Authorization": f"Bearer {secret}"}) == 200


async def test_a_token_has_a_name(alice: Person) -> None:
    for name in ("", "  ", "x" * 101, 5, None, "a\0b"):
        reply = await post(alice.http, "/api/auth/tokens", 400, json={"name": name})
        assert "name must be" in await reply.text()
    reply = await post(alice.http, "/api/auth/tokens", 201, json={})
    assert (await reply.json())["name"] == "script"


async def test_a_wrong_token_is_not_made_up_for_by_a_cookie(alice: Person) -> None:
    for header in ("Bearer wrong", "Bearer", "Bearer ", "bearer lp_wrong", "Bearer \u00e9"):
        async with alice.http.get("/api/generate/tasks", headers={"Authorization": header}) as reply:
            assert reply.status == 401, header
    async with alice.http.get("/api/generate/tasks", headers={"Authorization": "Basic YTpi"}) as reply:
        assert reply.status == 200  # another scheme, perhaps a proxy's, says nothing about us


async def test_a_token_is_no_cookie_and_a_cookie_is_no_token(alice: Person) -> None:
    """A logout ends what a cookie stands for, and the list of tokens shows every secret that scripts may use."""
    _, token = await make_token(alice)
    session = secret_of(alice)
    assert await tasks_status(alice.http, {"Cookie": f"longpoll={token}"}) == 401
    assert await tasks_status(alice.http, {"Authorization": f"Bearer {session}"}) == 401
    assert await tasks_status(alice.http, {"Cookie": f"longpoll={session}"}) == 200
    assert await tasks_status(alice.http, {"Authorization": f"Bearer {token}"}) == 200


# How many -------------------------------------------------------------------------------------------------------------


async def listed(person: Person, **query: Any) -> Any:
    async with person.http.get("/api/auth/tokens", params=query) as reply:
        assert reply.status == 200, await reply.text()
        return await reply.json()


async def test_every_token_can_be_found_a_page_at_a_time(alice: Person, bob: Person, sql: Sql) -> None:
    """Also those of the same moment, and more than there may be now."""
    await make_token(bob)
    sql(
        "INSERT INTO longpoll.tokens (secret_hash, user_id, name, created_at)"
        " SELECT sha256(number::text::bytea), %s, 'script ' || number, now() - number / 10 * interval '1 minute'"
        "   FROM generate_series(1, 250) AS number",
        (alice.user.user_id,),
    )
    wanted = [each for (each,) in sql(
        "SELECT id::text FROM longpoll.tokens WHERE user_id = %s ORDER BY created_at DESC, id DESC", (alice.user.user_id,)
    )]  # fmt: skip
    assert [item["id"] for item in (await listed(alice))["items"]] == wanted[:20]
    for limit in (7, 100):
        found, query = [], {"limit": limit}
        for _ in itertools.count():
            page = await listed(alice, **query)
            assert len(page["items"]) <= limit
            found += [item["id"] for item in page["items"]]
            if page["nextCursor"] is None:
                break
            query["cursor"] = page["nextCursor"]
        assert found == wanted
    async with alice.http.delete(f"/api/auth/tokens/{wanted[-1]}") as reply:
        assert reply.status == 204


async def test_there_are_only_so_many_tokens(alice: Person, bob: Person, sql: Sql) -> None:
    """Counted under a lock: those that are being made at the same moment count, too."""
    sql(
        "INSERT INTO longpoll.tokens (secret_hash, user_id, name)"
        " SELECT sha256(number::text::bytea), %s, 'script' FROM generate_series(1, %s) AS number",
        (alice.user.user_id, MOST_TOKENS - 1),
    )
    sql(
        "BEGIN; INSERT INTO longpoll.tokens (secret_hash, user_id, name) VALUES (sha256('last'), %s, 'last')",
        (alice.user.user_id,),
    )
    creating = asyncio.create_task(alice.app[keys.TOKENS].create(alice.user, "script", Scope.READ, None))
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    await until(lambda: creating.done() or sql(waiting) == [(1,)])
    sql("COMMIT")
    with pytest.raises(TooManyTokens):
        await creating
    reply = await post(alice.http, "/api/auth/tokens", 409, json={})
    body = await reply.json()
    assert (body["code"], "revoke one" in body["detail"]) == ("too_many_tokens", True)
    assert sql("SELECT count(*) FROM longpoll.tokens") == [(MOST_TOKENS,)]
    await make_token(bob)
    token_id = (await listed(alice))["items"][0]["id"]
    async with alice.http.delete(f"/api/auth/tokens/{token_id}") as reply:
        assert reply.status == 204
    await make_token(alice)


async def test_only_so_many_tokens_are_made_in_a_while(start: Start, enter: Enter) -> None:
    client = await start(limits={"enabled": True, "token": "2 per hour"})
    alice, bob = await enter(client), await enter(client, "bob")
    for _ in range(2):
        await make_token(alice)
    reply = await post(alice.http, "/api/auth/tokens", 429, json={})
    assert int(reply.headers["Retry-After"]) > 60
    await make_token(bob)


# For how long ---------------------------------------------------------------------------------------------------------


async def test_a_token_ends_by_itself(alice: Person, sql: Sql) -> None:
    before = dt.datetime.now(dt.UTC)
    _, secret = await make_token(alice, expiresInDays=30)
    (item,) = (await listed(alice))["items"]
    assert abs(dt.datetime.fromisoformat(item["expiresAt"]) - before - dt.timedelta(days=30)) < dt.timedelta(minutes=1)
    assert await tasks_status(alice.http, bearer(secret)) == 200
    sql("UPDATE longpoll.tokens SET expires_at = now() - interval '1 second'")

    async def is_dead() -> bool:
        return await tasks_status(alice.http, bearer(secret)) == 401

    await until(is_dead)


async def test_the_end_of_a_token_is_chosen(alice: Person) -> None:
    for days in (0, -1, 3651, 1.5, "30", True, [1]):
        reply = await post(alice.http, "/api/auth/tokens", 400, json={"expiresInDays": days})
        assert "expiresInDays must be a whole number from 1 to 3650" in await reply.text()
    await make_token(alice, name="for ever", expiresInDays=None)
    await make_token(alice, name="a week", expiresInDays=7.0)
    await make_token(alice, name="a year")
    ends = {item["name"]: item["expiresAt"] for item in (await listed(alice))["items"]}
    assert ends["for ever"] is None
    assert dt.timedelta(days=364) < dt.datetime.fromisoformat(ends["a year"]) - dt.datetime.now(dt.UTC)


async def test_an_expired_token_is_cleaned_away(alice: Person, sql: Sql) -> None:
    await make_token(alice, expiresInDays=1)
    await make_token(alice, name="lasting", expiresInDays=None)
    sql("UPDATE longpoll.tokens SET expires_at = now() - interval '1 second' WHERE expires_at IS NOT NULL")
    await alice.app[keys.DATABASE].fetch("expire_sessions", dict)
    assert sql("SELECT name FROM longpoll.tokens") == [("lasting",)]


async def test_the_last_use_is_written_once_an_hour_and_on_no_requests_way(alice: Person, sql: Sql) -> None:
    _, secret = await make_token(alice)
    assert (await listed(alice))["items"][0]["lastUsedAt"] is None

    def last_used() -> Any:
        return sql("SELECT last_used_at FROM longpoll.tokens")[0][0]

    assert await tasks_status(alice.http, bearer(secret)) == 200
    first = await until(last_used)
    (login,) = [each for each in alice.app[keys.SESSIONS]._known.values() if each.is_token]
    await until(lambda: login.use_due_at > first.timestamp() + TOKEN_USE_SECONDS - 60)
    for _ in range(3):
        assert await tasks_status(alice.http, bearer(secret)) == 200
    assert not alice.app[keys.SESSIONS]._uses._waiting
    assert last_used() == first
    login.use_due_at = 0.0
    assert await tasks_status(alice.http, bearer(secret)) == 200
    await until(lambda: last_used() > first)


# What for -------------------------------------------------------------------------------------------------------------


async def test_a_token_that_may_read_changes_nothing_wherever_it_comes(alice: Person, sql: Sql) -> None:
    """Over every route: what isn't GET is refused, and what is works as for anybody."""
    task_id = await alice.create()
    token_id, secret = await make_token(alice, scope="read")
    before = sql("SELECT * FROM public.image_generations"), sql("SELECT id FROM longpoll.tokens")
    for route in ROUTES:
        assert isinstance(route, web.RouteDef)
        name, url = f"{route.method} {route.path}", route.path.format_map(ANY)
        if name in PUBLIC or route.path.startswith(WORK):
            continue
        async with alice.http.request(
            route.method, url, headers=bearer(secret), json={"prompt": "x"} if route.method == "POST" else None
        ) as reply:
            text = await reply.text()
            if route.method == "GET":
                assert reply.status not in {401, 403} or "session_required" in text, name
            else:
                assert (reply.status, '"code":"scope_too_narrow"' in text) == (403, True), name
    assert (await alice.status(task_id, headers=bearer(secret), wait=0))["data"]["taskId"] == task_id
    assert (sql("SELECT * FROM public.image_generations"), sql("SELECT id FROM longpoll.tokens")) == before
    assert (await listed(alice))["items"][0]["scope"] == "read"
    async with alice.http.delete(f"/api/auth/tokens/{token_id}") as reply:
        assert reply.status == 204, "its owner may do everything"


async def test_a_scope_that_is_narrowed_by_sql_is_heeded(alice: Person, sql: Sql) -> None:
    _, secret = await make_token(alice, scope="write")
    order = {"json": {"prompt": "x"}, "headers": bearer(secret)}
    assert (await post(alice.http, "/api/generate", 202, **order)).status == 202
    sql("UPDATE longpoll.tokens SET scope = 'read'")

    async def is_narrow() -> bool:
        async with alice.http.post("/api/generate", **order) as reply:
            return reply.status == 403

    await until(is_narrow)


@pytest.mark.parametrize("scope", ["", "admin", "READ", None, 1, ["read"]])
async def test_an_unknown_scope_is_refused(alice: Person, scope: Any) -> None:
    reply = await post(alice.http, "/api/auth/tokens", 400, json={"scope": scope})
    assert "scope must be one of: read, write." in await reply.text()


async def test_a_token_makes_no_further_tokens(alice: Person, sql: Sql) -> None:
    """One that leaks must not live on in others. It may end itself, and others."""
    token_id, secret = await make_token(alice, scope="write")
    async with alice.http.post("/api/auth/tokens", json={}, headers=bearer(secret)) as reply:
        assert (reply.status, (await reply.json())["code"]) == (403, "session_required")
    assert sql("SELECT count(*) FROM longpoll.tokens") == [(1,)]
    async with alice.http.delete(f"/api/auth/tokens/{token_id}", headers=bearer(secret)) as reply:
        assert reply.status == 204
    assert await tasks_status(alice.http, bearer(secret)) == 401
