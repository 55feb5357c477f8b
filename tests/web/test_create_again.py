"""Asking for the same picture again, as after a failure: nothing of the order is lost."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from server.storage.images import reference_name
from server.web import keys
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql
from tests.web.test_tasks import form, image_files, picture

COLUMNS = "prompt, type, seed, size, has_reference, user_id::text"


async def again(person: Person, task_id: str, status: int = 202, **headers: str) -> Any:
    async with person.http.post(f"/api/generate/tasks/{task_id}/again", headers=headers) as reply:
        assert reply.status == status, await reply.text()
        return {**(await reply.json()), "headers": reply.headers}


def order_of(sql: Sql, task_id: str) -> Any:
    return sql(f"SELECT {COLUMNS} FROM public.image_generations WHERE task_id = %s", (task_id,))


async def advanced(person: Person, **fields: str | bytes) -> str:
    async with person.http.post("/api/generate_advanced", data=form(**fields)) as reply:
        assert reply.status == 202, await reply.text()
        return str((await reply.json())["taskId"])


async def test_the_new_task_is_made_from_the_same_order(alice: Person, sql: Sql) -> None:
    fields = {"prompt": "two\nlines", "seed": "7", "size": "512x768"}
    for task_id in (await advanced(alice, **fields, reference_image=picture("JPEG")), await alice.create("a lake")):
        sql("UPDATE public.image_generations SET status = 'canceled' WHERE task_id = %s", (task_id,))
        made = await again(alice, task_id)
        assert made["taskId"] != task_id
        assert (made["data"]["status"], made["data"]["version"]) == ("pending", 1)
        assert made["headers"]["Location"] == f"/api/generate/status?taskId={made['taskId']}"
        assert order_of(sql, made["taskId"]) == order_of(sql, task_id)
        images = alice.app[keys.IMAGES]
        assert await images.get(reference_name(made["taskId"])) == await images.get(reference_name(task_id))


async def test_the_earlier_task_can_be_deleted_meanwhile(alice: Person) -> None:
    task_id = await advanced(alice, prompt="x", reference_image=picture())
    made = await again(alice, task_id)
    async with alice.http.delete(f"/api/generate/tasks/{task_id}") as reply:
        assert reply.status == 204
    kept = await alice.app[keys.IMAGES].get(reference_name(made["taskId"]))
    assert kept is not None
    assert Image.open(io.BytesIO(kept)).size == (40, 30)


async def test_a_repeated_request_makes_one_task(alice: Person) -> None:
    task_id = await advanced(alice, prompt="x", reference_image=picture())
    other = await alice.create()
    first, second = [await again(alice, task_id, **{"Idempotency-Key": "k"}) for _ in range(2)]
    assert first["taskId"] == second["taskId"]
    assert second["headers"]["Idempotent-Replayed"] == "true"
    assert (await again(alice, other, 422, **{"Idempotency-Key": "k"}))["code"] == "idempotency_mismatch"
    assert image_files(alice) == sorted(reference_name(made) for made in (task_id, first["taskId"]))


async def test_nobody_makes_anothers_task_again(alice: Person, bob: Person, sql: Sql) -> None:
    task_id = await advanced(alice, prompt="a secret", reference_image=picture())
    for given in (task_id, "unknown", "a" * 65, "a.b"):
        assert (await again(bob, given, 404))["error"] == "Task not found"
    assert sql("SELECT count(*) FROM public.image_generations") == [(1,)]
    assert image_files(alice) == [reference_name(task_id)]


async def test_a_reference_image_that_is_gone_is_told_and_not_left_out(alice: Person, sql: Sql) -> None:
    task_id = await advanced(alice, prompt="x", reference_image=picture())
    await alice.app[keys.IMAGES].delete_task(task_id)
    assert "no longer there" in (await again(alice, task_id, 422))["detail"]
    assert sql("SELECT count(*) FROM public.image_generations") == [(1,)]


async def test_it_counts_as_a_create(start: Start, enter: Enter) -> None:
    alice = await enter(await start(limits={"enabled": True, "create": "2 per minute"}))
    task_id = await alice.create()
    await again(alice, task_id)
    assert (await again(alice, task_id, 429))["code"] == "too_many_requests"
