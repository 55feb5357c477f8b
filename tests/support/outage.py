"""A database that is suddenly gone, and comes back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from psycopg2.extensions import parse_dsn

from server.storage.embedded.cluster import EmbeddedPostgres
from tests.support.postgres import execute


@contextlib.contextmanager
def outage(postgres: EmbeddedPostgres, dsn: str) -> Iterator[None]:
    """End every connection to this database and let nobody in while the block runs."""
    name = parse_dsn(dsn)["dbname"]
    execute(postgres.dsn, f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
    try:
        execute(postgres.dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        yield
    finally:
        execute(postgres.dsn, f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
