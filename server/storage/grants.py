"""What a worker's token is good for. Imports nothing of ours, so that the command line is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TAGS: Final = ("basic", "advanced")
"""What a worker may be able to do. Each task takes one of these: its type."""
MOST_CONCURRENCY: Final = 1000


@dataclass(frozen=True, slots=True)
class WorkerGrant:
    """What a worker's token is good for.

    Attributes:
        token_id: names the token, and opens nothing.
        name: what its operator calls it.
        tags: the kinds of tasks that may be claimed with it.
        concurrency: how many tasks may be held with it at a time.
    """

    token_id: str
    name: str
    tags: frozenset[str]
    concurrency: int
