"""A task that nobody works on, for as long as a poll of it is tried."""

from __future__ import annotations

import contextlib
import datetime as dt
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from server.storage.database import Database
from server.storage.logins import Scope
from server.storage.tasks import UserTasks
from server.storage.tokens import Tokens
from server.storage.users import User

# An address that can't exist (RFC 2606), of an account whose password hash fits no password.
_EMAIL: Final = "doctor@longpoll.invalid"


@dataclass(frozen=True, slots=True)
class _Id:
    task_id: str


@contextlib.asynccontextmanager
async def waiting_task(database: Database) -> AsyncIterator[tuple[str, str]]:
    """Give the id of a task and a token of its owner. Both are gone afterwards, the doctor's account remains."""
    user = await database.fetch_one("find_or_make_account", User, email=_EMAIL)
    assert user is not None
    tokens, task_id = Tokens(database, lambda _key: None), f"doctor-{secrets.token_hex(8)}"
    end = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)  # if we are killed before it is revoked
    secret, token = await tokens.create(user, "doctor", Scope.WRITE, end)
    try:
        await database.fetch("create_waiting_task", _Id, user=user.user_id, user_id=user.user_id, task_id=task_id)
        yield task_id, secret
    finally:
        await UserTasks(database).delete(user.user_id, task_id)
        await tokens.revoke(user, token.id)
