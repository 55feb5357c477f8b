"""Another user's task and one that doesn't exist: the same reply by the same way, so that not even its time tells."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from server.storage.database import Database
from server.web import keys
from tests.support.facts import until
from tests.support.people import Enter, Person, Start
from tests.support.raw_http import connect_to, status_request

UNKNOWN = "no-such-task-22-letters"


@pytest.fixture
async def quiet(start: Start, enter: Enter) -> tuple[Person, Person]:
    """Alice and Bob at a server that asks its database nothing by itself."""
    client = await start(database={"heartbeat_seconds": 60.0}, polling={"sweep_seconds": 300.0})
    alice, bob = await enter(client, "alice"), await enter(client, "bob")
    alice.stop_reading_places()
    return alice, bob


@contextmanager
def statements(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Take down the names of all statements."""
    asked: list[str] = []
    fetch = Database._fetch

    async def listen(self: Database, query: str, *rest: Any, **options: Any) -> Any:
        asked.append(query)
        return await fetch(self, query, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "_fetch", listen)
        yield asked


async def ask(person: Person, method: str, url: str, **options: Any) -> tuple[int, str, list[str]]:
    """Return the status, the body without the request's id, and the names of the headers."""
    async with person.http.request(method, url, allow_redirects=False, **options) as reply:
        text = await reply.text()
        body = text.replace(reply.headers["X-Request-Id"], "…")
        return reply.status, body, sorted(reply.headers)


WAYS = {
    "status": ("GET", "/api/generate/status?taskId=ID&wait=0", {}),
    "status, a version behind": ("GET", "/api/generate/status?taskId=ID&version=0", {}),
    "status, the version": ("GET", "/api/generate/status?taskId=ID&version=1&wait=0.2", {}),
    "status, a version ahead": ("GET", "/api/generate/status?taskId=ID&version=99", {}),
    "batch": ("GET", "/api/generate/status/batch?task=ID:1&wait=0", {}),
    "batch, held": ("GET", "/api/generate/status/batch?task=ID:1&wait=1", {}),
    "batch, a version ahead": ("GET", "/api/generate/status/batch?task=ID:99&wait=1", {}),
    "batch, gathered": ("GET", "/api/generate/status/batch?task=ID:0&gather=1&wait=1", {}),
    "cancel": ("POST", "/api/generate/cancel", {"json": {"taskId": "ID"}}),
    "delete": ("DELETE", "/api/generate/tasks/ID", {}),
    "image": ("GET", "/api/generate/tasks/ID/image", {}),
    "page": ("GET", "/tasks/ID", {"headers": {"Accept": "text/html"}}),
}


@pytest.mark.parametrize("known", ["held by its owner", "known", "stale", "unknown to this server"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_foreign_task_takes_the_way_of_an_unknown_one(
    quiet: tuple[Person, Person], monkeypatch: pytest.MonkeyPatch, way: str, known: str
) -> None:
    alice, bob = quiet
    board = alice.app[keys.BOARD]
    task_id = await alice.create()
    await alice.status(task_id, wait=0)
    await ask(bob, "GET", "/api/generate/tasks")  # who he is, is known
    assert await alice.app[keys.LISTENER].barrier()
    async with connect_to(alice) as owner:
        if known == "held by its owner":
            await owner.send(status_request(alice, task_id, version=1))
            await until(lambda: alice.held == 1)
        if known == "unknown to this server":
            board._tasks.clear()
            board._idle.clear()
        seen = []
        for asked_for in (task_id, UNKNOWN):
            if known == "stale":
                board.invalidate(task_id)
            method, url, options = WAYS[way]
            filled = json.loads(json.dumps(options).replace(': "ID"', f': "{asked_for}"'))
            with statements(monkeypatch) as asked:
                status, body, names = await ask(
                    bob, method, url.replace("=ID", f"={asked_for}").replace("/ID", f"/{asked_for}"), **filled
                )
            assert status in {200, 404}
            seen.append((status, body.replace(asked_for, "ID"), names, asked))
        foreign, unknown = seen
        assert foreign == unknown
        assert len(foreign[3]) == 1
