"""A login: what stands behind the secret of a session or a token, as long as this process remembers it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from server.storage.grants import WorkerGrant
from server.storage.users import User

# How often it is written down that a session or a token is used: rarely, and never on the way of a request.
SESSION_USE_SECONDS: Final = 86_400.0
TOKEN_USE_SECONDS: Final = 3600.0


class Scope(StrEnum):
    """What may be done with a token. A session may do everything."""

    READ = "read"
    WRITE = "write"


class Login:
    """One session or token that was found. All requests that come with it share this object, which is kept up to date.

    Attributes:
        key: the hash of the secret, in hexadecimal: names it, and opens nothing.
        expires_at: when it ends by itself, in seconds since 1970; infinity if it doesn't.
        read_at: when it was read, by the monotonic clock.
        proven: whether its revocation would be heard.
        use_due_at: when its use is to be written down next, in seconds since 1970.
        cookie_due: whether the browser's cookie is to be given the new end of the session.
        worker: what it is good for if it is a worker's token. Then there is no user, and `user` names the token.
    """

    __slots__ = (
        "cookie_due",
        "expires_at",
        "is_token",
        "key",
        "proven",
        "read_at",
        "scope",
        "use_due_at",
        "user",
        "worker",
    )

    def __init__(self, key: str, user: User) -> None:
        """Begin as a session without an end; whoever reads the row fills in the rest."""
        self.key = key
        self.user = user
        self.expires_at = float("inf")
        self.scope = Scope.WRITE
        self.is_token = False
        self.read_at = 0.0
        self.proven = False
        self.use_due_at = 0.0
        self.cookie_due = True
        self.worker: WorkerGrant | None = None
