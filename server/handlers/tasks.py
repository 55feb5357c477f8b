"""Tasks as their owner handles them: create, cancel, list, delete, and the picture itself."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import random
import re
import secrets
from dataclasses import dataclass
from typing import Final

import orjson
from aiohttp import BodyPartReader, MultipartReader, web

from server.errors import BadRequest, ConstraintViolated, PayloadTooLarge, Problem, TaskDeleted, TaskNotFound
from server.generation.generator import DEFAULT_SIZE, SIZES
from server.generation.reference import MAX_BYTES, clean_reference
from server.generation.worker import reference_name, result_name
from server.handlers import parameters
from server.identity import signed_in_user
from server.keys import BOARD, CONFIG, IMAGES, POLLING, TASKS, TRACE
from server.replies import json_reply
from server.storage.tasks import STATUSES, NewTask, Task
from server.uploads import UPLOADS
from server.waiting.answers import Question, Until

MAX_PROMPT: Final = 4000
_MAX_FIELD_BYTES: Final = 4 * MAX_PROMPT + 1024
MAX_SEED: Final = 2**53 - 1  # the largest whole number that JavaScript holds exactly
_FIELDS: Final = frozenset({"prompt", "seed", "size"})
_IDEMPOTENCY_KEY: Final = re.compile(r"[\x20-\x7e]{1,255}\Z")
CLIENT_MARGIN_SECONDS: Final = 15


@dataclass(frozen=True, slots=True)
class _Order:
    """What a client asks to be made, as it was sent."""

    prompt: str
    seed: int | None
    size: str
    image: bytes | None

    def digest(self, kind: str) -> bytes:
        """Tell whether two requests ask for the same."""
        image = hashlib.sha256(self.image).hexdigest() if self.image is not None else None
        return hashlib.sha256(orjson.dumps([kind, self.prompt, self.seed, self.size, image])).digest()


async def create(request: web.Request) -> web.Response:
    """Take a basic order."""
    return await _create(request, "basic")


async def create_advanced(request: web.Request) -> web.Response:
    """Take an order for a picture that builds on a reference image, if one is sent."""
    return await _create(request, "advanced")


async def _create(request: web.Request, kind: str) -> web.Response:
    user = await signed_in_user(request)
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _IDEMPOTENCY_KEY.match(key):
        raise BadRequest("Idempotency-Key must be 1 to 255 printable ASCII characters.")
    parameters.until(request.query.get("until"), Until.TERMINAL)  # refused before anything is made
    order = await _read_order(request)
    reference = await request.app[UPLOADS].run(clean_reference, order.image) if order.image is not None else None
    task_id = request[TRACE].task_id = secrets.token_urlsafe(16)
    new = NewTask(
        task_id=task_id,
        user_id=user.user_id,
        prompt=order.prompt,
        type=kind,
        seed=random.randrange(2**31) if order.seed is None else order.seed,
        size=order.size,
        has_reference=reference is not None,
        idempotency_key=key,
        request_digest=order.digest(kind),
    )
    # The image first: a worker may claim the task before this handler runs on.
    if reference is not None:
        await request.app[IMAGES].put(reference_name(task_id), reference)
    try:
        made = await request.app[TASKS].create(new)
    except (Problem, ConstraintViolated):  # not if the database was silent: the row may be there
        await request.app[IMAGES].delete_task(task_id)
        raise
    if isinstance(made, Task):
        return await _reply_created(request, made, made.task_id)
    await request.app[IMAGES].delete_task(task_id)
    return await _reply_created(request, None, made)


async def _reply_created(request: web.Request, made: Task | None, task_id: str) -> web.Response:
    user, polling = request[TRACE].user, request.app[CONFIG].polling
    assert user is not None
    request[TRACE].task_id = task_id
    status_url = f"/api/generate/status?taskId={task_id}"
    headers = {"Location": status_url}
    wait = parameters.preferred_wait(request, polling.hold_seconds)
    task = made
    if task is None or wait:
        until = parameters.until(request.query.get("until"), Until.TERMINAL)
        # The first version is what the client knows anyway: anything after it has begun is news.
        version = None if until is Until.TERMINAL else 1
        question = Question(task_id, user.user_id, version, wait or 0, until)
        answer, held_seconds = await request.app[POLLING].answer(question)
        request[TRACE].held = None, held_seconds, ()
        task = answer.snapshot
        if task is None:
            raise TaskDeleted if answer.deleted else TaskNotFound
    if made is None:
        headers["Idempotent-Replayed"] = "true"
    if wait is not None:
        headers["Preference-Applied"] = f"wait={wait:g}"
    links = {
        "status": status_url,
        "cancel": "/api/generate/cancel",
        "result": result_url(task_id),
    }
    poll = {
        "holdSeconds": polling.hold_seconds,
        "clientTimeoutSeconds": polling.hold_seconds + CLIENT_MARGIN_SECONDS,
    }
    body = {"taskId": task_id, "data": orjson.Fragment(task.data), "links": links, "poll": poll}
    return json_reply(body, status=200 if wait and task.terminal else 202, headers=headers)


def result_url(task_id: str) -> str:
    """Return where the picture of a task can be had, once it is completed."""
    return f"/api/generate/tasks/{task_id}/image"


# Reading an order ----------------------------------------------------------------------------------------------------


async def _read_order(request: web.Request) -> _Order:
    parameters.require_media_type(request, "multipart/form-data", "application/json")
    image = None
    if request.content_type == "application/json":
        fields = await parameters.json_object(request, known=_FIELDS)
    else:
        fields, image = await _read_multipart(request)
    return _Order(_prompt(fields.get("prompt")), _seed(fields.get("seed")), _size(fields.get("size")), image)


async def _read_multipart(request: web.Request) -> tuple[dict[str, object], bytes | None]:
    fields: dict[str, object] = {}
    image: bytes | None = None
    try:
        reader = await request.multipart()
        while (part := await parameters.read_within(request, reader.next())) is not None:
            if isinstance(part, MultipartReader):
                raise BadRequest("A form field can't be a form itself.")
            name = part.name or ""
            parameters.refuse_unknown({name}, _FIELDS | {"reference_image"})
            if name in fields or (name == "reference_image" and image is not None):
                raise BadRequest(f"The field {name} is there twice.")
            if name == "reference_image":
                content = await _read_part(request, part, MAX_BYTES, "The reference image may have at most 10 MiB.")
                image = content if content or part.filename else None  # a file input that was left empty
            else:
                limit = f"The field {name} is too long."
                fields[name] = (await _read_part(request, part, _MAX_FIELD_BYTES, limit)).decode()
    except UnicodeDecodeError:
        raise BadRequest("The fields of the form must be UTF-8.") from None
    except (ValueError, AssertionError, RuntimeError):
        raise BadRequest("The body isn't a complete multipart/form-data form.") from None
    return fields, image


async def _read_part(request: web.Request, part: BodyPartReader, limit: int, message: str) -> bytes:
    content = bytearray()
    while chunk := await parameters.read_within(request, part.read_chunk(64 * 1024)):
        content += chunk
        if len(content) > limit:
            raise PayloadTooLarge(message)
    return bytes(content)


def _prompt(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadRequest(f"prompt is required: 1 to {MAX_PROMPT} characters that say what the picture shows.")
    prompt = value.strip()
    if len(prompt) > MAX_PROMPT:
        raise BadRequest(f"prompt has {len(prompt)} characters; at most {MAX_PROMPT} are accepted.")
    if "\0" in prompt:
        raise BadRequest("prompt contains a NUL character; send text.")
    return prompt


def _seed(value: object) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 16:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SEED:
        raise BadRequest(f"seed must be a whole number from 0 to {MAX_SEED}.")
    return value


def _size(value: object) -> str:
    if value is None or value == "":
        return DEFAULT_SIZE
    if not isinstance(value, str) or value not in SIZES:
        raise BadRequest(f"size must be one of: {', '.join(SIZES)}.")
    return value


# The rest ------------------------------------------------------------------------------------------------------------


async def cancel(request: web.Request) -> web.Response:
    """Cancel a waiting task at once; ask the worker to stop one that is being made; leave an ended one alone."""
    user = await signed_in_user(request)
    body = await parameters.json_object(request, known=frozenset({"taskId"}))
    given = body.get("taskId")
    task_id = request[TRACE].task_id = parameters.task_id(given if isinstance(given, str) else None)
    before = await request.app[TASKS].cancel(user.user_id, task_id)
    if before is None:
        raise TaskNotFound
    task = await _read_own(request, task_id, just_written=True)
    body = {"taskId": task_id, "data": orjson.Fragment(task.data)}
    return json_reply(body, status=202 if before == "processing" else 200)


async def delete(request: web.Request) -> web.Response:
    """Delete a task and its pictures; whoever waits for it is told."""
    user = await signed_in_user(request)
    task_id = request[TRACE].task_id = parameters.task_id(request.match_info["task_id"])
    if not await request.app[TASKS].delete(user.user_id, task_id):
        raise TaskNotFound
    request.app[BOARD].doubt(task_id)
    await request.app[IMAGES].delete_task(task_id)
    return web.Response(status=204)


async def listing(request: web.Request) -> web.Response:
    """List the user's tasks, newest first, a page at a time."""
    user = await signed_in_user(request)
    tasks, cursor = await read_page(request, user.user_id)
    items = [{**task.describe(), "prompt": task.prompt} for task in tasks]
    return json_reply({"items": items, "nextCursor": cursor})


async def read_page(request: web.Request, user_id: str) -> tuple[list[Task], str | None]:
    """Return the page that the query asks for (`limit`, `cursor`, `status`) and the cursor of the next one."""
    query = request.query
    limit = query.get("limit", "20")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= 100):
        raise BadRequest("limit must be a whole number from 1 to 100.")
    status = query.get("status") or None
    if status in {None, "all"}:
        status = None
    elif status not in STATUSES:
        raise BadRequest(f"status must be one of: {', '.join(STATUSES)}.")
    count = int(limit)
    before = _read_cursor(query["cursor"]) if query.get("cursor") else None
    tasks = await request.app[TASKS].list(user_id, limit=count + 1, status=status, before=before)
    cursor = _cursor(tasks[count - 1]) if len(tasks) > count else None
    return tasks[:count], cursor


async def image(request: web.Request) -> web.Response:
    """Send the picture of a completed task to its owner."""
    await signed_in_user(request)
    task_id = parameters.task_id(request.match_info["task_id"])
    task = await _read_own(request, task_id)
    if task.status != "completed":
        raise TaskNotFound("This task has no picture.")
    name = result_name(task_id, int(str(task.describe()["attempt"])))
    headers = {
        "ETag": f'"{name}"',
        "Cache-Control": "private, max-age=86400",
        "Content-Disposition": f'inline; filename="{name}"',
    }
    if f'"{name}"' in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers=headers)
    content = await request.app[IMAGES].get(name)
    if content is None:
        raise TaskNotFound("The picture is gone.")
    return web.Response(body=content, content_type="image/png", headers=headers)


async def _read_own(request: web.Request, task_id: str, *, just_written: bool = False) -> Task:
    user = await signed_in_user(request)
    request[TRACE].task_id = task_id
    if just_written:
        request.app[BOARD].doubt(task_id)
    answer, _ = await request.app[POLLING].answer(Question(task_id, user.user_id))
    if answer.snapshot is None:
        raise TaskNotFound
    return answer.snapshot


def _cursor(task: Task) -> str:
    created = str(task.created_at.isoformat())
    return base64.urlsafe_b64encode(f"{created} {task.task_id}".encode()).decode().rstrip("=")


def _read_cursor(value: str) -> tuple[dt.datetime, str]:
    try:
        text = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).decode("ascii")
        created, _, task_id = text.partition(" ")
        moment = dt.datetime.fromisoformat(created)
        if moment.tzinfo is None:
            raise ValueError(created)  # noqa: TRY301 - one sentence for whatever is wrong with it
        return moment.astimezone(dt.UTC), parameters.task_id(task_id)
    except (ValueError, OverflowError, binascii.Error, Problem):
        raise BadRequest("cursor must be the nextCursor of an earlier page.") from None
