"""The description of the API: complete, true, and readable.

That replies are as described is checked for every server that a test starts (`tests/contract.py`); here stands that
nothing is missing, that each kind of reply has been checked, and that the bounds are those that are enforced.
"""

from __future__ import annotations

import asyncio
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from aiohttp import FormData, web
from openapi_spec_validator import validate

from server.app import build_app
from server.config import Config
from server.web import keys
from server.web.openapi.document import describe
from server.web.openapi.schemas import problem_types
from tests.support.facts import until
from tests.support.people import CONTRACT, Enter, Person, Start
from tests.support.postgres import Sql
from tests.support.workers import add_worker_token

PAGE = {"Accept": "text/html"}


@pytest.fixture
def document(config: Config) -> Any:
    return describe(config, secure=False, client_timeout_seconds=45)


def operations(document: Any) -> dict[tuple[str, str], Any]:
    return {
        (method.upper(), url): operation
        for url, methods in document["paths"].items()
        for method, operation in methods.items()
    }


# Complete ------------------------------------------------------------------------------------------------------------


def test_the_document_is_valid_openapi(document: Any) -> None:
    validate(document)
    assert document["openapi"].startswith("3.1.")


def test_every_url_and_method_is_described_and_no_other(config: Config, document: Any) -> None:
    routes = build_app(config, "").router.routes()
    known = {(route.method, route.resource.canonical) for route in routes if route.resource is not None}
    assert set(operations(document)) == {pair for pair in known if pair[0] != "HEAD"}
    assert {url for method, url in known if method == "HEAD"} == {url for method, url in known if method == "GET"}


def test_what_stands_in_a_url_is_described_as_its_parameter(document: Any) -> None:
    for (_, url), operation in operations(document).items():
        parameters = [resolve(document, parameter) for parameter in operation.get("parameters", [])]
        described = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
        assert described == set(re.findall(r"{(\w+)}", url)), url


def test_every_kind_of_problem_can_be_found(document: Any) -> None:
    told = str(document["paths"])
    codes = {kind.code for kind in problem_types()}
    assert codes <= set(document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"])
    assert [code for code in codes if f"`{code}`" not in told] == []


def test_every_component_is_used_and_every_name_is_used_once(document: Any) -> None:
    text = str(document)
    for kind in ("schemas", "parameters", "headers"):
        for name in document["components"][kind]:
            assert f"#/components/{kind}/{name}'" in text, name
    names = [operation["operationId"] for operation in operations(document).values()]
    assert len(names) == len(set(names))


def test_it_is_that_of_this_very_server(config: Config) -> None:
    own = config.replace(polling={"hold_seconds": 12.0}, server={"public_url": "https://pictures.example.org"})
    document = build_app(own, "")[keys.DESCRIPTION]
    assert document["servers"] == [{"url": "https://pictures.example.org"}]
    assert "12 seconds" in str(document["info"])
    assert "27 s before" in str(document["info"])
    assert "'name': '__Host-longpoll'" in str(document["components"])


async def test_whoever_asks_gets_it(start: Start) -> None:
    async with (await start()).get("/openapi.json") as reply:
        assert (reply.status, reply.content_type) == (200, "application/json")
        validate(await reply.json())


def resolve(document: Any, part: Any) -> Any:
    found = document
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


# True ----------------------------------------------------------------------------------------------------------------


async def test_each_kind_of_success_has_been_checked(start: Start, enter: Enter, sql: Sql) -> None:
    """Every reply that isn't an error is asked for, with each reason that a poll can end for."""
    alice = await enter(await start(), "alice")
    reasons = await _use_tasks(alice, sql) | await _wait_in_every_way(alice, sql)
    sql("DELETE FROM public.image_generations WHERE status = 'pending'")
    reasons |= {(await alice.status(await alice.create(), version=1, place=2))["poll"]["reason"]}
    await _use_account(alice)
    await _work(alice, sql)
    await _look_around(alice)
    app = alice.app
    app[keys.WAITERS].drain(0)
    reasons |= {(await alice.status(await alice.create(), version=1))["poll"]["reason"]}
    async with alice.http.get("/readyz") as reply:
        assert reply.status == 503
    await _ask(alice, "POST", "/api/auth/logout", 204)
    await _ask(alice, "POST", "/api/auth/logout", 303, headers=PAGE)
    for url in (
        "/", "/tasks", "/tasks/some-task", "/ops", "/ops/figures", "/account", "/api/auth/tokens", "/api/auth/sessions",
        "/api/auth/user",
    ):  # fmt: skip
        await _ask(alice, "GET", url, 303, headers=PAGE)
    contract = app[CONTRACT]
    assert contract.faults == []
    described = {
        (method, url, int(status))
        for (method, url), operation in operations(contract.document).items()
        for status in operation["responses"]
        if status != "default" and int(status) < 400
    }
    assert sorted(described - set(contract.seen)) == []
    assert reasons | {"degraded"} == set(
        contract.document["components"]["schemas"]["Poll"]["properties"]["reason"]["enum"]
    )


async def _ask(person: Person, method: str, url: str, status: int, **options: Any) -> Any:
    async with person.http.request(method, url, allow_redirects=False, **options) as reply:
        assert reply.status == status, f"{method} {url}: {await reply.text()}"
        return await reply.json() if reply.content_type == "application/json" else reply.headers


async def _use_tasks(alice: Person, sql: Sql) -> set[str]:
    order = {"prompt": "a lake", "seed": 7, "size": "512x512"}
    form = FormData(order | {"seed": "7"}, default_to_multipart=True)
    task_id = (await _ask(alice, "POST", "/api/generate_advanced", 202, data=form))["taskId"]
    sql("UPDATE public.image_generations SET status = 'processing' WHERE task_id = %s", (task_id,))
    await _ask(alice, "POST", "/api/generate/cancel", 202, json={"taskId": task_id})
    for url in ("/api/generate", "/api/generate_advanced"):
        task_id = await _repeat_a_create(alice, url, order, sql)
    await _ask(alice, "POST", "/api/generate/cancel", 200, json={"taskId": task_id})
    image = f"/api/generate/tasks/{task_id}/image"
    headers = await _ask(alice, "GET", image, 200)
    await _ask(alice, "GET", image, 304, headers={"If-None-Match": headers["ETag"]})
    page = await _ask(alice, "GET", "/api/generate/tasks?limit=1&status=all", 200)
    await _ask(alice, "GET", f"/api/generate/tasks?cursor={page['nextCursor']}", 200)
    await _ask(alice, "GET", f"/tasks/{task_id}", 200, headers=PAGE)
    reasons = {(await alice.status(task_id, version=9))["poll"]["reason"]}
    await _order_again(alice, task_id, sql)
    await _ask(alice, "POST", "/", 303, data=FormData({"prompt": "a lake"}, default_to_multipart=True))
    await _ask(alice, "DELETE", f"/api/generate/tasks/{task_id}", 204)
    return reasons


async def _order_again(alice: Person, task_id: str, sql: Sql) -> None:
    url, key = f"/api/generate/tasks/{task_id}/again", {"Idempotency-Key": "again"}
    again = (await _ask(alice, "POST", url, 202, headers=key))["taskId"]
    sql("UPDATE public.image_generations SET status = 'completed', result = '/picture' WHERE task_id = %s", (again,))
    await until(lambda: _is_completed(alice, again))
    await _ask(alice, "POST", url, 200, headers=key | {"Prefer": "wait=1"})


async def _repeat_a_create(alice: Person, url: str, order: Any, sql: Sql) -> str:
    """Create a task, complete it as a worker would, and send the create again."""
    key = {"Idempotency-Key": url}
    task_id = str((await _ask(alice, "POST", url, 202, json=order, headers=key))["taskId"])
    await _ask(alice, "POST", url, 202, json=order, headers=key)
    await alice.app[keys.IMAGES].put(f"{task_id}.0.png", b"\x89PNG\r\n\x1a\n")
    sql("UPDATE public.image_generations SET status = 'completed', result = '/picture' WHERE task_id = %s", (task_id,))
    await until(lambda: _is_completed(alice, task_id))
    await _ask(alice, "POST", url, 200, json=order, headers=key | {"Prefer": "wait=1"})
    return task_id


async def _is_completed(alice: Person, task_id: str) -> bool:
    return bool((await alice.status(task_id, wait=0))["data"]["status"] == "completed")


async def _wait_in_every_way(alice: Person, sql: Sql) -> set[str]:
    task_id = await alice.create()
    status, batch = "/api/generate/status", "/api/generate/status/batch"
    answers = [
        await alice.status(task_id, wait=0),
        await alice.status(task_id, version=1, wait=0.1, headers={"Prefer": "wait=3"}),
        await _ask(alice, "GET", f"{batch}?task={task_id}&task=unknown", 200),
        await _ask(alice, "GET", f"{batch}?task={task_id}:1&wait=0.1", 200),
    ]
    await _ask(alice, "GET", f"{status}?taskId={task_id}&wait=0", 304, headers={"If-None-Match": f'"{task_id}.1"'})
    older = asyncio.create_task(alice.status(task_id, version=1, c="page"))
    await until(lambda: alice.held == 1)
    newer = asyncio.create_task(alice.status(task_id, version=1, c="page"))
    many = asyncio.create_task(_ask(alice, "GET", f"{batch}?task={task_id}:1&gather=0.1", 200))
    answers.append(await older)
    await until(lambda: alice.held == 2)
    sql("UPDATE public.image_generations SET status = 'processing', progress = 0.1 WHERE task_id = %s", (task_id,))
    answers += [await newer, await many]
    return {answer["poll"]["reason"] for answer in answers}


async def _work(alice: Person, sql: Sql) -> None:
    """As a worker."""
    token = add_worker_token(sql)
    await _ask(alice, "GET", "/api/work/token", 200, headers=token.header)


async def _use_account(alice: Person) -> None:
    token = await _ask(alice, "POST", "/api/auth/tokens", 201, json={"name": "cron"})
    await _ask(alice, "GET", "/api/auth/tokens", 200)
    await _ask(alice, "GET", "/api/auth/user", 200)
    await _ask(alice, "DELETE", f"/api/auth/tokens/{token['id']}", 204)
    for name, status in (("register", 201), ("login", 200)):
        account = {"email": "carol@example.org", "password": "correct horse"}
        await _ask(alice, "POST", f"/api/auth/{name}", status, json=account)
    account = {"email": "dave@example.org", "password": "correct horse", "next": "/tasks"}
    for name in ("register", "login"):
        await _ask(alice, "POST", f"/api/auth/{name}", 303, data=account, headers=PAGE)

    await _manage_account(alice)


async def _manage_account(alice: Person) -> None:
    """As dave, who has a password and is logged in twice; at the end he is back, and logged in."""
    account = {"email": "dave@example.org", "password": "correct horse"}
    alice.http.session.cookie_jar.clear()
    await _ask(alice, "POST", "/api/auth/login", 200, json=account)
    alice.http.session.cookie_jar.clear()
    await _ask(alice, "POST", "/api/auth/login", 200, json=account)
    sessions = (await _ask(alice, "GET", "/api/auth/sessions", 200))["items"]
    (other, *_) = [session["id"] for session in sessions if not session["current"]]
    await _ask(alice, "DELETE", f"/api/auth/sessions/{other}", 204)
    change = {"currentPassword": "correct horse", "newPassword": "a better horse"}
    await _ask(alice, "POST", "/api/auth/password", 204, json=change)
    await _ask(alice, "GET", "/account", 200, headers=PAGE)
    await _ask(alice, "POST", "/account", 200, data={"action": "make-token", "name": "x"}, headers=PAGE)
    await _ask(alice, "POST", "/account", 303, data={"action": "log-out-everywhere"}, headers=PAGE)
    for url in ("/api/auth/logout_everywhere", "/api/auth/delete_account"):
        await _ask(alice, "POST", "/api/auth/login", 200, json={**account, "password": "a better horse"})
        body = {"json": {"currentPassword": "a better horse"}} if "delete" in url else {}
        await _ask(alice, "POST", url, 204, **body)
    await _ask(alice, "POST", "/api/auth/register", 201, json=account)


async def _look_around(alice: Person) -> None:
    for url in ("/", "/tasks", "/ops", "/docs", "/ops/figures", "/healthz", "/readyz", "/metrics", "/openapi.json"):
        await _ask(alice, "GET", url, 200)
    for url in ("/login", "/register"):
        await _ask(alice, "GET", url, 303, headers=PAGE)
    for url in ("/static/longpoll.js", "/static/longpoll/follow.js"):
        headers = await _ask(alice, "GET", url, 200)
        await _ask(alice, "GET", url, 304, headers={"If-None-Match": headers["ETag"]})
        await _ask(alice, "GET", url, 206, headers={"Range": "bytes=0-9"})
    alice.http.session.cookie_jar.clear()
    for url in ("/login", "/register"):
        await _ask(alice, "GET", url, 200, headers=PAGE)
    account = {"email": "dave@example.org", "password": "correct horse"}
    await _ask(alice, "POST", "/api/auth/login", 200, json=account)


def refused_values(schema: Any) -> list[str]:
    """Return values that a parameter with this schema doesn't take."""
    refused = []
    if schema.get("type") in {"integer", "number"}:
        refused += ["x", "1e999", ""]
        refused += [str(schema["minimum"] - 1)] if "minimum" in schema else []
        refused += [str(schema["maximum"] + 1)] if "maximum" in schema else []
    if "enum" in schema:
        refused.append("nonsense")
    if "pattern" in schema:
        refused += ["é", "a" * 300]
    return refused


async def test_the_bounds_of_parameters_are_enforced(alice: Person, document: Any) -> None:
    task_id = await alice.create()
    needed = {"taskId": task_id, "task": f"{task_id}:0", "task_id": task_id, "token_id": "none", "session_id": "none"}
    tried = 0
    for (method, url), operation in operations(document).items():
        if url.startswith("/api/work/"):
            continue  # for workers: see test_work.py
        for parameter in operation.get("parameters", []):
            described = resolve(document, parameter)
            name, where = described["name"], described["in"]
            schema = described["schema"]
            schema = resolve(document, schema) if "$ref" in schema else schema
            for value in refused_values(schema):
                given = {**needed, name: value}
                query = {key: given[key] for key in ("taskId", "task") if key in str(operation["parameters"])}
                query |= {name: value} if where == "query" else {}
                headers = {name: value} if where == "header" else {}
                options = {"json": {"prompt": "a lake"}} if method == "POST" else {}
                target = url.format_map(given)
                async with alice.http.request(method, target, params=query, headers=headers, **options) as reply:
                    expected = 404 if name in {"taskId", "task_id"} and value else 400
                    assert reply.status == expected, f"{method} {url} {name}={value[:20]}"
                    tried += 1
    assert tried > 40


@pytest.mark.parametrize(
    ("schema", "method_and_url", "bodies"),
    [
        (
            "Order",
            "POST /api/generate",
            [
                {"prompt": "x"}, {"prompt": "x" * 4000}, {"prompt": "x" * 4001}, {"prompt": ""}, {"prompt": 1}, {},
                {"prompt": "x", "seed": 0}, {"prompt": "x", "seed": 2**53 - 1}, {"prompt": "x", "seed": 2**53},
                {"prompt": "x", "seed": -1}, {"prompt": "x", "seed": "12"}, {"prompt": "x", "seed": "1.5"},
                {"prompt": "x", "seed": ""}, {"prompt": "x", "seed": None}, {"prompt": "x", "seed": True},
                {"prompt": "x", "size": "512x512"}, {"prompt": "x", "size": "1x1"}, {"prompt": "x", "size": ""},
                {"prompt": "x", "priority": "low"}, {"prompt": "x", "priority": "normal"}, {"prompt": "x", "priority": ""},
                {"prompt": "x", "priority": None}, {"prompt": "x", "priority": "urgent"}, {"prompt": "x", "priority": 1},
                {"prompt": "x", "size": None}, {"prompt": "x", "colour": "red"}, {"prompt": "é" * 4000},
            ],
        ),
        (
            "Cancel",
            "POST /api/generate/cancel",
            [{"taskId": "TASK"}, {}, {"taskId": 1}, {"taskId": "TASK", "x": 1}, {"taskId": "a" * 65}],
        ),
        (
            "TokenOrder",
            "POST /api/auth/tokens",
            [{}, {"name": "x"}, {"name": "x" * 100}, {"name": "x" * 101}, {"name": ""}, {"name": 1}, {"nome": "x"}],
        ),
        (
            "Credentials",
            "POST /api/auth/login",
            [
                {"email": "a@example.org"}, {"email": 1, "password": "correct horse"},
                {"email": "a@example.org", "password": "x" * 1025},
                {"email": "a@example.org", "password": "x", "remember": True},
            ],
        ),
    ],
)  # fmt: skip
async def test_a_body_is_taken_if_it_is_as_described_and_not_otherwise(
    alice: Person, schema: str, method_and_url: str, bodies: list[Any]
) -> None:
    method, url = method_and_url.split()
    task_id = await alice.create()
    validator = alice.app[CONTRACT].validator("components", "schemas", schema)
    for body in bodies:
        given = {**body, **({"taskId": task_id} if body.get("taskId") == "TASK" else {})}
        async with alice.http.request(method, url, json=given) as reply:
            assert (reply.status < 300) == validator.is_valid(given), f"{str(body)[:80]}: {await reply.text()}"


# Readable ------------------------------------------------------------------------------------------------------------


class Anchors(HTMLParser):
    """Collects what links of a page point to, and what may be pointed to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.ids.append(given["id"] or "")
        if tag == "a":
            self.links.add(given.get("href") or "")


async def test_the_page_shows_all_of_it_and_no_link_leads_nowhere(start: Start) -> None:
    client = await start()
    async with client.get("/docs", headers=PAGE) as reply:
        text = await reply.text()
        assert reply.status == 200
    anchors = Anchors(text)
    assert len(anchors.ids) == len(set(anchors.ids))
    assert {link.removeprefix("#") for link in anchors.links if link.startswith("#")} <= set(anchors.ids)
    assert not [link for link in anchors.links if "//" in link]
    application: web.Application = client.server.app  # type: ignore[attr-defined]
    document: Any = application[keys.DESCRIPTION]
    for operation in operations(document).values():
        assert operation["operationId"] in anchors.ids
    for name in document["components"]["schemas"]:
        assert f"schema-{name}" in anchors.ids
    for name in {*document["components"]["headers"], "gather", "until", "Idempotency-Key", "If-None-Match"}:
        assert f"<code>{name}</code>" in text
    assert f"{client.make_url('/api/generate')}" in text
