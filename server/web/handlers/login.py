"""Register, log in, log out. Forms and JSON alike."""

from __future__ import annotations

import re
import unicodedata
from typing import Final
from urllib.parse import quote

from aiohttp import web
from aiohttp_session import get_session, new_session

from server.errors import BadRequest, Problem
from server.storage import passwords
from server.storage.users import User
from server.telemetry import logs
from server.web.cookies import EMAIL, MARK, USER_ID
from server.web.handlers import parameters
from server.web.identity import note_user
from server.web.keys import COOKIE_SESSIONS, GUESSES, PROXY_HEADERS, RECORD, USERS
from server.web.replies import MAX_TARGET, json_reply, page, say_when_to_retry, wants_page

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
    fields = await parameters.text_fields(request, _FIELDS)
    email, target = fields.get("email", "").strip(), safe_target(fields.get("next"))
    try:
        user = await _authenticate(request, email, fields.get("password", ""), registering=registering)
    except Problem as problem:
        if not registering:
            logs.log.warning(logs.LOGIN_REFUSED, request_id=request[RECORD].request_id, code=problem.code)
        if not wants_page(request):
            raise
        context = {"error": problem.detail or problem.title, "email": email, "next": target}
        response = await page(request, template, context, status=problem.status)
        say_when_to_retry(response, problem)
        return response
    note_user(request, user)
    session = await new_session(request)
    session[USER_ID], session[EMAIL], session[MARK] = user.user_id, user.email, await _mark(request, user)
    logs.log.info(logs.ACCOUNT_REGISTERED if registering else logs.LOGIN_SUCCEEDED, user_id=user.user_id)
    body = {"user": {"id": user.user_id, "email": user.email}}
    if wants_page(request):
        return web.Response(status=303, headers={"Location": target})
    return json_reply(body, status=201 if registering else 200)


async def _authenticate(request: web.Request, email: str, password: str, *, registering: bool) -> User:
    if len(email) > MAX_EMAIL or not _EMAIL.match(email):
        raise BadRequest("email must be an address such as name@example.org.")
    passwords.refuse_unhashable(password)
    if not registering:
        return await check_password(request, email, password)
    if any(unicodedata.category(character)[0] in "CZ" for character in email):
        raise BadRequest("email must be an address of visible characters: it has one that can't be seen.")
    passwords.refuse_weak(password, email)
    user = await request.app[USERS].register(email, password)
    request.app[GUESSES].remember(user.user_id, request.app[PROXY_HEADERS].network(request))
    return user


async def check_password(request: web.Request, email: str, password: str) -> User:
    """Return the user with this address and password.

    Raises:
        WrongCredentials: there is no such one.
        TooManyRequests: too many wrong ones have been tried for this account, from where its owner has never been.
    """
    users, guesses, network = request.app[USERS], request.app[GUESSES], request.app[PROXY_HEADERS].network(request)
    account = await users.find(email)
    who = account.user_id if account is not None else email.lower()
    marked = account is not None and account.mark in request.app[COOKIE_SESSIONS].marks(request)
    bucket = guesses.bucket(who, network, marked=marked)
    guesses.begin(bucket)
    user = await users.check(account, password)
    guesses.was_right(bucket, who, network)
    return user


async def mark_browser(request: web.Request, response: web.StreamResponse, user: User) -> None:
    """Have the browser show from now on that it has been logged in to this account, whoever guesses at it."""
    mark = await _mark(request, user)
    if mark is not None:
        request.app[COOKIE_SESSIONS].add_mark(request, response, mark)


async def _mark(request: web.Request, user: User) -> str | None:
    account = await request.app[USERS].find(user.email)  # its hash may have been renewed just now
    return None if account is None else account.mark


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
