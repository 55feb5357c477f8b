"""How many connections one process may have."""

from __future__ import annotations

import resource
from typing import Final

BESIDE: Final = 64  # the link, the standard streams, modules that are being read


def raise_limit() -> int:
    """Let this process have as many descriptors as it may; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
