"""The check of room: may a process have as many connections as its pool wants, and who says so?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from server import resources
from server.commands.doctor.deployment import Deployment
from server.commands.doctor.report import Finding, failed, ok, warning
from server.errors import StorageError
from server.storage.database import Connection, connected, other_database, read_queries, run_directly

_LIMITS: Final = read_queries(resources.read_text("sql", "queries.sql"))["connection_limits"]
_BESIDE_POOL: Final = 2  # one that listens, one for heartbeats
_FEWEST: Final = 2  # one that listens, one for everything else


@dataclass(frozen=True, slots=True)
class Limit:
    """How many connections somebody allows, and what an operator does about it."""

    who: str
    most: int
    remedy: str


async def check_connections(deployment: Deployment) -> Finding:
    """Compare what each process wants with the lowest limit on the way that can be seen from here."""
    wanted = deployment.config.database.pool_size + _BESIDE_POOL
    async with deployment.connected() as connection:
        limits = [Limit(*row) for row in await run_directly(connection, _LIMITS, deployment.timeout)]
        pooled = await _is_pooled(connection, deployment.timeout)
    pooler = await _limit_of_pooler(deployment) if pooled else None
    lowest = min([*limits, *([pooler] if pooler else [])], key=lambda limit: limit.most)
    unseen = "; a pooler stands in between, whose own limit can't be seen from here" if pooled and not pooler else ""
    sentence = f"{lowest.who} allows {lowest.most} connections, and each process wants up to {wanted}{unseen}"
    if lowest.most >= wanted:
        return ok(f"{sentence}: enough for {lowest.most // wanted}")
    remedy = f"{lowest.remedy} for {wanted} and as many for each further process"
    if lowest.most < _FEWEST:
        return failed(f"{sentence}: one for LISTEN and one for everything else are the fewest", remedy)
    smaller = f", or set database.pool_size to {lowest.most - _BESIDE_POOL}" if lowest.most > _BESIDE_POOL else ""
    return warning(f"{sentence}: statements wait for each other", remedy + smaller)


async def _is_pooled(connection: Connection, timeout: float) -> bool:
    """Whether somebody hands our statements on: then the process that runs them isn't the one we were told of."""
    [(process,)] = await run_directly(connection, "SELECT pg_backend_pid()", timeout)
    return bool(await connection.get_backend_pid() != process)


async def _limit_of_pooler(deployment: Deployment) -> Limit | None:
    """Ask PgBouncer's console, if it is one and shows it to this login."""
    try:
        async with connected(
            other_database(deployment.dsn, "pgbouncer"), deployment.timeout, "longpoll-doctor"
        ) as console:
            settings = {row[0]: row[1] for row in await run_directly(console, "SHOW CONFIG", deployment.timeout)}
        return Limit("PgBouncer (max_client_conn)", int(settings["max_client_conn"]), "make room in max_client_conn")
    except (StorageError, KeyError, ValueError):
        return None
