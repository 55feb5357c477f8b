"""How the answer to a poll looks: status, headers and body, whichever way they are sent."""

from __future__ import annotations

import functools
import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import orjson

from server.errors import NotSignedIn, Problem, TaskDeleted, TaskNotFound
from server.protocol import heads
from server.storage.tasks import Standing, Task
from server.waiting.answers import Answer
from server.waiting.waiters import Reason

JSON: Final = "application/json"
PROBLEM_JSON: Final = "application/problem+json"
_CONTENT_TYPE: Final = f"Content-Type: {JSON}\r\n".encode()
# Milliseconds after which to ask again, at random between the two, so that clients spread out.
_RETRY_AFTER_MS: Final[Mapping[Reason, tuple[int, int]]] = {Reason.DRAIN: (0, 2000), Reason.DEGRADED: (3000, 8000)}
_BEGINNING: Final = heads.status_line(200) + _CONTENT_TYPE
_END_OF_BODY: Final = b',"retryAfterMs":0}}'
LONGEST_RETRY_AFTER_MS: Final = max(longest for _, longest in _RETRY_AFTER_MS.values())


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """What a client said about how it wants its answer.

    `preferred_wait`: the seconds of a `Prefer: wait` that was heeded. `tagged_version`: that of an `If-None-Match`
    which stands for the `version` parameter.
    """

    preferred_wait: float | None = None
    tagged_version: int | None = None


DEFAULT_OPTIONS: Final = ReplyOptions()


Composed: TypeAlias = tuple[int, bytes, bytes | None]
"""Status, header lines (each with its CRLF) and body, as they are sent. No body: there can't be one (304)."""


class Reply(Protocol):
    """What tells an answer to everybody who gets the same one."""

    @property
    def status(self) -> int:
        """The status of HTTP."""

    def to_bytes(self, held_seconds: float, request_id: str, end_of_head: bytes) -> bytes:
        """Return all its bytes, for somebody who was held for so long. `end_of_head`: see `wire`."""


class StateReply:
    """Tells the state of a task. What is the same for everybody is made once."""

    __slots__ = ("_body", "_bounds", "_head", "status")

    def __init__(self, task: Task, answer: Answer[Task], options: ReplyOptions = DEFAULT_OPTIONS) -> None:
        """Tell that this is the task's state, and why now."""
        self._head, self._body = _state(task, answer.reason, answer.changed, answer.standing)
        self._bounds = _RETRY_AFTER_MS.get(answer.reason)
        self.status = 200
        if options.preferred_wait is not None:
            self._head = f"Preference-Applied: wait={options.preferred_wait:g}\r\n".encode() + self._head
        # Any other reason must be read by the client, and a 304 has no body to say it in.
        if options.tagged_version == task.version and answer.reason in {Reason.TIMEOUT, Reason.IMMEDIATE}:
            self.status = 304

    def compose(self, held_seconds: float) -> Composed:
        """Return the reply to somebody who was held for so long."""
        milliseconds = held_seconds * 1000
        head = b"%b%.1f\r\n" % (self._head, milliseconds)
        if self.status == 304:
            return 304, head, None
        return 200, _CONTENT_TYPE + head, b"%b%.0f%b" % (self._body, milliseconds, self._end_of_body())

    def to_bytes(self, held_seconds: float, request_id: str, end_of_head: bytes) -> bytes:
        """Return the bytes of the same reply, as `heads.reply_bytes` would: in one go, for there may be many."""
        if self.status == 304:
            return heads.reply_bytes(*self.compose(held_seconds), request_id=request_id, end_of_head=end_of_head)
        milliseconds, end = held_seconds * 1000, self._end_of_body()
        held, waited = b"%.1f" % milliseconds, b"%.0f" % milliseconds
        length = len(self._body) + len(waited) + len(end)
        own = f"\r\nContent-Length: {length}\r\n{heads.REQUEST_ID}: {request_id}\r\n".encode()
        return b"".join((_BEGINNING, self._head, held, own, end_of_head, self._body, waited, end))

    def _end_of_body(self) -> bytes:
        if self._bounds is None:
            return _END_OF_BODY
        return b',"retryAfterMs":%d}}' % random.randint(*self._bounds)


class ProblemReply:
    """Tells what is wrong."""

    def __init__(self, problem: Problem) -> None:
        """Tell this."""
        self.status = problem.status
        self._problem = problem

    def to_bytes(self, _held_seconds: float, request_id: str, end_of_head: bytes) -> bytes:
        """Return all its bytes."""
        composed = compose_problem(self._problem, request_id)
        return heads.reply_bytes(*composed, request_id=request_id, end_of_head=end_of_head)


class SharedReply:
    """What they have in common who get the same answer in the same turn of the loop: made once, however many they are."""

    __slots__ = ("_plain", "answer", "changes", "close", "end_of_head", "outcome")

    def __init__(self, answer: Answer[Task], *, close: bool) -> None:
        """Take in an answer; `close`: their connections end with it."""
        self.answer = answer
        self.close = close
        self.outcome = outcome(answer)
        self.changes = changes(answer)
        self.end_of_head = heads.end_of_head(close=close)
        self._plain: Reply | None = None

    def reply(self, options: ReplyOptions) -> Reply:
        """Return what tells the answer to those who want it this way."""
        if options is not DEFAULT_OPTIONS:
            return _reply(self.answer, options)
        if self._plain is None:
            self._plain = _reply(self.answer, DEFAULT_OPTIONS)
        return self._plain


def _reply(answer: Answer[Task], options: ReplyOptions) -> Reply:
    return ProblemReply(missing(answer)) if answer.snapshot is None else StateReply(answer.snapshot, answer, options)


@functools.lru_cache(maxsize=64)
def _state(task: Task, reason: Reason, changed: bool, standing: Standing) -> tuple[bytes, bytes]:  # noqa: FBT001 - a key of the cache
    version = task.version
    poll = _fixed(reason, changed=changed, finished=task.terminal)
    return (
        f'ETag: "{task.task_id}.{version}"\r\nX-Task-Version: {version}\r\nServer-Timing: hold;dur='.encode(),
        b'{"data":%b,"poll":%b,"waitedMs":' % (task.data(standing), orjson.dumps(poll)[:-1]),
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
    """Return what to tell of a task that isn't there, or not for this user, or not any more."""
    if answer.reason is Reason.REVOKED:
        return NotSignedIn("The login ended while this request was held.")
    return TaskDeleted() if answer.deleted else TaskNotFound()


def outcome(answer: Answer[Task]) -> str:
    """Return the name under which this answer is counted."""
    if answer.snapshot is None and answer.reason is not Reason.REVOKED:
        return "deleted" if answer.deleted else "not_found"
    return answer.reason


def changes(answer: Answer[Task]) -> tuple[float, ...]:
    """Return when the change that this answer tells of was committed; nothing if the client has seen it."""
    return (answer.snapshot.updated_at,) if answer.snapshot is not None and answer.changed else ()


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
    if problem.status == 401:
        head += f"WWW-Authenticate: {heads.CHALLENGE}\r\n"
    if problem.retry_after is not None:
        head += f"Retry-After: {math.ceil(problem.retry_after)}\r\n"
    return problem.status, head.encode(), to_json(members)


def to_json(value: object) -> bytes:
    """Return the JSON of a reply. Half a surrogate pair, which aiohttp makes of a URL that isn't UTF-8, becomes a ``?``."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, ensure_ascii=False).encode(errors="replace")
