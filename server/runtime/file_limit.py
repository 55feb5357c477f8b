"""The limit of file descriptors: each held poll is a connection, and each connection takes one."""

from __future__ import annotations

import contextlib
import resource
import sys


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard limit; returns it.

    A login has a soft limit of 1,024 mostly, for the sake of programs that use select(). We don't (see
    `storage/database.py` for aiopg), and the hard limit is some hundred times as high.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS names a hard limit that it doesn't grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return limit()


def limit() -> int:
    """Return the current limit of open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
