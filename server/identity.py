"""Who asks: the user of a bearer token or of a cookie session."""

from __future__ import annotations

from aiohttp import web
from aiohttp_session import get_session

from server.cookies import EMAIL, USER_ID
from server.errors import NotSignedIn
from server.keys import SESSIONS, TRACE
from server.storage.sessions import TOKEN_PREFIX
from server.storage.users import User


async def signed_in_user(request: web.Request) -> User:
    """Return the user, mostly from memory.

    Raises:
        NotSignedIn: there is neither a live session nor a valid token.
    """
    user = await find_user(request)
    if user is None:
        raise NotSignedIn
    return user


async def find_user(request: web.Request) -> User | None:
    """Return the user, or None for a stranger. A token that isn't valid isn't made up for by a cookie."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        secret = secret.strip()
        # A session's secret is for its cookie alone: what scripts may use is listed, and revocable, as a token.
        user = await request.app[SESSIONS].find(secret) if secret.startswith(TOKEN_PREFIX) else None
    else:
        session = await get_session(request)
        user = None if session.empty else User(session[USER_ID], session[EMAIL])
    request[TRACE].user = user
    return user
