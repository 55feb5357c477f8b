"""Bearer tokens for scripts: made by somebody who is logged in, listed a page at a time, revoked."""

from __future__ import annotations

import datetime as dt
import re
from typing import Final

from aiohttp import web

from server.errors import BadRequest, NotFound
from server.storage.logins import Scope
from server.storage.tokens import Token
from server.storage.users import User
from server.telemetry import logs
from server.web.handlers import paging, parameters
from server.web.identity import signed_in_by_cookie, signed_in_user
from server.web.keys import RATE_LIMITS, TOKENS
from server.web.replies import json_reply

MAX_TOKEN_NAME: Final = 100
LONGEST_DAYS: Final = 3650
DEFAULT_DAYS: Final = 365
_TOKEN_ID: Final = re.compile(r"[0-9a-f-]{36}\Z")
_FIELDS: Final = frozenset({"name", "scope", "expiresInDays"})


async def create(request: web.Request) -> web.Response:
    """Make a token; its secret is in this reply and nowhere else."""
    user = (await signed_in_by_cookie(request)).user
    body = await parameters.json_object(request, known=_FIELDS)
    secret, token = await make(request, user, body)
    return json_reply({"token": secret, **describe(token)}, status=201)


async def make(request: web.Request, user: User, fields: dict[str, object]) -> tuple[str, Token]:
    """Make a token as the fields say; returns its secret, too.

    Raises:
        Problem: a field makes no sense, or there are too many.
    """
    name, scope = _name(fields.get("name", "script")), _scope(fields.get("scope", Scope.WRITE))
    expires_at = _expiry(fields.get("expiresInDays", DEFAULT_DAYS))
    await request.app[RATE_LIMITS].check("token", user.user_id)
    secret, token = await request.app[TOKENS].create(user, name, scope, expires_at)
    logs.log.info(logs.TOKEN_CREATED, user_id=user.user_id, token_id=token.id, scope=token.scope)
    return secret, token


async def listing(request: web.Request) -> web.Response:
    """List the user's tokens, without their secrets, a page at a time."""
    user = await signed_in_user(request)
    tokens, cursor = await read_page(request, user)
    return json_reply({"items": [describe(token) for token in tokens], "nextCursor": cursor})


async def read_page(request: web.Request, user: User) -> tuple[list[Token], str | None]:
    """Return the page that the query asks for (`limit`, `cursor`) and the cursor of the next one."""
    count = paging.limit(request)
    found = await request.app[TOKENS].list(user, limit=count + 1, before=paging.before(request))
    tokens = found[:count]
    return tokens, paging.cursor(tokens[-1].created_at, tokens[-1].id) if len(found) > count else None


async def revoke(request: web.Request) -> web.Response:
    """End a token, and whatever it holds."""
    user = await signed_in_user(request)
    await end(request, user, request.match_info["token_id"])
    return web.Response(status=204)


async def end(request: web.Request, user: User, token_id: str) -> None:
    """End a token.

    Raises:
        NotFound: the user has no such token.
    """
    if not _TOKEN_ID.match(token_id) or not await request.app[TOKENS].revoke(user, token_id):
        raise NotFound("You have no such token.")


def describe(token: Token) -> dict[str, object]:
    """Return what is told of a token."""
    return {
        "id": token.id,
        "name": token.name,
        "scope": token.scope,
        "createdAt": token.created_at,
        "expiresAt": token.expires_at,
        "lastUsedAt": token.last_used_at,
    }


def _name(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value.strip()) <= MAX_TOKEN_NAME or "\0" in value:
        raise BadRequest(f"name must be a text of 1 to {MAX_TOKEN_NAME} characters.")
    return value.strip()


def _scope(value: object) -> Scope:
    if not isinstance(value, str) or value not in set(Scope):
        raise BadRequest(f"scope must be one of: {', '.join(Scope)}.")
    return Scope(value)


def _expiry(value: object) -> dt.datetime | None:
    if value is None:
        return None
    days = parameters.whole_number(value, 1, LONGEST_DAYS)
    if days is None:
        raise BadRequest(
            f"expiresInDays must be a whole number from 1 to {LONGEST_DAYS}, or null for a token without an end."
        )
    return dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
