"""Who asks: the user of a bearer token or of a cookie session."""

from __future__ import annotations

from aiohttp import web
from aiohttp_session import get_session

from server.cookies import EMAIL, USER_ID
from server.errors import NotSignedIn, OtherUser
from server.keys import COOKIE_SESSIONS, SESSIONS, TRACE
from server.storage.sessions import TOKEN_PREFIX
from server.storage.users import User

EXPECTED_USER = "Expected-User"
"""The header in which a client names the user it takes itself for: a page outlives a login in another tab."""


async def signed_in_user(request: web.Request) -> User:
    """Return the user, mostly from memory.

    Raises:
        NotSignedIn: there is neither a live session nor a valid token.
        OtherUser: there is one, but of another user than the client names.
    """
    user = await find_user(request)
    if user is None:
        raise NotSignedIn
    check_expected(user, request.headers.get(EXPECTED_USER))
    return user


def check_expected(user: User, expected: str | None) -> None:
    """Raise if a client takes itself for somebody else; nothing of what it asks may happen then."""
    if expected is not None and expected != user.user_id:
        raise OtherUser("This was asked for another user than the one who is logged in now; nothing was done.")


async def find_user(request: web.Request) -> User | None:
    """Return the user, or None for a stranger. A token that isn't valid isn't made up for by a cookie."""
    secret = _bearer_secret(request)
    if secret is not None:
        # A session's secret is for its cookie alone: what scripts may use is listed, and revocable, as a token.
        user = await request.app[SESSIONS].find(secret) if secret.startswith(TOKEN_PREFIX) else None
    else:
        session = await get_session(request)
        user = None if session.empty else User(session[USER_ID], session[EMAIL])
    request[TRACE].user = user
    return user


def credential(request: web.Request) -> str | None:
    """Return what stands for the secret that this request came with, to ask about it again without the request."""
    secret = _bearer_secret(request)
    if secret is None:
        secret = request.app[COOKIE_SESSIONS].load_cookie(request)
    return request.app[SESSIONS].key_of(secret) if secret else None


def _bearer_secret(request: web.Request) -> str | None:
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None
