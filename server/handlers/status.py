"""The request that truly waits: `GET /api/generate/status`."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Mapping
from typing import Final

import orjson
from aiohttp import web

from server.errors import BadRequest, TaskDeleted, TaskNotFound
from server.handlers import parameters
from server.identity import signed_in_user
from server.keys import CONFIG, DATABASE, METRICS, POLLING, TRACE
from server.replies import JSON
from server.storage.tasks import Task
from server.waiting.polling import Answer, Question, Until
from server.waiting.waiters import Reason

_CLIENT: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_ENTITY_TAG: Final = re.compile(r'(?:W/)?"([A-Za-z0-9_-]{1,64})\.([0-9]{1,19})"')
# Milliseconds after which to ask again, at random between the two, so that clients spread out.
_RETRY_AFTER_MS: Final[Mapping[Reason, tuple[int, int]]] = {Reason.DRAIN: (0, 2000), Reason.DEGRADED: (3000, 8000)}


async def status(request: web.Request) -> web.Response:
    """Hold the request until the task differs from what the client has seen, or its time is over."""
    trace, metrics, started = request[TRACE], request.app[METRICS], time.perf_counter()
    try:
        user = await signed_in_user(request)
        question = read_question(request, user.user_id)
        trace.task_id = question.task_id
        answer = await request.app[POLLING].answer(question)
    except asyncio.CancelledError:
        trace.outcome, trace.held_seconds = "client_gone", time.perf_counter() - started
        metrics.polls.labels("client_gone").inc()
        raise
    trace.held_seconds = answer.held_seconds
    trace.outcome = "deleted" if answer.deleted else answer.reason if answer.snapshot else "not_found"
    metrics.polls.labels(trace.outcome).inc()
    metrics.hold_seconds.observe(answer.held_seconds)
    if answer.snapshot is None:
        raise TaskDeleted if answer.deleted else TaskNotFound
    if answer.held_seconds and answer.changed:
        committed = answer.snapshot.updated_at + request.app[DATABASE].clock_offset
        metrics.wake_latency_seconds.observe(max(time.time() - committed, 0.0))
    return reply(request, answer.snapshot, answer)


def read_question(request: web.Request, user_id: str) -> Question:
    """Read what the client asks from the query and the headers; the query wins.

    Raises:
        Problem: a parameter is missing or makes no sense.
    """
    query = request.query
    longest = request.app[CONFIG].polling.hold_seconds
    task_id = parameters.task_id(query.get("taskId"))
    wait = parameters.preferred_wait(request, longest)
    if "wait" in query:
        wait = parameters.seconds(query["wait"], longest)
    version = parameters.version(query["version"]) if "version" in query else _tagged_version(request, task_id)
    client = query.get("c")
    if client is not None and not _CLIENT.match(client):
        raise BadRequest("c must be 1 to 64 letters, digits, - or _: a random name for the page that polls.")
    return Question(task_id, user_id, version, longest if wait is None else wait, _until(query.get("until")), client)


def _until(value: str | None) -> Until:
    try:
        return Until(value or Until.CHANGE)
    except ValueError:
        raise BadRequest(f"until must be one of: {', '.join(Until)}.") from None


def _tagged_version(request: web.Request, task_id: str) -> int | None:
    header = request.headers.get("If-None-Match")
    if header is None:
        return None
    versions = [int(version) for tagged, version in _ENTITY_TAG.findall(header) if tagged == task_id]
    return max(versions, default=0)


def reply(request: web.Request, task: Task, answer: Answer[Task]) -> web.Response:
    """Put the state and the reason into a reply; the state's JSON is made once for all who waited for it."""
    headers = {
        "ETag": f'"{task.task_id}.{task.version}"',
        "X-Task-Version": str(task.version),
        "Server-Timing": f"hold;dur={answer.held_seconds * 1000:.1f}",
    }
    if "Prefer" in request.headers and "wait" not in request.query:
        wait = parameters.preferred_wait(request, request.app[CONFIG].polling.hold_seconds)
        if wait is not None:
            headers["Preference-Applied"] = f"wait={wait:g}"
    if _is_not_modified(request, task, answer):
        response = web.Response(status=304, headers=headers)
    else:
        body = b'{"data":' + task.data + b',"poll":' + orjson.dumps(describe_poll(task, answer)) + b"}"
        response = web.Response(body=body, headers=headers, content_type=JSON)
    if answer.reason is Reason.DRAIN:
        response.force_close()
    return response


def describe_poll(task: Task, answer: Answer[Task]) -> dict[str, object]:
    """Return the contract's `poll`: why this answer came now, and what to do next."""
    low, high = _RETRY_AFTER_MS.get(answer.reason, (0, 0))
    return {
        "reason": answer.reason,
        "changed": answer.changed,
        "waitedMs": round(answer.held_seconds * 1000),
        "next": "stop" if task.terminal or answer.reason is Reason.SUPERSEDED else "again",
        "retryAfterMs": random.randint(low, high),
    }


def _is_not_modified(request: web.Request, task: Task, answer: Answer[Task]) -> bool:
    # Any other reason must be read by the client, and a 304 has no body to say it in.
    if "version" in request.query or answer.reason not in {Reason.TIMEOUT, Reason.IMMEDIATE}:
        return False
    return _tagged_version(request, task.task_id) == task.version
