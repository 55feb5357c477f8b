"""Leases of workers elsewhere: what they are given of one, and what stands for it in the task's row."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Final, Self

from server.storage.grants import WorkerGrant

_TEXT: Final = re.compile(r"([0-9]{1,9})\.([0-9a-f]{32})\Z")


@dataclass(frozen=True, slots=True)
class Lease:
    """What a worker names in each request about a task: only with it the task can be written.

    Attributes:
        owner: as the task's row has it: `token:<id of the token>:<random>`, so that another token is another owner.
        attempt: the fencing token: a later claim has a higher one.
    """

    owner: str
    attempt: int

    @classmethod
    def parse(cls, text: str, grant: WorkerGrant) -> Self | None:
        """Return the lease that somebody with this token names; None if no claim has ever given out such a text."""
        found = _TEXT.match(text)
        return cls(f"token:{grant.token_id}:{found[2]}", int(found[1])) if found else None

    @property
    def text(self) -> str:
        """What the worker is given."""
        return f"{self.attempt}.{self.owner.rpartition(':')[2]}"


def new_owner(grant: WorkerGrant) -> str:
    """Return an owner that no other claim has."""
    return f"token:{grant.token_id}:{secrets.token_hex(16)}"
