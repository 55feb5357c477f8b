"""Machines that work over HTTPS, as far as a test plays them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from server.storage.sessions import WORKER_TOKEN_PREFIX, digest
from tests.support.postgres import Sql


@dataclass(frozen=True, slots=True)
class WorkerToken:
    """A worker's token, as the database knows it, and its secret."""

    id: str
    secret: str

    @property
    def header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}


def add_worker_token(
    sql: Sql, name: str = "gpu", *, tags: Sequence[str] = ("basic", "advanced"), concurrency: int = 1, days: float = 1
) -> WorkerToken:
    """Make a worker's token by SQL, the shortest way."""
    secret = WORKER_TOKEN_PREFIX + secrets.token_urlsafe(32)
    rows = sql(
        "INSERT INTO longpoll.worker_tokens (secret_hash, name, tags, concurrency, expires_at)"
        " VALUES (%s, %s, %s, %s, now() + %s * interval '1 day') RETURNING id::text",
        (digest(secret), name, list(tags), concurrency, days),
    )
    return WorkerToken(rows[0][0], secret)
