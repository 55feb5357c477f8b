"""The checks in their order, and what each needs to make sense: one fault is told once."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from server.commands.doctor import changes, connections, machine, pictures, postgres, site
from server.commands.doctor.deployment import Deployment
from server.commands.doctor.report import Finding, Report, Verdict, failed, skipped
from server.config import Config
from server.errors import DatabaseUnavailable, ServerError
from server.runtime import signals
from server.storage import migrations
from server.storage.database import login_role
from server.telemetry import logs


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One line of the report; it is skipped if what it needs isn't sound."""

    name: str
    look: Callable[[Deployment], Awaitable[Finding]]
    needs: tuple[str, ...] = ()


CHECKS: Final = (
    Check("database", postgres.check_reachable),
    Check("listen", postgres.check_listening, ("database",)),
    Check("migrations", postgres.check_migrations, ("database",)),
    Check("roles", postgres.check_roles, ("database",)),
    Check("row security", postgres.check_row_security, ("database",)),
    Check("clock", postgres.check_clock, ("database",)),
    Check("queue", postgres.check_queue, ("database",)),
    Check("connections", connections.check_connections, ("database",)),
    Check("pictures", pictures.check_pictures, ("migrations", "roles")),
    Check("descriptors", machine.check_descriptors),
    Check("site", site.check_site),
    Check("origin", changes.check_origin, ("site",)),
    Check("hold", site.check_hold, ("site", "roles")),
    Check("upload", changes.check_upload, ("site", "roles")),
)


async def run(config: Config, dsn: str, _where: str, *, url: str) -> int:
    """Examine what these settings lead to, and what stands in front; returns the exit code."""
    logs.configure(dataclasses.replace(config.logging, level="error"))
    # What a dying connection complains of beside a check is what the check itself finds.
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    if not config.database.dsn:  # data of an earlier version don't know the login of the embedded Postgres yet
        await migrations.make_login(config.database.admin_dsn, login_role(dsn))
    return await examine(Deployment(config, dsn, url.rstrip("/")), Report(sys.stdout))


async def examine(deployment: Deployment, report: Report, checks: Sequence[Check] = CHECKS) -> int:
    """Run the checks, each after what it needs; returns the exit code."""
    sound: set[str] = set()
    for check in checks:
        report.begin(check.name)
        missing = [name for name in check.needs if name not in sound]
        found = (
            skipped(f"looked at when this is ok: {', '.join(missing)}") if missing else await _look(check, deployment)
        )
        if found.verdict in {Verdict.OK, Verdict.WARNING}:
            sound.add(check.name)
        report.end(found)
        if signals.is_canceled():
            raise asyncio.CancelledError
    return report.close()


async def _look(check: Check, deployment: Deployment) -> Finding:
    try:
        return await check.look(deployment)
    except DatabaseUnavailable as error:
        return failed(str(error), "see that Postgres runs there and lets this login in, or correct the setting")
    except ServerError as error:
        return failed(f"this can't be looked at: {error}", "mend what it says, and run this again")
    except Exception as error:  # noqa: BLE001 - a doctor who faints helps nobody
        return failed(f"the check itself broke: {type(error).__name__}: {str(error)[:500]}", "report this as a bug")
