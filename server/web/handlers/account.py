"""What people do with their account: the password, where they are logged in, and leaving. Only with a login, never a token."""

from __future__ import annotations

import asyncio
import re
from typing import Final

from aiohttp import web
from aiohttp_session import get_session

from server.errors import BadRequest, NotFound, WrongCredentials, WrongPassword
from server.storage import passwords
from server.storage.logins import Login
from server.storage.sessions import Session
from server.telemetry import logs
from server.web.handlers import parameters
from server.web.handlers.login import check_password, mark_browser
from server.web.handlers.orders import discard_pictures
from server.web.identity import signed_in_by_cookie
from server.web.keys import SESSIONS, USERS
from server.web.replies import json_reply

_SESSION_ID: Final = re.compile(r"[0-9a-f-]{36}\Z")


async def change_password(request: web.Request) -> web.Response:
    """Change the password, and end every other session."""
    login = await signed_in_by_cookie(request)
    fields = await parameters.text_fields(request, frozenset({"currentPassword", "newPassword"}))
    await set_password(request, login, fields.get("currentPassword", ""), fields.get("newPassword", ""))
    response = web.Response(status=204)
    await mark_browser(request, response, login.user)
    return response


async def list_sessions(request: web.Request) -> web.Response:
    """List where the user is logged in."""
    login = await signed_in_by_cookie(request)
    sessions = await request.app[SESSIONS].list(login.user)
    return json_reply({"items": [describe(session, login) for session in sessions]})


async def end_session(request: web.Request) -> web.Response:
    """Log out somewhere else."""
    login = await signed_in_by_cookie(request)
    await log_out_of(request, login, request.match_info["session_id"])
    return web.Response(status=204)


async def log_out_everywhere(request: web.Request) -> web.Response:
    """End every session of the user, this one too."""
    await end_everything(request, await signed_in_by_cookie(request))
    return web.Response(status=204)


async def delete_account(request: web.Request) -> web.Response:
    """Delete the account with all that is its own."""
    login = await signed_in_by_cookie(request)
    fields = await parameters.text_fields(request, frozenset({"currentPassword"}))
    await leave(request, login, fields.get("currentPassword", ""))
    return web.Response(status=204)


# What the page of the account does, too ------------------------------------------------------------------------------


async def set_password(request: web.Request, login: Login, current: str, new: str) -> None:
    """Change the password if the present one is right."""
    passwords.refuse_weak(new, login.user.email, name="newPassword")
    await _confirm(request, login, current)
    if passwords.normalize(new) == passwords.normalize(current):
        raise BadRequest("newPassword is the one that you have already.")
    for key in await request.app[USERS].change_password(login.user, new, but=login.key):
        request.app[SESSIONS].forget(key)
    logs.log.info(logs.PASSWORD_CHANGED, user_id=login.user.user_id)


async def log_out_of(request: web.Request, login: Login, session_id: str) -> None:
    """End one of the user's sessions."""
    if not _SESSION_ID.match(session_id) or not await request.app[SESSIONS].end(login.user, session_id):
        raise NotFound("You have no such session.")


async def end_everything(request: web.Request, login: Login) -> None:
    """End every session of the user, and have this browser forget its cookie."""
    await request.app[SESSIONS].end_all(login.user)
    (await get_session(request)).invalidate()


async def leave(request: web.Request, login: Login, current: str) -> None:
    """Delete the account if the password is right: tasks, pictures, tokens and sessions with it."""
    await _confirm(request, login, current)
    task_ids = await request.app[USERS].delete(login.user)
    request.app[SESSIONS].forget(login.key)
    (await get_session(request)).invalidate()
    logs.log.info(logs.ACCOUNT_DELETED, user_id=login.user.user_id, tasks=len(task_ids))
    # The rows are gone: a client that leaves now must not leave its pictures behind.
    await asyncio.shield(_discard_pictures(request, task_ids))


async def _discard_pictures(request: web.Request, task_ids: list[str]) -> None:
    for task_id in task_ids:
        await discard_pictures(request, task_id)


async def _confirm(request: web.Request, login: Login, current: str) -> None:
    passwords.refuse_unhashable(current, name="currentPassword")
    try:
        await check_password(request, login.user.email, current)
    except WrongCredentials:
        raise WrongPassword("currentPassword is not the password of this account.") from None


def describe(session: Session, login: Login) -> dict[str, object]:
    """Return what is told of a session. `login`: the one that asks."""
    return {
        "id": session.id,
        "agent": session.agent,
        "current": session.secret_hash == login.key,
        "createdAt": session.created_at,
        "lastUsedAt": session.last_used_at,
        "expiresAt": session.expires_at,
    }
