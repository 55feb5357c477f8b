"""Replies that several handlers give: JSON, problems, and pages that say what went wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

import aiohttp_jinja2
from aiohttp import web

from server.errors import NotSignedIn, Problem
from server.protocol.replies import JSON, compose_problem, headers_of, to_json
from server.web.keys import COOKIE_SESSIONS, RECORD, STATIC_VERSION, USER

MAX_TARGET: Final = 2048
"""Where to go after a login, percent-encoded: a longer `Location` doesn't pass every proxy."""


def json_reply(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Reply with JSON; bytes are sent as they are."""
    content = body if isinstance(body, bytes) else to_json(body)
    return web.Response(body=content, status=status, headers=headers, content_type=JSON)


async def problem_reply(request: web.Request, problem: Problem) -> web.Response:
    """Reply with application/problem+json (RFC 9457), or with a page if a person is looking."""
    if wants_page(request):
        if isinstance(problem, NotSignedIn) and request.method in {"GET", "HEAD"}:
            return web.Response(status=303, headers={"Location": _login_url(request.path_qs)})
        context = {"status": problem.status, "title": problem.title, "detail": problem.detail}
        response = await page(request, "error.html", context, status=problem.status)
    else:
        status, head, body = compose_problem(problem, request[RECORD].request_id)
        return web.Response(body=body, status=status, headers=headers_of(head))
    say_when_to_retry(response, problem)
    return response


def say_when_to_retry(response: web.Response, problem: Problem) -> None:
    """Add to a page what `problem_reply` says by itself: after how many seconds another try makes sense."""
    if problem.retry_after is not None:
        response.headers["Retry-After"] = str(math.ceil(problem.retry_after))


def _login_url(target: str) -> str:
    encoded = quote(target, safe="", errors="replace")
    return f"/login?next={encoded}" if len(encoded) <= MAX_TARGET else "/login"


async def page(
    request: web.Request, template: str, context: Mapping[str, object], *, status: int = 200
) -> web.Response:
    """Reply with a page. What every page shows is added here and not by a context processor, which would cost each poll."""
    common = {
        "static_version": request.app[STATIC_VERSION],
        "request_id": request[RECORD].request_id,
        "user": request.get(USER),
    }
    response = await aiohttp_jinja2.render_template_async(template, request, common | dict(context), status=status)
    if status == 200:
        request.app[COOKIE_SESSIONS].prolong_cookie(request, response)
    return response


async def standalone_page(
    app: web.Application, path: str, accept: str, problem: Problem, request_id: str
) -> web.Response | None:
    """Reply with a page that says what went wrong with a request that couldn't be read; None if nobody looks at pages."""
    if not _is_for_people(path, accept):
        return None
    template = aiohttp_jinja2.get_env(app).get_template("error.html")
    context = {"static_version": app[STATIC_VERSION], "request_id": request_id, "user": None}
    told = {"status": problem.status, "title": problem.title, "detail": problem.detail}
    return web.Response(
        text=await template.render_async(context | told), status=problem.status, content_type="text/html"
    )


def wants_page(request: web.Request) -> bool:
    """Whether a person looks at the reply in a browser, and not a program."""
    return _is_for_people(request.path, request.headers.get("Accept", ""))


def _is_for_people(path: str, accept: str) -> bool:
    """Whether what is asked for this way is looked at by a person."""
    if path.startswith("/api/") and not path.startswith("/api/auth/"):
        return False
    return "text/html" in accept
