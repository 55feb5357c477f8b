"""Brings the schema up to date."""

from __future__ import annotations

from server.config import Config
from server.storage import migrations
from server.storage.database import login_role


async def migrate(config: Config, dsn: str, _where: str) -> int:
    """Bring the schema up to date, and say what was done."""
    applied = await bring_up_to_date(config, dsn)
    print("\n".join(f"applied {name}" for name in applied) or "nothing to do: the schema is up to date")
    return 0


async def bring_up_to_date(config: Config, dsn: str) -> list[str]:
    """Apply the migrations that are missing; returns their names."""
    database = config.database
    if not database.admin_dsn:
        return await migrations.migrate(dsn)
    if not database.dsn:  # the embedded Postgres, where nobody else would make it
        await migrations.make_login(database.admin_dsn, login_role(dsn))
    return await migrations.migrate(database.admin_dsn, grant_to=login_role(dsn))
