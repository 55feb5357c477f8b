"""Register, log in, log out. Forms and JSON alike."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

from aiohttp import web
from aiohttp_session import get_session, new_session

from server import logs
from server.cookies import EMAIL, USER_ID
from server.errors import BadRequest, Problem
from server.handlers import parameters
from server.keys import TRACE, USERS
from server.replies import MAX_TARGET, json_reply, page, wants_page
from server.storage.users import User

MIN_PASSWORD: Final = 8
MAX_PASSWORD: Final = 1024
MAX_EMAIL: Final = 254
_AS_IT_IS: Final = "%/?#[]@!$&'()*+,;=:"  # what has a meaning in a URL, or is percent-encoded already
_EMAIL: Final = re.compile(r"[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+\.[^@\s\x00-\x1f.]+\Z")
_FIELDS: Final = frozenset({"email", "password", "next"})


async def register(request: web.Request) -> web.Response:
    """Make an account and log in."""
    return await _enter(request, "register.html", registering=True)


async def log_in(request: web.Request) -> web.Response:
    """Begin a session. Its secret is a new one, whatever cookie came along."""
    return await _enter(request, "login.html", registering=False)


async def log_out(request: web.Request) -> web.Response:
    """End the session, in every process at once."""
    session = await get_session(request)
    session.invalidate()
    if wants_page(request):
        return web.Response(status=303, headers={"Location": "/login"})
    return web.Response(status=204)


async def _enter(request: web.Request, template: str, *, registering: bool) -> web.Response:
    fields = await _read_fields(request)
    email, target = fields.get("email", "").strip(), safe_target(fields.get("next"))
    try:
        user = await _authenticate(request, email, fields.get("password", ""), registering=registering)
    except Problem as problem:
        if not registering:
            logs.log.warning(logs.LOGIN_REFUSED, request_id=request[TRACE].request_id, code=problem.code)
        if not wants_page(request):
            raise
        context = {"error": problem.detail or problem.title, "email": email, "next": target}
        return await page(request, template, context, status=problem.status)
    request[TRACE].user = user
    session = await new_session(request)
    session[USER_ID], session[EMAIL] = user.user_id, user.email
    logs.log.info(logs.ACCOUNT_REGISTERED if registering else logs.LOGIN_SUCCEEDED, user_id=user.user_id)
    if wants_page(request):
        return web.Response(status=303, headers={"Location": target})
    return json_reply({"user": {"id": user.user_id, "email": user.email}}, status=201 if registering else 200)


async def _authenticate(request: web.Request, email: str, password: str, *, registering: bool) -> User:
    if len(email) > MAX_EMAIL or not _EMAIL.match(email):
        raise BadRequest("email must be an address such as name@example.org.")
    if len(password) > MAX_PASSWORD or "\0" in password:
        raise BadRequest(f"password may have at most {MAX_PASSWORD} characters.")
    if not registering:
        return await request.app[USERS].log_in(email, password)
    if len(password) < MIN_PASSWORD:
        raise BadRequest(f"password must have at least {MIN_PASSWORD} characters.")
    return await request.app[USERS].register(email, password)


async def _read_fields(request: web.Request) -> dict[str, str]:
    parameters.require_media_type(request, "application/json", "application/x-www-form-urlencoded")
    if request.content_type != "application/json":
        return await parameters.urlencoded_form(request, known=_FIELDS)
    given = await parameters.json_object(request, known=_FIELDS)
    if not all(isinstance(value, str) for value in given.values()):
        raise BadRequest("email, password and next must be texts.")
    return {name: str(value) for name, value in given.items()}


def safe_target(target: str | None) -> str:
    r"""Return where to go after the login: a path of this site; anything else (``//evil``, ``/\evil``) becomes ``/``.

    Percent-encoded, so that it can be written as a header whatever characters it had.
    """
    if not target or not target.startswith("/") or target[1:2] in {"/", "\\"}:
        return "/"
    if any(ord(character) < 32 or character == "\\" for character in target):
        return "/"
    encoded = quote(target, safe=_AS_IT_IS, errors="replace")
    return encoded if len(encoded) <= MAX_TARGET else "/"
