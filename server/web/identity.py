"""Authentication and authorization: the user of a bearer token or a cookie session, the token's scope, a worker's token."""

from __future__ import annotations

from aiohttp import web
from aiohttp_session import get_session

from server.errors import (
    NotSignedIn,
    OtherUser,
    ScopeTooNarrow,
    SessionRequired,
    WorkerTokenRefused,
    WorkerTokenRequired,
)
from server.storage.grants import WorkerGrant
from server.storage.logins import Login, Scope
from server.storage.sessions import TOKEN_PREFIXES
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
        WorkerTokenRefused: there is a worker's token.
    """
    return (await signed_in(request)).user


async def signed_in(request: web.Request) -> Login:
    """Return the login, as `signed_in_user` does the user."""
    login = await _find_login(request)
    if login is None:
        raise NotSignedIn
    if login.worker is not None:
        raise WorkerTokenRefused("It is for /api/work/ alone. Log in, or make a token on the page /account.")
    _check_scope(login, request)
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


async def working(request: web.Request) -> tuple[Login, WorkerGrant]:
    """Return the login of a worker's token, and what it is good for. Every handler below /api/work/ calls this.

    Raises:
        NotSignedIn: there is no valid token, and nobody who is logged in.
        WorkerTokenRequired: there is a user, who may not work.
    """
    login = await _find_login(request)
    if login is None:
        raise NotSignedIn("Send a worker's token: Authorization: Bearer lpw_…")
    if login.worker is None:
        raise WorkerTokenRequired(
            "Send a worker's token, which an operator makes: python -m server token worker make NAME"
        )
    return login, login.worker


async def find_user(request: web.Request) -> User | None:
    """Return the user, or None for a stranger, as workers are. A token that isn't valid isn't made up for by a cookie.

    Raises:
        ScopeTooNarrow: as `signed_in_user` does.
    """
    login = await _find_login(request)
    if login is None or login.worker is not None:
        return None
    _check_scope(login, request)
    return login.user


async def _find_login(request: web.Request) -> Login | None:
    secret = _bearer_secret(request)
    if secret is not None:
        # A session's secret is for its cookie alone: what scripts may use is listed, and revocable, as a token.
        login = await request.app[SESSIONS].find(secret) if secret.startswith(TOKEN_PREFIXES) else None
    else:
        session = await get_session(request)
        login = None if session.empty else request.get(LOGIN)
    note_user(request, None if login is None or login.worker is not None else login.user)
    return login


def _check_scope(login: Login, request: web.Request) -> None:
    if login.scope is Scope.READ and request.method not in _READING:
        raise ScopeTooNarrow("Make one whose scope is write.")


def note_user(request: web.Request, user: User | None) -> None:
    """Store the user on the request, and the user's id in its record."""
    request[USER] = user
    request[RECORD].user_id = None if user is None else user.user_id


def _bearer_secret(request: web.Request) -> str | None:
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None
