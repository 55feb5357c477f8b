"""The check of this machine: may a process hold as many connections as it is told to?"""

from __future__ import annotations

import resource
import sys
from typing import Final

from server.doctor.deployment import Deployment
from server.doctor.report import Finding, failed, ok

_BESIDE_POLLS: Final = 100  # files, pictures, the logs, clients that are just being answered


async def check_descriptors(deployment: Deployment) -> Finding:
    """Compare the limit of file descriptors with the polls that may be held: each is a connection."""
    held = deployment.config.polling.max_held
    beside = deployment.config.database.pool_size + 1 + _BESIDE_POLLS
    soft, hard = (
        sys.maxsize if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    if held + beside <= soft:
        return ok(f"there are enough for {held} held polls (polling.max_held)")
    first = f"raise the hard limit of {hard} as root, then " if held + beside > hard else ""
    instead = f", or set polling.max_held to {soft - beside}" if soft > beside else ""
    return failed(
        f"{held} held polls (polling.max_held) need {held + beside} file descriptors, and {soft} are allowed here",
        f"{first}start the server after `ulimit -n {held + beside}` (systemd: LimitNOFILE={held + beside}){instead}",
    )
