"""What a poll asks, what it is answered, and when there is an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from server.waiting.places import NOWHERE, Standing
from server.waiting.waiters import Credential, Reason
from server.waiting.watched_task import Snapshot

S = TypeVar("S", bound=Snapshot)


class Until(StrEnum):
    """What a poll waits for."""

    CHANGE = "change"
    STATUS = "status"
    TERMINAL = "terminal"


@dataclass(frozen=True, slots=True)
class Question:
    """What a client asks: the task, the version it has seen (None: whatever holds on arrival), how long it waits.

    `credential`: what it came with; with that the waiting ends. `place`: the last place in the queue that the client was
    told (0: none yet), if it wants to be told of another one; None: it doesn't.
    """

    task_id: str
    user_id: str
    version: int | None = None
    seconds: float = 0.0
    until: Until = Until.CHANGE
    client: str | None = None
    credential: Credential | None = None
    place: int | None = None

    @property
    def client_key(self) -> tuple[str, str, str] | None:
        """Who must not ask twice at a time: this page of this user, if it has a name."""
        return (self.user_id, self.task_id, self.client) if self.client else None


@dataclass(slots=True)
class Answer(Generic[S]):
    """The state that ends a poll, and why it ended. Snapshot None: there is no such task for this user, or it is revoked.

    `deleted`: there was one when the poll began. All who have waited for the same may get the same answer, so it says
    nothing of how long anybody was held. `standing`: where the task stands in the queue as of this answer.
    """

    snapshot: S | None
    reason: Reason
    changed: bool = False
    deleted: bool = False
    standing: Standing = field(default=NOWHERE, compare=False)


def evaluate(until: Until, seen: S, latest: S | None, reason: Reason | None) -> Answer[S] | None:
    """Return the answer to a poll that waits: what was seen when it began, what is known now, and why else it ends, if it does.

    None: there is nothing to tell yet.
    """
    if reason is Reason.REVOKED:
        return Answer(None, Reason.REVOKED)
    if latest is None or latest.user_id != seen.user_id:
        return Answer(None, Reason.CHANGE, changed=True, deleted=True)
    if latest.version < seen.version:
        return Answer(latest, Reason.RESET, changed=True)  # a restored database: the client must start again
    if latest.terminal or _is_awaited(until, seen, latest):
        reason = Reason.CHANGE
    return Answer(latest, reason, latest.version != seen.version) if reason is not None else None


def _is_awaited(until: Until, seen: Snapshot, latest: Snapshot) -> bool:
    if until is Until.TERMINAL:
        return False
    if until is Until.STATUS:
        return latest.status != seen.status
    return latest.version != seen.version
