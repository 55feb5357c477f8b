"""The pages a person sees."""

from __future__ import annotations

import math
import os
import random
import re
import secrets
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from server import resources
from server.errors import (
    DatabaseUnavailable,
    NotFound,
    NotSignedIn,
    PicturesUnavailable,
    Problem,
    TaskNotFound,
    TooManyRequests,
    Unavailable,
)
from server.generation.generator import DEFAULT_SIZE, SIZES
from server.storage.retention import retention
from server.storage.tasks import Task
from server.storage.users import User
from server.telemetry import logs
from server.web.handlers import orders, parameters
from server.web.handlers.login import safe_target
from server.web.handlers.tasks import CLIENT_MARGIN_SECONDS, read_page
from server.web.identity import EXPECTED_USER, check_expected, find_user, signed_in_user
from server.web.keys import CONFIG, COOKIE_SESSIONS, PLACES, PROXY_HEADERS, RATE_LIMITS, RECORD, TASKS
from server.web.replies import page, problem_reply, wants_page

_BUDGET_SECONDS: Final = 600
_FORM_FIELDS: Final = orders.FIELDS | {"type", "user", "key"}
_FORM_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_STATIC: Final = resources.static_files()


async def generate(request: web.Request) -> web.Response:
    """Show the form, and the cards of what is being made."""
    await signed_in_user(request)
    return await _show_form(request, {})


async def create(request: web.Request) -> web.Response:
    """Take that form from a browser without JavaScript, and go on to the page of the new task."""
    fields: dict[str, str] = {}
    try:
        made = await _create(request, fields)
    except (DatabaseUnavailable, PicturesUnavailable) as error:
        return await _show_form(request, fields, _unavailable(request, error))
    except Problem as problem:
        return await _show_form(request, fields, problem)
    task_id = made.task_id if isinstance(made, Task) else made
    return web.Response(status=303, headers={"Location": f"/tasks/{task_id}"})


async def _create(request: web.Request, fields: dict[str, str]) -> Task | str:
    user = await _sender(request)
    if isinstance(user, Problem):
        await orders.read_form(request, fields, known=_FORM_FIELDS, with_image=False)  # to show it again
        raise user
    image = await orders.read_form(request, fields, known=_FORM_FIELDS)
    for expected in (fields.get("user") or None, request.headers.get(EXPECTED_USER)):
        check_expected(user, expected)
    kind = "advanced" if fields.get("type") == "advanced" else "basic"
    shown = fields if kind == "advanced" else {**fields, "seed": ""}
    order = await orders.make_order(request, kind, shown, image if kind == "advanced" else None)
    # The same form sent twice makes one task, as far as it asks for the same.
    once = fields.get("key", "")
    key = f"form-{once}-{order.digest.hex()[:32]}" if _FORM_KEY.match(once) else None
    return await orders.place(request, user, order, key)


async def _sender(request: web.Request) -> User | Problem:
    """Return who has sent a form, or why it isn't taken however it reads."""
    try:
        user = await find_user(request)
    except DatabaseUnavailable as error:
        return _unavailable(request, error)
    if user is None and request.content_type != "multipart/form-data":
        raise NotSignedIn
    parameters.require_media_type(request, "multipart/form-data")
    try:
        await request.app[RATE_LIMITS].check("create", request.app[PROXY_HEADERS].network(request))
    except TooManyRequests as problem:
        return problem
    return user or NotSignedIn("Your session has ended; what you typed is still here.")


def _unavailable(request: web.Request, error: DatabaseUnavailable | PicturesUnavailable) -> Problem:
    logs.log.warning(logs.REQUEST_CRASHED, request_id=request[RECORD].request_id, error=str(error))
    return Unavailable(error.told, retry_after=random.uniform(1, 4))


async def _show_form(request: web.Request, fields: Mapping[str, str], problem: Problem | None = None) -> web.Response:
    """Show the form with what was typed; `problem`: why it is there again."""
    if problem is not None and not wants_page(request):
        return await problem_reply(request, problem)
    response = await page(
        request,
        "generate.html",
        {
            "sizes": list(SIZES),
            "default_size": DEFAULT_SIZE,
            "max_prompt": orders.MAX_PROMPT,
            "form": {name: fields.get(name, "") for name in ("prompt", "type", "size", "seed", "user")},
            "form_key": secrets.token_urlsafe(12),
            "problem": problem,
            **_polling(request),
        },
        status=200 if problem is None else problem.status,
    )
    if problem is not None and problem.retry_after is not None:
        response.headers["Retry-After"] = str(math.ceil(problem.retry_after))
    return response


async def history(request: web.Request) -> web.Response:
    """Show what the user has had made, a page at a time."""
    user = await signed_in_user(request)
    tasks, cursor = await read_page(request, user.user_id)
    described = await _described(request, *tasks)
    return await _page(
        request,
        "history.html",
        tasks=described,
        next_cursor=cursor,
        status=request.query.get("status"),
        retention=retention(request.app[CONFIG].generation.keep_days),
    )


async def task(request: web.Request) -> web.Response:
    """Show one task, live until it has ended."""
    user = await signed_in_user(request)
    task_id = parameters.task_id(request.match_info["task_id"])
    found = await request.app[TASKS].find(user.user_id, task_id)
    if found is None:
        raise TaskNotFound
    request[RECORD].task_id = task_id
    [described] = await _described(request, found)
    return await _page(request, "task.html", task=described)


async def _described(request: web.Request, *tasks: Task) -> list[dict[str, object]]:
    places = request.app[PLACES]
    await places.refresh(*tasks)
    return [{**task.describe(places.standing(task)), "prompt": task.prompt} for task in tasks]


async def log_in(request: web.Request) -> web.Response:
    """Show the form to log in, or go on if that has happened."""
    return await _account_page(request, "login.html")


async def register(request: web.Request) -> web.Response:
    """Show the form to register, or go on if somebody is logged in."""
    return await _account_page(request, "register.html")


async def static(request: web.Request) -> web.FileResponse:
    """Send a file that the pages need. aiohttp's own route would answer for one that isn't there by itself, bare."""
    path = _STATIC.get("/".join(request.match_info.values()))
    if path is None:
        raise NotFound
    if not (path.is_file() and os.access(path, os.R_OK)):  # aiohttp would answer by itself here, too
        logs.log.error(logs.STATIC_FAILED, path=str(path))
        raise Unavailable("A file of this page can't be read just now.", retry_after=5)
    return web.FileResponse(path)


async def _account_page(request: web.Request, template: str) -> web.Response:
    target = safe_target(request.query.get("next"))
    if await find_user(request) is not None:
        return web.Response(status=303, headers={"Location": target})
    # A logout takes the cookie along: one that stands for nothing is of a session that has ended otherwise.
    ended = "ended" in request.query or request.app[COOKIE_SESSIONS].cookie_name in request.cookies
    return await page(request, template, {"error": None, "email": "", "next": target, "ended": ended})


async def _page(request: web.Request, template: str, **context: object) -> web.Response:
    user = await find_user(request)
    if user is None:
        raise NotSignedIn
    return await page(request, template, {**_polling(request), **context})


def _polling(request: web.Request) -> dict[str, object]:
    hold = request.app[CONFIG].polling.hold_seconds
    return {
        "hold_seconds": hold,
        "client_timeout_seconds": hold + CLIENT_MARGIN_SECONDS,
        "budget_seconds": _BUDGET_SECONDS,
    }
