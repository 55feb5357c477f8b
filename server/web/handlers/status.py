"""The requests that truly wait: `GET /api/generate/status` for one task, `…/status/batch` for up to 50."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Final

import orjson
from aiohttp import web

from server.errors import BadRequest, NotSignedIn, TaskIdRequired, TooManyRequests
from server.protocol import repeats
from server.protocol.heads import REQUEST_ID
from server.protocol.parking import CONNECTION, PARKED, Repeat
from server.protocol.replies import DEFAULT_OPTIONS, ReplyOptions, StateReply, changes, describe_poll, missing, outcome
from server.protocol.whole_reply import poll_reply
from server.storage.logins import Login
from server.storage.tasks import Task
from server.telemetry.requests import CLIENT_GONE
from server.waiting.answers import Answer, Question, Until
from server.waiting.batches import BatchQuestion
from server.waiting.parked_polls import OnAnswer, ParkedPoll
from server.waiting.waiters import Reason
from server.web.handlers import parameters
from server.web.identity import signed_in
from server.web.keys import BATCH_POLLING, CONFIG, PARKING, PLACES, POLLING, RATE_LIMITS, RECORD, SESSIONS
from server.web.replies import json_reply

MAX_BATCH: Final = 50
LONGEST_GATHER_SECONDS: Final = 2.0
_CLIENT: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_ENTITY_TAG: Final = re.compile(r'(?:W/)?"([A-Za-z0-9_-]{1,64})\.([0-9]{1,19})"')


async def status(request: web.Request) -> web.StreamResponse:
    """Hold the request until the task differs from what the client has seen, or its time is over."""
    try:  # with few variables: they are kept for as long as the poll is held
        login = await _poller(request)
        question, options = read_question(request, login)
        request[RECORD].task_id = question.task_id
        if request.app[PARKING].admits(request):
            answer, held_seconds = await _answer_or_park(request, login, question, options), 0.0
        else:
            answer, held_seconds = await request.app[POLLING].answer(question)
    except asyncio.CancelledError:
        _note_who_left(request)
        raise
    if answer is None:
        return PARKED
    request[RECORD].held = outcome(answer), held_seconds, changes(answer)
    if answer.snapshot is None:
        raise missing(answer)
    reply = StateReply(answer.snapshot, answer, options)
    return poll_reply(request, reply, held_seconds, request[RECORD].request_id)


async def _poller(request: web.Request) -> Login:
    login = await signed_in(request)
    request.app[RATE_LIMITS].check_poll(login.user.user_id)
    return login


def repeats_of(app: web.Application) -> Repeat:
    """Return what a poll that is asked again goes through instead of `status`: the same checks, all from memory."""
    sessions, rates, polling = app[SESSIONS], app[RATE_LIMITS], app[POLLING]

    def repeat(again: repeats.RepeatablePoll, version: int, on_answer: OnAnswer[Task]) -> ParkedPoll[Task] | None:
        if sessions.peek(again.login.key) is not again.login:
            return None
        try:
            rates.check_poll(again.question.user_id)
        except TooManyRequests:
            return None  # `status` counts it once more, and says so
        return polling.park_at_once(again.question, version, on_answer)

    return repeat


async def _answer_or_park(
    request: web.Request, login: Login, question: Question, options: ReplyOptions
) -> Answer[Task] | None:
    """Return the answer, or None if the request's connection is parked until there is one."""
    connection = request.app[PARKING].connection(request)
    found = await request.app[POLLING].answer_or_park(question, connection.answer)
    if isinstance(found, Answer):
        return found
    connection.hold(found, request[RECORD], options, _again(request, login, question))
    request[CONNECTION] = connection
    return None


def _again(request: web.Request, login: Login, question: Question) -> repeats.RepeatablePoll | None:
    """Return how to know this poll when it comes again, if it is one that can be known."""
    if request.headers.get(REQUEST_ID) == request[RECORD].request_id:
        return None  # each time it comes with an id of its own, which only the whole way reads
    found = repeats.parse_repeat(request.app[PARKING].bytes_of(request))
    return (
        repeats.RepeatablePoll(found[0], login, question)
        if found is not None and found[1] == question.version
        else None
    )


async def batch(request: web.Request) -> web.Response:
    """Hold the request until any of its tasks differs from what the client has seen, or its time is over."""
    try:
        question = read_batch_question(request, await _poller(request))
        answer = await request.app[BATCH_POLLING].answer(question)
    except asyncio.CancelledError:
        _note_who_left(request)
        raise
    request[RECORD].held = answer.reason, answer.held_seconds, [task.updated_at for task in answer.prompt]
    if answer.reason is Reason.REVOKED:
        raise NotSignedIn("The login ended while this request was held.")
    places = request.app[PLACES]
    poll = describe_poll(
        answer.reason, changed=bool(answer.changed), held_seconds=answer.held_seconds, finished=answer.finished
    )
    body = {
        "items": [orjson.Fragment(task.data(places.standing(task))) for task in (*answer.changed, *answer.moved)],
        "unchanged": answer.unchanged,
        "notFound": answer.not_found,
        "poll": poll,
    }
    return json_reply(body, headers={"Server-Timing": f"hold;dur={answer.held_seconds * 1000:.1f}"})


def _note_who_left(request: web.Request) -> None:
    record = request[RECORD]
    record.held = CLIENT_GONE, time.perf_counter() - record.started, ()


def read_question(request: web.Request, login: Login) -> tuple[Question, ReplyOptions]:
    """Read what the client asks from the query and the headers; the query wins.

    Raises:
        Problem: a parameter is missing or makes no sense.
    """
    query = request.query
    task_id = parameters.task_id(query.get("taskId"))
    longest = request.app[CONFIG].polling.hold_seconds
    preferred = None if "wait" in query else parameters.preferred_wait(request, longest)
    tagged = None if "version" in query else _tagged_version(request, task_id)
    version = parameters.version(query["version"]) if "version" in query else tagged
    seconds = preferred if preferred is not None else _wait(request)
    until = parameters.until(query.get("until"), Until.CHANGE)
    # Whoever waits for a status, or for the end, isn't told of moves in the queue.
    place = parameters.place(query["place"]) if "place" in query else None
    question = Question(
        task_id,
        login.user.user_id,
        version,
        seconds,
        until,
        _client(request),
        login,
        place if until is Until.CHANGE else None,
    )
    return question, DEFAULT_OPTIONS if preferred is None and tagged is None else ReplyOptions(preferred, tagged)


def read_batch_question(request: web.Request, login: Login) -> BatchQuestion:
    """Read the tasks from ``task=ID:VERSION:PLACE``, of which there are 1 to 50; no version means 0.

    Of those without a place, moves in the queue aren't told.

    Raises:
        Problem: a parameter is missing or makes no sense.
    """
    named = request.query.getall("task", [])
    if not named:
        raise TaskIdRequired("Name the tasks: ?task=ID:VERSION&task=…")
    if len(named) > MAX_BATCH:
        raise BadRequest(f"At most {MAX_BATCH} tasks can be asked for at once.")
    versions: dict[str, int] = {}
    places: dict[str, int] = {}
    for item in named:
        task_id, _, seen = item.partition(":")
        version, _, place = seen.partition(":")
        if task_id in versions:
            raise BadRequest(f"The task {task_id[:64]} is there twice.")
        versions[task_id] = parameters.version(version) if version else 0
        if place:
            places[task_id] = parameters.place(place)
    impossible = [task_id for task_id in versions if not parameters.is_possible_task_id(task_id)]
    possible = {task_id: version for task_id, version in versions.items() if task_id not in impossible}
    gather = parameters.seconds(request.query.get("gather", "0"), LONGEST_GATHER_SECONDS, name="gather")
    return BatchQuestion(
        possible, login.user.user_id, _wait(request), _client(request), gather, impossible, login, places
    )


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
