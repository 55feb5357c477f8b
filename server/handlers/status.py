"""The requests that truly wait: `GET /api/generate/status` for one task, `…/status/batch` for up to 50."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import orjson
from aiohttp import web

from server.errors import BadRequest, TaskDeleted, TaskIdRequired, TaskNotFound
from server.handlers import parameters
from server.identity import signed_in_user
from server.keys import BATCH_POLLING, CONFIG, DATABASE, METRICS, POLLING, RATES, TRACE
from server.replies import json_reply
from server.storage.tasks import Task
from server.waiting.batches import BatchQuestion
from server.waiting.polling import Answer, Question, Until
from server.waiting.waiters import Reason

MAX_BATCH: Final = 50
LONGEST_GATHER_SECONDS: Final = 2.0
_CLIENT: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_ENTITY_TAG: Final = re.compile(r'(?:W/)?"([A-Za-z0-9_-]{1,64})\.([0-9]{1,19})"')
# Milliseconds after which to ask again, at random between the two, so that clients spread out.
_RETRY_AFTER_MS: Final[Mapping[Reason, tuple[int, int]]] = {Reason.DRAIN: (0, 2000), Reason.DEGRADED: (3000, 8000)}
LONGEST_RETRY_AFTER_MS: Final = max(longest for _, longest in _RETRY_AFTER_MS.values())


async def status(request: web.Request) -> web.Response:
    """Hold the request until the task differs from what the client has seen, or its time is over."""
    with _noticing_who_left(request):
        user = await signed_in_user(request)
        request.app[RATES].check_poll(user.user_id)
        question = read_question(request, user.user_id)
        request[TRACE].task_id = question.task_id
        answer = await request.app[POLLING].answer(question)
    outcome = "deleted" if answer.deleted else answer.reason if answer.snapshot else "not_found"
    _record(request, outcome, answer.held_seconds, [answer.snapshot] if answer.snapshot and answer.changed else [])
    if answer.snapshot is None:
        raise TaskDeleted if answer.deleted else TaskNotFound
    return reply(request, answer.snapshot, answer)


async def batch(request: web.Request) -> web.Response:
    """Hold the request until any of its tasks differs from what the client has seen, or its time is over."""
    with _noticing_who_left(request):
        user = await signed_in_user(request)
        request.app[RATES].check_poll(user.user_id)
        question = read_batch_question(request, user.user_id)
        answer = await request.app[BATCH_POLLING].answer(question)
    _record(request, answer.reason, answer.held_seconds, answer.prompt)
    poll = describe_poll(
        answer.reason, changed=bool(answer.changed), held_seconds=answer.held_seconds, finished=answer.finished
    )
    body = {
        "items": [orjson.Fragment(task.data) for task in answer.changed],
        "unchanged": answer.unchanged,
        "notFound": answer.not_found,
        "poll": poll,
    }
    response = json_reply(body, headers={"Server-Timing": f"hold;dur={answer.held_seconds * 1000:.1f}"})
    if answer.reason is Reason.DRAIN:
        response.force_close()
    return response


@contextlib.contextmanager
def _noticing_who_left(request: web.Request) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    except asyncio.CancelledError:
        request[TRACE].outcome, request[TRACE].held_seconds = "client_gone", time.perf_counter() - started
        request.app[METRICS].polls.labels("client_gone").inc()
        raise


def _record(request: web.Request, outcome: str, held_seconds: float, prompt: Sequence[Task]) -> None:
    trace, metrics = request[TRACE], request.app[METRICS]
    trace.outcome, trace.held_seconds = outcome, held_seconds
    metrics.polls.labels(outcome).inc()
    metrics.hold_seconds.observe(held_seconds)
    if held_seconds:
        for task in prompt:
            committed = task.updated_at + request.app[DATABASE].clock_offset
            metrics.wake_latency_seconds.observe(max(time.time() - committed, 0.0))


def read_question(request: web.Request, user_id: str) -> Question:
    """Read what the client asks from the query and the headers; the query wins.

    Raises:
        Problem: a parameter is missing or makes no sense.
    """
    query = request.query
    task_id = parameters.task_id(query.get("taskId"))
    version = parameters.version(query["version"]) if "version" in query else _tagged_version(request, task_id)
    until = parameters.until(query.get("until"), Until.CHANGE)
    return Question(task_id, user_id, version, _wait(request), until, _client(request))


def read_batch_question(request: web.Request, user_id: str) -> BatchQuestion:
    """Read the tasks and versions from ``task=ID:VERSION``, of which there are 1 to 50; no version means 0.

    Raises:
        Problem: a parameter is missing or makes no sense.
    """
    named = request.query.getall("task", [])
    if not named:
        raise TaskIdRequired("Name the tasks: ?task=ID:VERSION&task=…")
    if len(named) > MAX_BATCH:
        raise BadRequest(f"At most {MAX_BATCH} tasks can be asked for at once.")
    versions: dict[str, int] = {}
    for item in named:
        task_id, _, version = item.partition(":")
        if task_id in versions:
            raise BadRequest(f"The task {task_id[:64]} is there twice.")
        versions[task_id] = parameters.version(version) if version else 0
    gather = parameters.seconds(request.query.get("gather", "0"), LONGEST_GATHER_SECONDS, name="gather")
    return BatchQuestion(versions, user_id, _wait(request), _client(request), gather)


def _wait(request: web.Request) -> float:
    longest = request.app[CONFIG].polling.hold_seconds
    if "wait" in request.query:
        return parameters.seconds(request.query["wait"], longest)
    preferred = parameters.preferred_wait(request, longest)
    return longest if preferred is None else preferred


def _client(request: web.Request) -> str | None:
    client = request.query.get("c")
    if client is not None and not _CLIENT.match(client):
        raise BadRequest("c must be 1 to 64 letters, digits, - or _: a random name for the page that polls.")
    return client


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
        poll = describe_poll(
            answer.reason, changed=answer.changed, held_seconds=answer.held_seconds, finished=task.terminal
        )
        response = json_reply(b'{"data":' + task.data + b',"poll":' + orjson.dumps(poll) + b"}", headers=headers)
    if answer.reason is Reason.DRAIN:
        response.force_close()
    return response


def describe_poll(reason: Reason, *, changed: bool, held_seconds: float, finished: bool) -> dict[str, object]:
    """Return the contract's `poll`: why this answer came now, and what to do next."""
    low, high = _RETRY_AFTER_MS.get(reason, (0, 0))
    return {
        "reason": reason,
        "changed": changed,
        "waitedMs": round(held_seconds * 1000),
        "next": "stop" if finished or reason is Reason.SUPERSEDED else "again",
        "retryAfterMs": random.randint(low, high),
    }


def _is_not_modified(request: web.Request, task: Task, answer: Answer[Task]) -> bool:
    # Any other reason must be read by the client, and a 304 has no body to say it in.
    if "version" in request.query or answer.reason not in {Reason.TIMEOUT, Reason.IMMEDIATE}:
        return False
    return _tagged_version(request, task.task_id) == task.version
