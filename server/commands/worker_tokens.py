"""The command `token worker`: makes, lists and revokes the tokens by which machines elsewhere work for this server."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import sys
from collections.abc import AsyncIterator

from server.commands.migrate import bring_up_to_date
from server.config import Config
from server.errors import ConfigurationError
from server.storage.database import Database
from server.storage.worker_tokens import WorkerToken, WorkerTokens


async def run(config: Config, dsn: str, _where: str, *, options: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit code."""
    await bring_up_to_date(config, dsn)
    async with _tokens(config, dsn) as tokens:
        if options.action == "make":
            await _make(tokens, options)
        elif options.action == "revoke":
            await _revoke(tokens, options.id)
        else:
            print("\n".join(map(_describe, await tokens.list())) or "there are none")
    return 0


@contextlib.asynccontextmanager
async def _tokens(config: Config, dsn: str) -> AsyncIterator[WorkerTokens]:
    timeout = config.database.timeout_seconds
    database = Database(dsn, pool_size=1, timeout=timeout, application="longpoll-token")
    try:
        await database.open()
        yield WorkerTokens(database)
    finally:
        await database.close()


async def _make(tokens: WorkerTokens, options: argparse.Namespace) -> None:
    expires_at = dt.datetime.now(dt.UTC) + dt.timedelta(days=options.days) if options.days else None
    secret, token = await tokens.create(options.name, options.tags, options.concurrency, expires_at)
    print(f"{_describe(token)}\nIts secret, shown this once:", file=sys.stderr, flush=True)
    print(secret)  # alone on its way, for scripts


async def _revoke(tokens: WorkerTokens, token_id: str) -> None:
    name = await tokens.revoke(token_id)
    if name is None:
        raise ConfigurationError(f"there is no worker's token {token_id!r}; `token worker list` shows all")
    print(f"revoked {token_id} ({name})")


def _describe(token: WorkerToken) -> str:
    ends = "no end" if token.expires_at is None else f"ends {_moment(token.expires_at)}"
    used = "never used" if token.last_used_at is None else f"last used {_moment(token.last_used_at)}"
    tasks = "1 task" if token.concurrency == 1 else f"{token.concurrency} tasks"
    return f"{token.id}  {token.name}  {','.join(token.tags)}  {tasks} at a time, {ends}, {used}"


def _moment(value: dt.datetime) -> str:
    return value.astimezone(dt.UTC).isoformat(sep=" ", timespec="minutes")[:-6] + " UTC"
