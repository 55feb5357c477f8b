"""The page of the account: the same as the API offers, by plain forms, so that it works without JavaScript."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from server.errors import BadRequest, NotSignedIn, Problem
from server.storage.logins import Login
from server.web.handlers import account, parameters, tokens
from server.web.handlers.login import mark_browser
from server.web.identity import check_expected, signed_in_by_cookie
from server.web.keys import SESSIONS
from server.web.replies import page, say_when_to_retry

_FIELDS: Final = frozenset({"action", "user", "currentPassword", "newPassword", "id", "name", "scope", "expiresInDays"})
DONE: Final = {
    "password": "The password is changed, and every other session has ended.",
    "session": "That session has ended.",
    "revoked": "The token is revoked.",
}
Fields = dict[str, str]
Action = Callable[[web.Request, Login, Fields], Awaitable[web.Response]]


async def show(request: web.Request) -> web.Response:
    """Show where the user is logged in, the tokens, and the forms."""
    login = await signed_in_by_cookie(request)
    return await _page(request, login, done=DONE.get(request.query.get("done", "")))


async def act(request: web.Request) -> web.Response:
    """Do what a form asks for; what can't be done is said on the same page."""
    login = await signed_in_by_cookie(request)
    try:
        fields = await parameters.text_fields(request, _FIELDS)
        check_expected(login.user, fields.get("user"))
        action = ACTIONS.get(fields.get("action", ""))
        if action is None:
            raise BadRequest(f"action must be one of: {', '.join(ACTIONS)}.")
        return await action(request, login, fields)
    except NotSignedIn:
        raise
    except Problem as problem:
        response = await _page(request, login, error=problem.detail or problem.title, status=problem.status)
        say_when_to_retry(response, problem)
        return response


async def _change_password(request: web.Request, login: Login, fields: Fields) -> web.Response:
    await account.set_password(request, login, fields.get("currentPassword", ""), fields.get("newPassword", ""))
    response = _go_to("/account?done=password")
    await mark_browser(request, response, login.user)
    return response


async def _end_session(request: web.Request, login: Login, fields: Fields) -> web.Response:
    await account.log_out_of(request, login, fields.get("id", ""))
    return _go_to("/account?done=session")


async def _log_out_everywhere(request: web.Request, login: Login, _fields: Fields) -> web.Response:
    await account.end_everything(request, login)
    return _go_to("/login")


async def _make_token(request: web.Request, login: Login, fields: Fields) -> web.Response:
    days = fields.get("expiresInDays", "")
    wish: dict[str, object] = {name: fields[name] for name in ("name", "scope") if name in fields}
    # A form knows no numbers, and nothing at all stands for a token without an end.
    wish["expiresInDays"] = int(days) if days.isascii() and days.isdigit() and len(days) <= 5 else days or None
    secret, _ = await tokens.make(request, login.user, wish)
    return await _page(request, login, secret=secret)


async def _revoke_token(request: web.Request, login: Login, fields: Fields) -> web.Response:
    await tokens.end(request, login.user, fields.get("id", ""))
    return _go_to("/account?done=revoked")


async def _delete(request: web.Request, login: Login, fields: Fields) -> web.Response:
    await account.leave(request, login, fields.get("currentPassword", ""))
    return _go_to("/register")


ACTIONS: Final[dict[str, Action]] = {
    "password": _change_password,
    "end-session": _end_session,
    "log-out-everywhere": _log_out_everywhere,
    "make-token": _make_token,
    "revoke-token": _revoke_token,
    "delete-account": _delete,
}


def _go_to(target: str) -> web.Response:
    return web.Response(status=303, headers={"Location": target})


async def _page(
    request: web.Request,
    login: Login,
    *,
    done: str | None = None,
    error: str | None = None,
    secret: str | None = None,
    status: int = 200,
) -> web.Response:
    sessions = await request.app[SESSIONS].list(login.user)
    listed, cursor = await tokens.read_page(request, login.user)
    context = {
        "sessions": [account.describe(session, login) for session in sessions],
        "tokens": [tokens.describe(token) for token in listed],
        "next_cursor": cursor,
        "done": done,
        "error": error,
        "secret": secret,
    }
    return await page(request, "account_page.html", context, status=status)
