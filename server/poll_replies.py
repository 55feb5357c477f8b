"""How the answer to a poll looks: status, headers and body, whichever way they are sent."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import orjson

from server.errors import Problem, TaskDeleted, TaskNotFound
from server.storage.tasks import Task
from server.waiting.polling import Answer
from server.waiting.waiters import Reason

JSON: Final = "application/json"
PROBLEM_JSON: Final = "application/problem+json"
_CONTENT_TYPE: Final = f"Content-Type: {JSON}\r\n".encode()
# Milliseconds after which to ask again, at random between the two, so that clients spread out.
_RETRY_AFTER_MS: Final[Mapping[Reason, tuple[int, int]]] = {Reason.DRAIN: (0, 2000), Reason.DEGRADED: (3000, 8000)}
LONGEST_RETRY_AFTER_MS: Final = max(longest for _, longest in _RETRY_AFTER_MS.values())


@dataclass(frozen=True, slots=True)
class Manner:
    """What a client said about how it wants its answer.

    `preferred_wait`: the seconds of a `Prefer: wait` that was heeded. `tagged_version`: that of an `If-None-Match`
    which stands for the `version` parameter.
    """

    preferred_wait: float | None = None
    tagged_version: int | None = None


PLAIN: Final = Manner()


Composed: TypeAlias = tuple[int, bytes, bytes | None]
"""Status, header lines (each with its CRLF) and body, as they are sent."""


def compose(task: Task, answer: Answer[Task], manner: Manner = PLAIN) -> Composed:
    """Return the reply that tells this answer."""
    reason, held_ms = answer.reason, answer.held_seconds * 1000
    shared_head, shared_body = _shared(task, reason, answer.changed)
    head = b"%b%.1f\r\n" % (shared_head, held_ms)
    if manner.preferred_wait is not None:
        head += f"Preference-Applied: wait={manner.preferred_wait:g}\r\n".encode()
    # Any other reason must be read by the client, and a 304 has no body to say it in.
    if manner.tagged_version == task.version and reason in {Reason.TIMEOUT, Reason.IMMEDIATE}:
        return 304, head, None
    body = b'%b"waitedMs":%d,"retryAfterMs":%d}}' % (shared_body, round(held_ms), _retry_after_ms(reason))
    return 200, head + _CONTENT_TYPE, body


@functools.lru_cache(maxsize=64)
def _shared(task: Task, reason: Reason, changed: bool) -> tuple[bytes, bytes]:  # noqa: FBT001 - a key of the cache
    """Return head and body up to what differs: made once for a crowd that has waited for the same state."""
    version = task.version
    poll = _fixed(reason, changed=changed, finished=task.terminal)
    return (
        f'ETag: "{task.task_id}.{version}"\r\nX-Task-Version: {version}\r\nServer-Timing: hold;dur='.encode(),
        b'{"data":%b,"poll":%b,' % (task.data, orjson.dumps(poll)[:-1]),
    )


def headers_of(head: bytes) -> dict[str, str]:
    """Return header lines as a mapping, for aiohttp."""
    return dict(line.split(": ", 1) for line in head.decode().splitlines())


def describe_poll(reason: Reason, *, changed: bool, held_seconds: float, finished: bool) -> dict[str, object]:
    """Return the contract's `poll`: why this answer came now, and what to do next."""
    fixed = _fixed(reason, changed=changed, finished=finished)
    return {**fixed, "waitedMs": round(held_seconds * 1000), "retryAfterMs": _retry_after_ms(reason)}


def _fixed(reason: Reason, *, changed: bool, finished: bool) -> dict[str, object]:
    stop = finished or reason is Reason.SUPERSEDED
    return {"reason": reason, "changed": changed, "next": "stop" if stop else "again"}


def _retry_after_ms(reason: Reason) -> int:
    bounds = _RETRY_AFTER_MS.get(reason)
    return random.randint(*bounds) if bounds is not None else 0


def missing(answer: Answer[Task]) -> Problem:
    """Return what to tell of a task that isn't there: deleted while it was awaited, or never there for this user."""
    return TaskDeleted() if answer.deleted else TaskNotFound()


def outcome(answer: Answer[Task]) -> str:
    """Return the name under which this answer is counted."""
    if answer.snapshot is None:
        return "deleted" if answer.deleted else "not_found"
    return answer.reason


def compose_problem(problem: Problem, request_id: str) -> Composed:
    """Return the reply that tells what can't be answered; `error` is what the guide's clients read (RFC 9457)."""
    members: dict[str, object] = {
        "type": f"urn:longpoll:problem:{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "instance": request_id,
        "code": problem.code,
        "error": problem.title,
    }
    if problem.detail:
        members["detail"] = problem.detail
    head = f"Content-Type: {PROBLEM_JSON}\r\n"
    if problem.retry_after is not None:
        head += f"Retry-After: {math.ceil(problem.retry_after)}\r\n"
    return problem.status, head.encode(), orjson.dumps(members)
