"""Authentication and authorization: the user of a bearer token or a cookie session, and the token's scope."""

from __future__ import annotations

from aiohttp import web
from aiohttp_session import get_session

from server.errors import NotSignedIn, OtherUser, ScopeTooNarrow, SessionRequired
from server.storage.logins import Login, Scope
from server.storage.sessions import TOKEN_PREFIX
from server.storage.users import User
from server.web.cookies import LOGIN
from server.web.keys import RECORD, SESSIONS, USER

EXPECTED_USER = "Expected-User"
"""The header in which a client names the user it takes itself for: a page outlives a login in another tab."""
_READING = frozenset({"GET", "HEAD"})


async def signed_in_user(request: web.Request) -> User:
    """Return the user, mostly from memory. Every handler that needs a login calls this, so a token's scope is enforced here.

    Raises:
        NotSignedIn: there is neither a live session nor a valid token.
        OtherUser: there is one, but of another user than the client names.
        ScopeTooNarrow: there is a token that may only read, and this request doesn't.
    """
    return (await signed_in(request)).user


async def signed_in(request: web.Request) -> Login:
    """Return the login, as `signed_in_user` does the user."""
    login = await _find_login(request)
    if login is None:
        raise NotSignedIn
    check_expected(login.user, request.headers.get(EXPECTED_USER))
    return login


async def signed_in_by_cookie(request: web.Request) -> Login:
    """Return the login if it is a session: for operations on the account, which no token may do.

    Raises:
        NotSignedIn: there is neither a live session nor a valid token.
        SessionRequired: there is a token.
    """
    login = await signed_in(request)
    if login.is_token:
        raise SessionRequired("Log in with the password: a token that leaks must not be able to do this.")
    return login


def check_expected(user: User, expected: str | None) -> None:
    """Raise if a client takes itself for somebody else; nothing of what it asks may happen then."""
    if expected is not None and expected != user.user_id:
        raise OtherUser("This was asked for another user than the one who is logged in now; nothing was done.")


async def find_user(request: web.Request) -> User | None:
    """Return the user, or None for a stranger. A token that isn't valid isn't made up for by a cookie.

    Raises:
        ScopeTooNarrow: as `signed_in_user` does.
    """
    login = await _find_login(request)
    return None if login is None else login.user


async def _find_login(request: web.Request) -> Login | None:
    secret = _bearer_secret(request)
    if secret is not None:
        # A session's secret is for its cookie alone: what scripts may use is listed, and revocable, as a token.
        login = await request.app[SESSIONS].find(secret) if secret.startswith(TOKEN_PREFIX) else None
    else:
        session = await get_session(request)
        login = None if session.empty else request.get(LOGIN)
    note_user(request, None if login is None else login.user)
    if login is not None and login.scope is Scope.READ and request.method not in _READING:
        raise ScopeTooNarrow("Make one whose scope is write.")
    return login


def note_user(request: web.Request, user: User | None) -> None:
    """Store the user on the request, and the user's id in its record."""
    request[USER] = user
    request[RECORD].user_id = None if user is None else user.user_id


def _bearer_secret(request: web.Request) -> str | None:
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None
