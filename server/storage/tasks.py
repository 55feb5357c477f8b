"""Tasks as rows of `public.image_generations`, for their owners, for the board and for the workers."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import orjson

from server.errors import IdempotencyMismatch, LeaseLost, TooManyWaiting
from server.storage.database import Database

TERMINAL: Final = frozenset({"completed", "failed", "canceled"})
STATUSES: Final = ("pending", "processing", "completed", "failed", "canceled")
PRIORITIES: Final[Mapping[str, int]] = {"low": -1, "normal": 0, "high": 1}

Standing: TypeAlias = tuple[int | None, float | None]
"""A task's place in the queue (1 is next) and for how many seconds it will take still; None: unknown, or it doesn't wait."""

NOWHERE: Final[Standing] = (None, None)
# When another try makes sense for somebody who has too many tasks waiting; at random between the two.
_ROOM_SECONDS: Final = (5.0, 15.0)


class Task:
    """The state of one task as a client may see it. Made from a row, never changed.

    Attributes:
        attempt: how often the work has been begun; names the picture.
        seconds_left: of one in work, what its progress promised when this version was made; None if it says nothing.
        turn: while it waits, the lower the sooner it is claimed.
        updated_at: when this version was made, in seconds since 1970.
    """

    __slots__ = (
        "_behind",
        "_front",
        "attempt",
        "created_at",
        "prompt",
        "seconds_left",
        "status",
        "task_id",
        "terminal",
        "turn",
        "updated_at",
        "user_id",
        "version",
    )

    def __init__(
        self,
        *,
        task_id: str,
        user_id: str,
        status: str,
        version: int,
        attempt: int,
        created_at: dt.datetime,
        updated_at: dt.datetime,
        turn: int,
        prompt: str | None = None,
        **columns: Any,
    ) -> None:
        """Take the columns of `read_tasks` or `list_tasks`."""
        self.task_id = task_id
        self.user_id = user_id
        self.status = status
        self.terminal = status in TERMINAL
        self.version = version
        self.attempt = attempt
        self.created_at = created_at
        self.updated_at = updated_at.timestamp()
        self.turn = turn
        self.prompt = prompt
        progress, started_at = columns["progress"], columns["started_at"]
        self.seconds_left = None
        if status == "processing" and progress and started_at:
            self.seconds_left = max(0.0, self.updated_at - started_at.timestamp()) * (1 - progress) / progress
        front = orjson.dumps(
            {
                "taskId": task_id,
                "type": columns["type"],
                "status": status,
                "version": version,
                "result": columns["result"],
                "error": columns["error"],
                "progress": _rounded(progress, 3),
                "stage": columns["stage"],
                "message": columns["message"],
            }
        )
        behind = orjson.dumps(
            {
                "attempt": attempt,
                "cancelRequested": columns["cancel_requested"],
                "createdAt": _moment(created_at),
                "startedAt": _moment(started_at),
                "updatedAt": _moment(updated_at),
                "finishedAt": _moment(columns["finished_at"]),
            }
        )
        # Copies: what orjson 3.13 returns keeps the 4 KB in which it was made.
        self._front, self._behind = front[:-1], behind[1:]

    def data(self, standing: Standing = NOWHERE) -> bytes:
        """Return the contract's `data` as JSON. Where the task stands isn't part of its version: it is told by each reply."""
        place, seconds = standing
        return b'%b,"queuePosition":%b,"etaSeconds":%b,%b' % (
            self._front,
            b"null" if place is None else b"%d" % place,
            b"null" if seconds is None else orjson.dumps(_rounded(seconds, 1)),
            self._behind,
        )

    def listed(self, standing: Standing) -> bytes:
        """Return the same JSON with the prompt, as a listing has it."""
        return b'%b,"prompt":%b}' % (self.data(standing)[:-1], orjson.dumps(self.prompt))

    def describe(self, standing: Standing = NOWHERE) -> dict[str, object]:
        """Return the contract's `data`: times in RFC 3339 UTC, progress 0..1 or None."""
        return orjson.loads(self.data(standing))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class NewTask:
    """What a user asks for. `request_digest` tells whether a repeated request is the same one; `priority` is -1, 0 or 1."""

    task_id: str
    user_id: str
    prompt: str
    type: str
    seed: int
    size: str
    has_reference: bool
    idempotency_key: str | None
    request_digest: bytes
    priority: int = 0


@dataclass(frozen=True, slots=True)
class EarlierOrder:
    """What a task was made from."""

    prompt: str
    type: str
    seed: int
    size: str
    has_reference: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """A task that a worker holds.

    Attributes:
        attempt: the fencing token: a later claim has a higher one.
        tries: how many attempts count against `max_attempts`, this one among them: those given back don't.
    """

    task_id: str
    prompt: str
    type: str
    seed: int
    size: str
    has_reference: bool
    attempt: int
    tries: int


@dataclass(frozen=True, slots=True)
class _Id:
    task_id: str


@dataclass(frozen=True, slots=True)
class _Version:
    task_id: str
    version: int


@dataclass(frozen=True, slots=True)
class _Replay:
    task_id: str
    request_digest: bytes | memoryview | None


@dataclass(frozen=True, slots=True)
class _Waiting:
    waiting: int


@dataclass(frozen=True, slots=True)
class _Cancellation:
    status_before: str
    changed: bool


@dataclass(frozen=True, slots=True)
class _Rescued:
    task_id: str
    status: str


@dataclass(frozen=True, slots=True)
class _Lease:
    cancel_requested: bool
    set_config: str = ""


@dataclass(frozen=True, slots=True)
class _Due:
    seconds: float | None


@dataclass(frozen=True, slots=True)
class _Held:
    token_id: str
    held: int


@dataclass(frozen=True, slots=True)
class PassedOver:
    """What waits and wasn't claimed, up to a bound.

    Attributes:
        type: of these tasks; None: those that are put off.
        waiting: how many.
        limited: how many of them belong to users who have as many running as may be.
    """

    type: str | None
    waiting: int
    limited: int


class UserTasks:
    """Tasks as their owner may reach them: each statement runs with that user's identity, under the row policies."""

    def __init__(self, database: Database, *, most_waiting: int = 0) -> None:
        """Use this database. `most_waiting`: how many tasks of one user may wait; 0: any number."""
        self._database = database
        self._most_waiting = most_waiting

    async def create(self, task: NewTask) -> Task | str:
        """Store a new task and return it; or the id of the one that an earlier request with the same key has made.

        Raises:
            IdempotencyMismatch: the key was used for another request.
            TooManyWaiting: the user has as many tasks waiting as may be.
        """
        fields = {name: getattr(task, name) for name in task.__slots__}
        while True:  # the earlier task may be deleted, or begun, between the statements: then there is room
            created = await self._database.fetch_one(
                "create_task", Task, user=task.user_id, most_waiting=self._most_waiting, **fields
            )
            if created is not None:
                return created
            earlier = await self._find_earlier(task)
            if earlier is not None:
                return earlier
            await self._check_room(task.user_id)

    async def _find_earlier(self, task: NewTask) -> str | None:
        if task.idempotency_key is None:
            return None
        earlier = await self._database.fetch_one(
            "find_idempotent_task",
            _Replay,
            user=task.user_id,
            user_id=task.user_id,
            idempotency_key=task.idempotency_key,
        )
        if earlier is None:
            return None
        if bytes(earlier.request_digest or b"") != task.request_digest:
            raise IdempotencyMismatch(
                "This Idempotency-Key belongs to another request; use a new key for a new picture."
            )
        return earlier.task_id

    async def _check_room(self, user_id: str) -> None:
        most = self._most_waiting
        count = await self._database.fetch_one(
            "count_waiting", _Waiting, user=user_id, user_id=user_id, most_waiting=most
        )
        if most and count is not None and count.waiting >= most:
            raise TooManyWaiting(
                f"You have {most} tasks waiting, which is the most; wait until one has begun, or cancel one.",
                retry_after=random.uniform(*_ROOM_SECONDS),
            )

    async def cancel(self, user_id: str, task_id: str) -> str | None:
        """Cancel, or ask the worker to; returns the status that the task had, or None if the user has no such task."""
        found = await self._database.fetch_one(
            "cancel_task", _Cancellation, user=user_id, user_id=user_id, task_id=task_id, retry=True
        )
        return found.status_before if found else None

    async def delete(self, user_id: str, task_id: str) -> bool:
        """Delete; returns whether the user had such a task."""
        found = await self._database.fetch("delete_task", _Id, user=user_id, user_id=user_id, task_id=task_id)
        return bool(found)

    async def find(self, user_id: str, task_id: str) -> Task | None:
        """Return a task with its prompt, or None if the user has no such task."""
        return await self._database.fetch_one(
            "find_task", Task, user=user_id, retry=True, user_id=user_id, task_id=task_id
        )

    async def find_order(self, user_id: str, task_id: str) -> EarlierOrder | None:
        """Return what a task was made from, or None if the user has no such task."""
        return await self._database.fetch_one(
            "find_order", EarlierOrder, user=user_id, retry=True, user_id=user_id, task_id=task_id
        )

    async def list(
        self, user_id: str, *, limit: int, status: str | None, before: tuple[dt.datetime, str] | None
    ) -> list[Task]:
        """Return a page of tasks, newest first, that begins behind (creation time, id)."""
        before_time, before_id = before or (None, None)
        return await self._database.fetch(
            "list_tasks",
            Task,
            user=user_id,
            retry=True,
            user_id=user_id,
            limit=limit,
            status=status,
            before_time=before_time,
            before_id=before_id,
        )


class TaskReader:
    """Tasks as the board reads them: many at once, for everybody who waits."""

    def __init__(self, database: Database) -> None:
        """Use this database."""
        self._database = database

    async def read(self, task_ids: Sequence[str]) -> list[Task]:
        """Return the state of those that exist."""
        return await self._database.fetch("read_tasks", Task, retry=True, task_ids=list(task_ids))

    async def read_versions(self, task_ids: Sequence[str]) -> dict[str, int]:
        """Return the versions of those that exist."""
        rows = await self._database.fetch("read_versions", _Version, retry=True, task_ids=list(task_ids))
        return {row.task_id: row.version for row in rows}


class WorkQueue:
    """Tasks as one worker claims and writes them. Every write is fenced by its lease and raises LeaseLost without it."""

    def __init__(
        self, database: Database, owner: str, *, lease_seconds: float, max_attempts: int, most_running: int = 0
    ) -> None:
        """Use this database; `owner` names the worker and must be unique.

        `most_running`: how many tasks of one user may be in work at the same time, in all processes; 0: any number.
        """
        self._database = database
        self._most_running = most_running
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts

    def held_by(self, owner: str) -> WorkQueue:
        """Return the queue as another worker has it."""
        return WorkQueue(
            self._database,
            owner,
            lease_seconds=self._lease_seconds,
            max_attempts=self._max_attempts,
            most_running=self._most_running,
        )

    async def claim(self) -> Claim | None:
        """Take the waiting task whose turn it is, if there is one."""
        claimed = await self._claim([self._owner], kind=None, lease_seconds=self._lease_seconds, undelivered=False)
        return claimed[0][1] if claimed else None

    async def claim_to_deliver(
        self, owners: Sequence[str], *, kind: str | None, lease_seconds: float
    ) -> list[tuple[str, Claim]]:
        """Take waiting tasks, of this type if it isn't None, for those who are still to be told; each with its owner.

        There may be fewer than owners. Until a write with the lease says that it was received, it counts as given back.
        """
        if not self._most_running:
            return await self._claim(owners, kind=kind, lease_seconds=lease_seconds, undelivered=True)
        claimed: list[tuple[str, Claim]] = []
        for owner in owners:  # one statement doesn't see what it has begun itself
            one = await self._claim([owner], kind=kind, lease_seconds=lease_seconds, undelivered=True)
            if not one:
                break
            claimed += one
        return claimed

    async def _claim(
        self, owners: Sequence[str], *, kind: str | None, lease_seconds: float, undelivered: bool
    ) -> list[tuple[str, Claim]]:
        return await self._database.fetch(
            "claim_task",
            _with_owner,
            owners=list(owners),
            type=kind,
            lease_seconds=lease_seconds,
            undelivered=undelivered,
            most_running=self._most_running,
        )

    async def count_held(self) -> dict[str, int]:
        """Return how many tasks are held with each worker's token, in all processes."""
        rows = await self._database.fetch("count_held", _Held, retry=True)
        return {row.token_id: row.held for row in rows}

    async def count_passed_over(self, most: int) -> list[PassedOver]:
        """Return what waits, counted no farther than to this bound."""
        return await self._database.fetch(
            "count_passed_over", PassedOver, retry=True, most=most, most_running=self._most_running
        )

    async def rescue(self) -> dict[str, str]:
        """Take tasks back from workers that fell silent; returns what became of each."""
        rows = await self._database.fetch(
            "rescue_tasks", _Rescued, max_attempts=self._max_attempts, lease_seconds=self._lease_seconds
        )
        return {row.task_id: row.status for row in rows}

    async def next_due(self) -> float | None:
        """Return the seconds until something falls due without a notification, or None if nothing will."""
        due = await self._database.fetch_one("next_due", _Due, retry=True, lease_seconds=self._lease_seconds)
        return due.seconds if due else None

    async def renew(self, claim: Claim) -> bool:
        """Prolong the lease; returns whether the owner wants the task canceled."""
        return await self._write("renew_lease", claim, lease_seconds=self._lease_seconds)

    async def report(self, claim: Claim, progress: float, stage: str, message: str) -> bool:
        """Write progress (0..1) and prolong the lease; returns whether the owner wants the task canceled."""
        return await self._write(
            "report_progress", claim, progress=progress, stage=stage, message=message, lease_seconds=self._lease_seconds
        )

    async def complete(self, claim: Claim, result: str) -> bool:
        """End the task with a result; returns whether it was canceled instead, as its owner had asked meanwhile.

        May be called again if the answer was lost.
        """
        return await self._write("complete_task", claim, result=result)

    async def fail(self, claim: Claim, error: str) -> None:
        """End the task with an error that its owner will read."""
        await self._write("fail_task", claim, error=error)

    async def stop(self, claim: Claim) -> None:
        """End the task as canceled."""
        await self._write("stop_task", claim)

    async def retry(self, claim: Claim, message: str, delay_seconds: float) -> None:
        """Put the task back into the queue, not to be claimed before the delay is over."""
        await self._write("retry_task", claim, message=message, delay_seconds=delay_seconds)

    async def release(self, claim: Claim, *, message: str | None = None, delay_seconds: float = 0.0) -> None:
        """Give the task back, for somebody else to begin at once or after a while: the attempt isn't counted as a try."""
        await self._write("release_task", claim, message=message, delay_seconds=delay_seconds)

    async def _write(self, query: str, claim: Claim, **values: object) -> bool:
        lease = await self._database.fetch_one(
            query, _Lease, task_id=claim.task_id, attempt=claim.attempt, owner=self._owner, **values
        )
        if lease is None:
            raise LeaseLost
        return lease.cancel_requested


def _with_owner(*, owner: str, **columns: Any) -> tuple[str, Claim]:
    return owner, Claim(**columns)


def _moment(value: dt.datetime | None) -> str | None:
    return None if value is None else value.astimezone(dt.UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
