"""The pages a person sees."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from server import resources
from server.errors import NotFound, NotSignedIn, TaskNotFound
from server.generation.generator import DEFAULT_SIZE, SIZES
from server.handlers import parameters
from server.handlers.login import safe_target
from server.handlers.orders import MAX_PROMPT
from server.handlers.tasks import CLIENT_MARGIN_SECONDS, read_page
from server.identity import find_user, signed_in_user
from server.keys import CONFIG, COOKIE_SESSIONS, TASKS, TRACE
from server.replies import page

_BUDGET_SECONDS: Final = 600
_STATIC: Final = {path.name: path for path in resources.folder("static").iterdir()}


async def generate(request: web.Request) -> web.Response:
    """Show the form, and the cards of what is being made."""
    await signed_in_user(request)
    return await _page(request, "generate.html", sizes=list(SIZES), default_size=DEFAULT_SIZE, max_prompt=MAX_PROMPT)


async def history(request: web.Request) -> web.Response:
    """Show what the user has had made, a page at a time."""
    user = await signed_in_user(request)
    tasks, cursor = await read_page(request, user.user_id)
    described = [{**task.describe(), "prompt": task.prompt} for task in tasks]
    return await _page(request, "history.html", tasks=described, next_cursor=cursor, status=request.query.get("status"))


async def task(request: web.Request) -> web.Response:
    """Show one task, live until it has ended."""
    user = await signed_in_user(request)
    task_id = parameters.task_id(request.match_info["task_id"])
    found = await request.app[TASKS].find(user.user_id, task_id)
    if found is None:
        raise TaskNotFound
    request[TRACE].task_id = task_id
    described = {**found.describe(), "prompt": found.prompt}
    return await _page(request, "task.html", task=described)


async def log_in(request: web.Request) -> web.Response:
    """Show the form to log in, or go on if that has happened."""
    return await _account_page(request, "login.html")


async def register(request: web.Request) -> web.Response:
    """Show the form to register, or go on if somebody is logged in."""
    return await _account_page(request, "register.html")


async def static(request: web.Request) -> web.FileResponse:
    """Send a file that the pages need. aiohttp's own route would answer for one that isn't there by itself, bare."""
    path = _STATIC.get(request.match_info["filename"])
    if path is None:
        raise NotFound
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
    hold = request.app[CONFIG].polling.hold_seconds
    return await page(
        request,
        template,
        {
            "hold_seconds": hold,
            "client_timeout_seconds": hold + CLIENT_MARGIN_SECONDS,
            "budget_seconds": _BUDGET_SECONDS,
            **context,
        },
    )
