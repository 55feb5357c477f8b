"""Sessions of aiohttp-session whose data lives in Postgres; the cookie holds a random secret and nothing else."""

from __future__ import annotations

from typing import Final

from aiohttp import web
from aiohttp_session import AbstractStorage, Session

from server import wire
from server.storage.sessions import TOKEN_PREFIX, Sessions
from server.storage.users import User

USER_ID: Final = "user_id"
EMAIL: Final = "email"


class CookieSessions(AbstractStorage):
    """Loads and saves a request's session through `Sessions`, which answers from memory mostly."""

    def __init__(self, sessions: Sessions, *, secure: bool) -> None:
        """`secure`: the site is https; the cookie then can't be set by, or sent to, anybody else."""
        super().__init__(
            cookie_name="__Host-longpoll" if secure else "longpoll",
            max_age=sessions.max_age,
            secure=secure,
            httponly=True,
            samesite="Lax",
        )
        self._sessions = sessions
        self._secure = secure

    async def load_session(self, request: web.Request) -> Session:
        """Return the session that the cookie stands for, or an empty one."""
        secret = self.load_cookie(request)
        if secret and secret.startswith(TOKEN_PREFIX):
            secret = None  # a bearer token, which no logout would end
        user = await self._sessions.find(secret) if secret else None
        if user is None:
            return Session(None, data=None, new=True)
        return Session(secret, data={"session": {USER_ID: user.user_id, EMAIL: user.email}}, new=False)

    async def save_session(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Begin what was made by a login, end what was emptied by a logout; a secret is never used twice.

        Raises:
            ValueError: the reply can't be written, so nobody would get the secret.
        """
        wire.require_writable(response.headers)
        old = self.load_cookie(request)
        if old:
            await self._sessions.revoke(old)
        if session.empty:
            if old:
                # With all its attributes: browsers ignore a __Host- cookie that isn't Secure, a deletion too.
                response.del_cookie(self.cookie_name, secure=self._secure, httponly=True, samesite="Lax")
            return
        secret = await self._sessions.create(User(session[USER_ID], session[EMAIL]))
        self.save_cookie(response, secret, max_age=self._sessions.max_age)
