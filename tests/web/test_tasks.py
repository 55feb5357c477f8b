"""Tasks as their owner handles them: create, cancel, list, delete, and the picture."""

from __future__ import annotations

import asyncio
import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
from aiohttp import FormData
from PIL import Image

from server.storage.images import reference_name, result_name
from server.web import keys
from tests.support.facts import until
from tests.support.people import Enter, Person, Start
from tests.support.postgres import Sql


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 80, 20)).save(file, kind)
    return file.getvalue()


def form(**fields: str | bytes) -> FormData:
    """Return a multipart form; bytes are the reference image."""
    made = FormData(default_to_multipart=True)
    for name, value in fields.items():
        if isinstance(value, bytes):
            made.add_field(name, io.BytesIO(value), filename="picture.png", content_type="image/png")
        else:
            made.add_field(name, value)
    return made


def image_files(person: Person) -> list[str]:
    """Return the names of all files in the server's image folder."""
    folder: Path = person.app[keys.IMAGES].folder
    return sorted(path.name for path in folder.rglob("*.png"))


async def create(
    person: Person, status: int = 202, headers: dict[str, str] | None = None, query: str = "", **body: Any
) -> Any:
    async with person.http.post(f"/api/generate{query}", json={"prompt": "a lake", **body}, headers=headers) as reply:
        assert reply.status == status, await reply.text()
        return {**(await reply.json()), "headers": reply.headers}


async def cancel(person: Person, task_id: object, status: int) -> Any:
    async with person.http.post("/api/generate/cancel", json={"taskId": task_id}) as reply:
        assert reply.status == status, await reply.text()
        return await reply.json()


# Create --------------------------------------------------------------------------------------------------------------


async def test_a_new_task_says_where_to_ask_for_it(alice: Person, sql: Sql) -> None:
    made = await create(alice, prompt="  a lake \n")
    task_id = made["taskId"]
    assert made["headers"]["Location"] == f"/api/generate/status?taskId={task_id}"
    assert made["links"] == {
        "status": f"/api/generate/status?taskId={task_id}",
        "cancel": "/api/generate/cancel",
        "result": f"/api/generate/tasks/{task_id}/image",
    }
    assert made["poll"] == {"holdSeconds": 30, "clientTimeoutSeconds": 45}
    assert (made["data"]["taskId"], made["data"]["version"], made["data"]["status"]) == (task_id, 1, "pending")
    assert "Idempotent-Replayed" not in made["headers"]
    async with alice.http.get(made["headers"]["Location"], params={"wait": "0"}) as reply:
        state = (await reply.json())["data"]
    assert state == made["data"]
    assert state["queuePosition"] == 1
    assert sql("SELECT prompt, type, size, has_reference FROM public.image_generations") == [
        ("a lake", "basic", "768x768", False)
    ]


async def test_a_form_and_json_ask_for_the_same(alice: Person, sql: Sql) -> None:
    for url, kind in (("/api/generate", "basic"), ("/api/generate_advanced", "advanced")):
        fields = {"prompt": "a tree", "seed": "7", "size": "512x512"}
        for body in ({"data": form(**fields)}, {"json": {**fields, "seed": 7}}, {"json": fields}):
            async with alice.http.post(url, **body) as reply:
                assert reply.status == 202, await reply.text()
                made = await reply.json()
            assert made["data"]["type"] == kind
            assert sql(
                "SELECT prompt, seed, size, type FROM public.image_generations WHERE task_id = %s", (made["taskId"],)
            ) == [("a tree", 7, "512x512", kind)]


async def test_what_is_left_empty_has_its_default(alice: Person, sql: Sql) -> None:
    async with alice.http.post("/api/generate_advanced", data=form(prompt="x", seed="", size="")) as reply:
        assert reply.status == 202
    empty = FormData(default_to_multipart=True)
    empty.add_field("prompt", "x")
    empty.add_field("reference_image", b"", filename="", content_type="application/octet-stream")
    async with alice.http.post("/api/generate_advanced", data=empty) as reply:
        assert reply.status == 202, await reply.text()  # a file input that nobody used
    assert sql("SELECT DISTINCT size, has_reference FROM public.image_generations") == [("768x768", False)]
    assert image_files(alice) == []


async def test_a_reference_image_is_kept_clean_beside_its_task(alice: Person, sql: Sql) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        async with alice.http.post(
            "/api/generate_advanced", data=form(prompt="x", reference_image=picture(kind))
        ) as reply:
            assert reply.status == 202, await reply.text()
            task_id = (await reply.json())["taskId"]
        assert sql("SELECT has_reference FROM public.image_generations WHERE task_id = %s", (task_id,)) == [(True,)]
        kept = await alice.app[keys.IMAGES].get(reference_name(task_id))
        assert kept is not None
        assert Image.open(io.BytesIO(kept)).size == (40, 30)


async def test_the_longest_prompt_has_4000_characters_however_many_bytes(alice: Person, sql: Sql) -> None:
    for prompt in ("x" * 4000, "🌊" * 4000, "  " + "ж" * 4000 + "\n"):
        await create(alice, prompt=prompt)
        async with alice.http.post("/api/generate", data=form(prompt=prompt)) as reply:
            assert reply.status == 202, await reply.text()
    assert sql("SELECT DISTINCT char_length(prompt) FROM public.image_generations") == [(4000,)]


async def test_a_repeated_request_makes_one_task(alice: Person, bob: Person, sql: Sql) -> None:
    key = {"Idempotency-Key": "a-key"}
    first = await create(alice, headers=key, seed=1)
    again = await create(alice, headers=key, seed=1)
    assert again["taskId"] == first["taskId"]
    assert again["headers"]["Idempotent-Replayed"] == "true"
    assert again["headers"]["Location"] == first["headers"]["Location"]
    assert again["links"] == first["links"]
    refused = await create(alice, 422, key, seed=2)
    assert refused["code"] == "idempotency_mismatch"
    other = await create(bob, headers=key, seed=2)
    assert other["taskId"] != first["taskId"]
    assert "Idempotent-Replayed" not in other["headers"]
    assert sql("SELECT count(*) FROM public.image_generations") == [(2,)]


async def test_a_repeated_request_with_an_image_leaves_no_second_file(alice: Person) -> None:
    async def send(image: bytes) -> tuple[int, str]:
        async with alice.http.post(
            "/api/generate_advanced",
            data=form(prompt="x", reference_image=image),
            headers={"Idempotency-Key": "k"},
        ) as reply:
            return reply.status, (await reply.json()).get("taskId", "")

    status, task_id = await send(picture())
    assert status == 202
    assert await send(picture()) == (202, task_id)
    assert (await send(picture(size=(9, 9))))[0] == 422
    assert image_files(alice) == [reference_name(task_id)]


async def test_many_repetitions_at_once_make_one_task(alice: Person, sql: Sql) -> None:
    replies = await asyncio.gather(*(create(alice, headers={"Idempotency-Key": "k"}) for _ in range(8)))
    assert len({reply["taskId"] for reply in replies}) == 1
    assert sum("Idempotent-Replayed" not in reply["headers"] for reply in replies) == 1
    assert sql("SELECT count(*) FROM public.image_generations") == [(1,)]


async def test_an_idempotency_key_must_be_short_and_printable(alice: Person) -> None:
    await create(alice, headers={"Idempotency-Key": "k" * 255})
    for key in ("k" * 256, "", "ключ"):
        refused = await create(alice, 400, {"Idempotency-Key": key})
        assert "Idempotency-Key" in refused["detail"]


async def test_a_create_that_waits_is_answered_when_the_task_has_ended(alice: Person, sql: Sql) -> None:
    waiting = asyncio.create_task(create(alice, 200, {"Prefer": "wait=20"}))
    await until(lambda: alice.held == 1)
    sql("UPDATE public.image_generations SET status = 'processing'")
    sql("UPDATE public.image_generations SET status = 'completed', result = '/picture'")
    made = await waiting
    assert made["headers"]["Preference-Applied"] == "wait=20"
    assert (made["data"]["status"], made["data"]["result"]) == ("completed", "/picture")


async def test_a_create_may_wait_for_no_more_than_the_beginning_of_the_work(alice: Person, sql: Sql) -> None:
    waiting = asyncio.create_task(create(alice, 202, {"Prefer": "wait=20"}, "?until=status"))
    await until(lambda: alice.held == 1)
    sql("UPDATE public.image_generations SET progress = 0.1")
    sql("UPDATE public.image_generations SET status = 'processing'")
    made = await waiting
    assert made["headers"]["Preference-Applied"] == "wait=20"
    assert (made["data"]["status"], made["data"]["version"]) == ("processing", 3)


async def test_a_create_whose_task_was_begun_before_it_could_wait_is_answered_at_once(alice: Person, sql: Sql) -> None:
    sql(
        "CREATE FUNCTION public.begin_at_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " UPDATE public.image_generations SET status = 'processing' WHERE id = NEW.id; RETURN NULL; END $$"
    )
    sql("ALTER FUNCTION public.begin_at_once() SECURITY DEFINER")
    sql(
        "CREATE TRIGGER begin_at_once AFTER INSERT ON public.image_generations"
        " FOR EACH ROW EXECUTE FUNCTION public.begin_at_once()"
    )
    made = await create(alice, 202, {"Prefer": "wait=20"}, "?until=status")
    assert (made["data"]["status"], made["data"]["version"]) == ("processing", 2)


async def test_a_create_refuses_to_wait_for_what_it_does_not_know_before_anything_is_made(
    alice: Person, sql: Sql
) -> None:
    refused = await create(alice, 400, {}, "?until=sunrise")
    assert "until must be one of" in refused["detail"]
    assert sql("SELECT count(*) FROM public.image_generations") == [(0,)]


async def test_a_create_that_waited_in_vain_is_a_202(start: Start, enter: Enter) -> None:
    alice = await enter(await start(polling={"hold_seconds": 0.2, "jitter_seconds": 0.0}))
    for wait, applied in (("wait=20", "wait=0.2"), ("wait=0", "wait=0")):
        made = await create(alice, 202, {"Prefer": wait})
        assert made["headers"]["Preference-Applied"] == applied
        assert made["data"]["status"] == "pending"


async def test_a_task_deleted_while_its_create_waits_is_a_410(alice: Person, sql: Sql) -> None:
    waiting = asyncio.create_task(create(alice, 410, {"Prefer": "wait=20"}))
    await until(lambda: alice.held == 1)
    sql("DELETE FROM public.image_generations")
    assert (await waiting)["error"] == "Task deleted"


# Cancel and delete ---------------------------------------------------------------------------------------------------


async def test_a_waiting_task_is_canceled_at_once(alice: Person) -> None:
    task_id = await alice.create()
    body = await cancel(alice, task_id, 200)
    assert body["taskId"] == task_id
    assert (body["data"]["status"], body["data"]["version"]) == ("canceled", 2)
    assert (await cancel(alice, task_id, 200))["data"] == body["data"]


async def test_a_task_that_is_being_made_is_asked_to_stop(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    sql("UPDATE public.image_generations SET status = 'processing'")
    body = await cancel(alice, task_id, 202)
    assert (body["data"]["status"], body["data"]["cancelRequested"]) == ("processing", True)
    assert body["data"]["version"] == 3
    assert (await cancel(alice, task_id, 202))["data"]["version"] == 3


async def test_an_ended_task_stays_as_it_is(alice: Person, sql: Sql) -> None:
    task_id = await alice.create()
    sql("UPDATE public.image_generations SET status = 'completed', result = '/r'")
    body = await cancel(alice, task_id, 200)
    assert (body["data"]["status"], body["data"]["cancelRequested"], body["data"]["version"]) == ("completed", False, 2)


async def test_nobody_cancels_or_deletes_what_is_not_theirs(alice: Person, bob: Person, sql: Sql) -> None:
    task_id = await alice.create()
    for given in (task_id, "unknown", "a" * 65, "ж"):
        assert (await cancel(bob, given, 404))["error"] == "Task not found"
        async with bob.http.delete(f"/api/generate/tasks/{given}") as reply:
            assert (reply.status, (await reply.json())["error"]) == (404, "Task not found")
    for missing in (None, "", 5, [task_id]):
        assert (await cancel(alice, missing, 400))["error"] == "Task ID is required"
    assert sql("SELECT task_id, status::text, version FROM public.image_generations") == [(task_id, "pending", 1)]


async def test_a_deleted_task_is_gone_with_its_files(alice: Person) -> None:
    async with alice.http.post("/api/generate_advanced", data=form(prompt="x", reference_image=picture())) as reply:
        task_id = (await reply.json())["taskId"]
    other = await alice.create()
    await alice.app[keys.IMAGES].put(result_name(task_id, 1), picture())
    await alice.app[keys.IMAGES].put(result_name(other, 1), picture())
    for status in (204, 404):
        async with alice.http.delete(f"/api/generate/tasks/{task_id}") as reply:
            assert reply.status == status
    assert image_files(alice) == [result_name(other, 1)]
    async with alice.poll(task_id) as reply:
        assert reply.status == 404


# The picture ---------------------------------------------------------------------------------------------------------


async def test_the_picture_is_its_owners_alone(alice: Person, bob: Person, sql: Sql) -> None:
    task_id = await alice.create()
    url, content = f"/api/generate/tasks/{task_id}/image", picture()
    async with alice.http.get(url) as reply:
        assert (reply.status, (await reply.json())["code"]) == (404, "task_not_found")  # not made yet
    await alice.app[keys.IMAGES].put(result_name(task_id, 1), content)
    sql("UPDATE public.image_generations SET status = 'completed', result = %s, attempt = 1", (url,))
    await until(lambda: has_ended(alice, task_id))
    async with alice.http.get(url) as reply:
        assert reply.status == 200
        assert hashlib.sha256(await reply.read()).digest() == hashlib.sha256(content).digest()
        assert reply.content_type == "image/png"
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Cache-Control"] == "private, max-age=86400"
        assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        tag = reply.headers["ETag"]
    async with alice.http.get(url, headers={"If-None-Match": tag}) as reply:
        assert (reply.status, await reply.read(), reply.headers["ETag"]) == (304, b"", tag)
    for headers in ({}, {"If-None-Match": tag}):
        async with bob.http.get(url, headers=headers) as reply:
            assert (reply.status, (await reply.json())["error"]) == (404, "Task not found")
            assert reply.headers["Cache-Control"] == "private, no-store"
    await alice.app[keys.IMAGES].delete_task(task_id)
    async with alice.http.get(url) as reply:
        assert (reply.status, (await reply.json())["detail"]) == (404, "The picture is gone.")


@pytest.mark.parametrize(
    ("kind", "media", "suffix"),
    [("PNG", "image/png", "png"), ("JPEG", "image/jpeg", "jpg"), ("WEBP", "image/webp", "webp")],
)
async def test_a_picture_is_sent_as_what_it_is(alice: Person, sql: Sql, kind: str, media: str, suffix: str) -> None:
    """Whatever its name says, which is the same for all."""
    task_id = await alice.create()
    await alice.app[keys.IMAGES].put(result_name(task_id, 0), picture(kind))
    sql("UPDATE public.image_generations SET status = 'completed', result = '/picture'")
    async with alice.http.get(f"/api/generate/tasks/{task_id}/image") as reply:
        assert (reply.status, reply.content_type, await reply.read()) == (200, media, picture(kind))
        assert reply.headers["Content-Disposition"] == f'inline; filename="{task_id}.{suffix}"'


async def test_what_is_no_picture_is_never_sent(alice: Person, sql: Sql) -> None:
    """Least of all as one: somebody has put it there by hand."""
    task_id = await alice.create()
    await alice.app[keys.IMAGES].put(result_name(task_id, 0), b"<html><script>alert(1)</script></html>")
    sql("UPDATE public.image_generations SET status = 'completed', result = '/picture'")
    async with alice.http.get(f"/api/generate/tasks/{task_id}/image") as reply:
        assert (reply.status, (await reply.json())["detail"]) == (404, "What is stored for this task is no picture.")


async def has_ended(person: Person, task_id: str) -> bool:
    body = await person.status(task_id, wait=0)
    return bool(body["poll"]["next"] == "stop")


async def test_a_seed_that_is_whole_may_be_written_with_a_point(alice: Person) -> None:
    """To JSON Schema 7.0 is a whole number, and to this server it is the same order."""
    ids = set()
    for seed in (7, 7.0):
        headers = {"Idempotency-Key": "once"}
        async with alice.http.post("/api/generate", json={"prompt": "a lake", "seed": seed}, headers=headers) as reply:
            assert reply.status == 202
            ids.add((await reply.json())["taskId"])
    assert len(ids) == 1
