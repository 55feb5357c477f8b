"""Tasks as their owner handles them: create, cancel, list, delete, and the picture itself."""

from __future__ import annotations

from typing import Final

import orjson
from aiohttp import web

from server.errors import BadRequest, TaskNotFound
from server.generation.picture import media_type, suffix
from server.protocol.replies import missing
from server.storage.images import result_name
from server.storage.logins import Login
from server.storage.tasks import STATUSES, Task
from server.waiting.answers import Question, Until
from server.web.handlers import orders, paging, parameters
from server.web.identity import signed_in, signed_in_user
from server.web.keys import BOARD, CONFIG, IMAGES, PLACES, POLLING, RECORD, TASKS
from server.web.replies import json_reply

CLIENT_MARGIN_SECONDS: Final = 15


async def create(request: web.Request) -> web.Response:
    """Take a basic order."""
    return await _create(request, "basic")


async def create_advanced(request: web.Request) -> web.Response:
    """Take an order for a picture that builds on a reference image, if one is sent."""
    return await _create(request, "advanced")


async def _create(request: web.Request, kind: str) -> web.Response:
    login = await signed_in(request)
    key = orders.idempotency_key(request)
    parameters.until(request.query.get("until"), Until.TERMINAL)  # refused before anything is made
    order = await orders.read_order(request, kind)
    return await _reply_created(request, login, await orders.place(request, login.user, order, key))


async def create_again(request: web.Request) -> web.Response:
    """Take the order of an earlier task once more: its prompt, seed, size, kind and reference image."""
    login = await signed_in(request)
    key = orders.idempotency_key(request)
    parameters.until(request.query.get("until"), Until.TERMINAL)
    order = await orders.read_earlier(request, login.user, parameters.task_id(request.match_info["task_id"]))
    return await _reply_created(request, login, await orders.place(request, login.user, order, key))


async def _reply_created(request: web.Request, login: Login, made: Task | str) -> web.Response:
    polling = request.app[CONFIG].polling
    task, task_id = (made, made.task_id) if isinstance(made, Task) else (None, made)
    request[RECORD].task_id = task_id
    status_url = f"/api/generate/status?taskId={task_id}"
    headers = {"Location": status_url}
    wait = parameters.preferred_wait(request, polling.hold_seconds)
    if task is None or wait:
        until = parameters.until(request.query.get("until"), Until.TERMINAL)
        # The first version is what the client knows anyway: anything after it has begun is news.
        version = None if until is Until.TERMINAL else 1
        question = Question(task_id, login.user.user_id, version, wait or 0, until, credential=login)
        answer, held_seconds = await request.app[POLLING].answer(question)
        request[RECORD].held = None, held_seconds, ()
        task = answer.snapshot
        if task is None:
            raise missing(answer)
    else:
        await request.app[PLACES].refresh(task)
    if not isinstance(made, Task):
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
    body = {"taskId": task_id, "data": orjson.Fragment(_data(request, task)), "links": links, "poll": poll}
    return json_reply(body, status=200 if wait and task.terminal else 202, headers=headers)


def _data(request: web.Request, task: Task) -> bytes:
    return task.data(request.app[PLACES].standing(task))


def result_url(task_id: str) -> str:
    """Return where the picture of a task can be had, once it is completed."""
    return f"/api/generate/tasks/{task_id}/image"


# The rest ------------------------------------------------------------------------------------------------------------


async def cancel(request: web.Request) -> web.Response:
    """Cancel a waiting task at once; ask the worker to stop one that is being made; leave an ended one alone."""
    user = await signed_in_user(request)
    body = await parameters.json_object(request, known=frozenset({"taskId"}))
    given = body.get("taskId")
    task_id = request[RECORD].task_id = parameters.task_id(given if isinstance(given, str) else None)
    before = await request.app[TASKS].cancel(user.user_id, task_id)
    if before is None:
        raise TaskNotFound
    task = await _read_own(request, task_id, just_written=True)
    body = {"taskId": task_id, "data": orjson.Fragment(_data(request, task))}
    return json_reply(body, status=202 if before == "processing" else 200)


async def delete(request: web.Request) -> web.Response:
    """Delete a task and its pictures; whoever waits for it is told."""
    user = await signed_in_user(request)
    task_id = request[RECORD].task_id = parameters.task_id(request.match_info["task_id"])
    if not await request.app[TASKS].delete(user.user_id, task_id):
        raise TaskNotFound
    request.app[BOARD].invalidate(task_id)
    await orders.discard_pictures(request, task_id)
    return web.Response(status=204)


async def listing(request: web.Request) -> web.Response:
    """List the user's tasks, newest first, a page at a time."""
    user = await signed_in_user(request)
    tasks, cursor = await read_page(request, user.user_id)
    places = request.app[PLACES]
    await places.refresh(*tasks)
    items = [orjson.Fragment(task.listed(places.standing(task))) for task in tasks]
    return json_reply({"items": items, "nextCursor": cursor})


async def read_page(request: web.Request, user_id: str) -> tuple[list[Task], str | None]:
    """Return the page that the query asks for (`limit`, `cursor`, `status`) and the cursor of the next one."""
    query = request.query
    count = paging.limit(request)
    status = query.get("status") or None
    if status in {None, "all"}:
        status = None
    elif status not in STATUSES:
        raise BadRequest(f"status must be one of: {', '.join(STATUSES)}.")
    before = paging.before(request)
    tasks = await request.app[TASKS].list(user_id, limit=count + 1, status=status, before=before)
    cursor = paging.cursor(tasks[count - 1].created_at, tasks[count - 1].task_id) if len(tasks) > count else None
    return tasks[:count], cursor


async def image(request: web.Request) -> web.Response:
    """Send the picture of a completed task to its owner."""
    await signed_in_user(request)
    task_id = parameters.task_id(request.match_info["task_id"])
    task = await _read_own(request, task_id)
    if task.status != "completed":
        raise TaskNotFound("This task has no picture.")
    name = result_name(task_id, task.attempt)
    headers = {
        "ETag": f'"{name}"',
        "Cache-Control": "private, max-age=86400",
        "Cross-Origin-Resource-Policy": "same-origin",  # no page of another site may show it
    }
    if f'"{name}"' in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers=headers)
    content = await request.app[IMAGES].get(name)
    if content is None:
        raise TaskNotFound("The picture is gone.")
    media = media_type(content)
    if media is None:
        raise TaskNotFound("What is stored for this task is no picture.")
    headers["Content-Disposition"] = f'inline; filename="{task_id}.{suffix(media)}"'
    return web.Response(body=content, content_type=media, headers=headers)


async def _read_own(request: web.Request, task_id: str, *, just_written: bool = False) -> Task:
    user = await signed_in_user(request)
    request[RECORD].task_id = task_id
    if just_written:
        request.app[BOARD].invalidate(task_id)
    answer, _ = await request.app[POLLING].answer(Question(task_id, user.user_id))
    if answer.snapshot is None:
        raise TaskNotFound
    return answer.snapshot
