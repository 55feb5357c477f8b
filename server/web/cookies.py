"""Sessions of aiohttp-session whose data lives in Postgres; the cookie holds a random secret and nothing else."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web
from aiohttp_session import AbstractStorage, Session

from server.protocol import heads
from server.storage.logins import Login
from server.storage.sessions import TOKEN_PREFIXES, Sessions
from server.storage.users import User

USER_ID: Final = "user_id"
EMAIL: Final = "email"
MARK: Final = "mark"
LOGIN: Final = web.RequestKey("login", Login)
_LONGEST_AGENT: Final = 200
_MOST_MARKS: Final = 5
_MARKS_SECONDS: Final = 400 * 86_400  # browsers keep none for longer
_MARK: Final = re.compile(r"[0-9a-f]{64}\Z")


class CookieSessions(AbstractStorage):
    """Loads and saves a request's session through `Sessions`, which answers from memory mostly.

    Browsers keep the cookies of a host apart by their names only, whatever the port: two sites on one host would end
    each other's logins. So the name of ours has the site's id in it. The bare name is read, too: it is what a login
    before that was called, and what a program may send.
    """

    def __init__(self, sessions: Sessions, *, secure: bool) -> None:
        """`secure`: the site is https; the cookie then can't be set by, or sent to, anybody else."""
        super().__init__(
            cookie_name=bare_name(secure=secure),
            max_age=sessions.max_age,
            secure=secure,
            httponly=True,
            samesite="Lax",
        )
        self._sessions = sessions
        self._secure = secure
        self._bare_name = self._cookie_name

    def belong_to(self, site: str) -> None:
        """Set the name of the cookie, which has the site's id in it."""
        self._cookie_name = f"{self._bare_name}-{site}"

    def load_cookie(self, request: web.Request) -> str | None:
        """Return the secret in the request's cookie."""
        return request.cookies.get(self._name_in(request))

    async def load_session(self, request: web.Request) -> Session:
        """Return the session that the cookie stands for, or an empty one."""
        secret = self.load_cookie(request)
        if secret and secret.startswith(TOKEN_PREFIXES):
            secret = None  # a bearer token, which no logout would end
        login = await self._sessions.find(secret) if secret else None
        if login is None:
            return Session(None, data=None, new=True)
        request[LOGIN], user = login, login.user
        return Session(secret, data={"session": {USER_ID: user.user_id, EMAIL: user.email}}, new=False)

    async def save_session(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Begin what was made by a login, end what was emptied by a logout; a secret is never used twice.

        Raises:
            ValueError: the reply can't be written, so nobody would get the secret.
        """
        heads.require_writable(response.headers)
        old = self.load_cookie(request)
        if old:
            await self._sessions.revoke(old)
        if session.empty:
            if old:
                # With all its attributes: browsers ignore a __Host- cookie that isn't Secure, a deletion too.
                response.del_cookie(self._name_in(request), secure=self._secure, httponly=True, samesite="Lax")
            return
        secret = await self._sessions.create(User(session[USER_ID], session[EMAIL]), _agent(request))
        self.save_cookie(response, secret, max_age=self._sessions.max_age)
        if session.get(MARK):
            self.add_mark(request, response, session[MARK])  # behind it: there are clients that read one cookie only

    def _name_in(self, request: web.Request) -> str:
        return self._cookie_name if self._cookie_name in request.cookies else self._bare_name

    def marks(self, request: web.Request) -> list[str]:
        """Return what this browser shows of the accounts that it has been logged in to; see `Account.mark`."""
        return request.cookies.get(self._marks_name, "").split(".")[:_MOST_MARKS]

    def add_mark(self, request: web.Request, response: web.StreamResponse, mark: str) -> None:
        """Have the browser show this one, too. It outlives the session: that is what it is for."""
        others = [each for each in self.marks(request) if _MARK.match(each)]
        if mark not in others:
            response.set_cookie(
                self._marks_name,
                ".".join([mark, *others][:_MOST_MARKS]),
                max_age=_MARKS_SECONDS,
                secure=self._secure,
                httponly=True,
                samesite="Lax",
            )

    @property
    def _marks_name(self) -> str:
        # Not the session's name with something behind it: who looks for that by how it begins finds one cookie only.
        return self.cookie_name.replace("longpoll", "known-longpoll", 1)

    def prolong_cookie(self, request: web.Request, response: web.StreamResponse) -> None:
        """Have the browser keep its cookie for as long as the session now lasts.

        Only when its end was put off, not with every page: an answer that is late must not bring an old cookie back.
        """
        login, secret = request.get(LOGIN), self.load_cookie(request)
        if login is not None and login.cookie_due and secret:
            login.cookie_due = False
            self.save_cookie(response, secret, max_age=self._sessions.max_age)


def bare_name(*, secure: bool) -> str:
    """Return how the cookie's name begins. `__Host-` binds it to this host, and to https."""
    return "__Host-longpoll" if secure else "longpoll"


def _agent(request: web.Request) -> str:
    """Return what the browser calls itself, as far as it can be shown."""
    agent = request.headers.get("User-Agent", "")[:_LONGEST_AGENT]
    return "".join(character if character.isprintable() else " " for character in agent).strip()
