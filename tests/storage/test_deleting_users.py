"""A user who is deleted takes everything along: tasks, pictures, sessions, tokens; and whoever waits for one is told."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from server.config import GenerationSettings
from server.storage.images import result_name
from server.storage.logins import Scope
from server.storage.retention import Retention
from server.telemetry.metrics import Metrics
from server.web import keys
from tests.support.facts import until
from tests.support.people import Person
from tests.support.postgres import Sql

THEIRS = ("public.image_generations", "longpoll.accounts", "longpoll.sessions", "longpoll.tokens")


async def give_everything(person: Person) -> str:
    """Give somebody a task with a picture, and a token; returns the task's id."""
    task_id = await person.create()
    await person.app[keys.IMAGES].put(result_name(task_id, 1), b"picture")
    await person.app[keys.TOKENS].create(person.user, "script", Scope.WRITE, None)
    return task_id


def count(sql: Sql, person: Person) -> list[int]:
    return [sql(f"SELECT count(*) FROM {table} WHERE user_id = %s", (person.user.user_id,))[0][0] for table in THEIRS]


def delete(sql: Sql, person: Person) -> None:
    """As an operator does, or Supabase's own interface."""
    sql("DELETE FROM auth.users WHERE id = %s", (person.user.user_id,))


async def test_everything_of_theirs_goes_and_nothing_of_others(alice: Person, bob: Person, sql: Sql) -> None:
    for person in (alice, bob):
        await give_everything(person)
    delete(sql, alice)
    assert count(sql, alice) == [0, 0, 0, 0]
    assert count(sql, bob) == [1, 1, 1, 1]


@pytest.mark.parametrize("way", ["status", "batch", "create"])
async def test_held_polls_of_their_tasks_end(alice: Person, bob: Person, sql: Sql, way: str) -> None:
    task_id, other = await alice.create(), await bob.create()
    bystander = asyncio.create_task(bob.status(other, version=1))
    if way == "status":
        poll = asyncio.ensure_future(alice.poll(task_id, version=1))
    elif way == "batch":
        poll = asyncio.ensure_future(alice.http.get(f"/api/generate/status/batch?task={task_id}:1"))
    else:
        wait = {"Prefer": "wait=30"}
        poll = asyncio.ensure_future(alice.http.post("/api/generate", json={"prompt": "a lake"}, headers=wait))
    await until(lambda: alice.held == 2)
    delete(sql, alice)
    async with await poll as reply:
        told = await reply.json()
        # Whichever is heard first: that the task is gone, or that the login is.
        gone = told.get("notFound") == [task_id] if reply.status == 200 else reply.status in {401, 410}
        assert gone, (reply.status, told)
    await until(lambda: alice.held == 1)
    bystander.cancel()


async def test_their_logins_and_tokens_end(alice: Person, sql: Sql) -> None:
    secret, _ = await alice.app[keys.TOKENS].create(alice.user, "script", Scope.WRITE, None)
    token = {"Authorization": f"Bearer {secret}"}
    for headers in (None, token):
        async with alice.http.get("/api/generate/tasks", headers=headers) as reply:
            assert reply.status == 200
    delete(sql, alice)

    async def refused() -> bool:
        async with alice.http.get("/api/generate/tasks") as cookie:
            pass
        async with alice.http.get("/api/generate/tasks", headers=token) as bearer:
            return (cookie.status, bearer.status) == (401, 401)

    await until(refused)


async def test_their_pictures_leave_the_folder(alice: Person, bob: Person, sql: Sql) -> None:
    for person in (alice, bob):
        await give_everything(person)
    images = alice.app[keys.IMAGES]
    for path in images.folder.glob("??/*"):
        os.utime(path, (time.time() - 7200,) * 2)
    delete(sql, alice)
    cleaning = Retention(alice.app[keys.DATABASE], images, GenerationSettings(bin_days=0), Metrics())

    async def only_bobs() -> bool:
        await cleaning.clean()  # beside the server's own, which keeps a bin
        return len(list(images.folder.rglob("*.png"))) == 1

    await until(only_bobs)
