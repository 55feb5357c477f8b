"""The check of this machine: may a process hold as many connections as it is told to?"""

from __future__ import annotations

from typing import Final

from server.commands.doctor.deployment import Deployment
from server.commands.doctor.report import Finding, failed, ok
from server.runtime import file_limit

_BESIDE_POLLS: Final = 100  # files, pictures, the logs, clients that are just being answered


async def check_descriptors(deployment: Deployment) -> Finding:
    """Compare the limit of file descriptors with the polls that may be held: each is a connection."""
    held = deployment.config.polling.max_held
    beside = deployment.config.database.pool_size + 2 + _BESIDE_POLLS
    allowed = file_limit.raise_limit()
    if held + beside <= allowed:
        return ok(f"there are enough for {held} held polls (polling.max_held)")
    instead = f", or set polling.max_held to {allowed - beside}" if allowed > beside else ""
    return failed(
        f"{held} held polls (polling.max_held) need {held + beside} file descriptors, and {allowed} are allowed here",
        f"as root, start the server after `ulimit -Hn {held + beside}` (systemd: LimitNOFILE={held + beside}){instead}",
    )
