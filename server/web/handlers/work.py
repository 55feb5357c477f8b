"""Workers that have nothing but HTTPS: they ask for tasks, and are held until there are some."""

from __future__ import annotations

import datetime as dt
import math
import random
import re
import time
from typing import Final

from aiohttp import web

from server.errors import BadRequest, NotSignedIn, TagRefused
from server.generation.desk import MOST_PER_CLAIM, Claimer
from server.generation.generator import SIZES
from server.generation.leases import Lease
from server.protocol.departures import is_open
from server.protocol.replies import describe_poll
from server.storage.grants import TAGS, WorkerGrant
from server.storage.tasks import Claim
from server.waiting.waiters import Reason
from server.web.handlers import parameters
from server.web.identity import working
from server.web.keys import CLAIM_DESK, CONFIG, RATE_LIMITS, RECORD
from server.web.replies import json_reply

CLAIMED: Final = "claimed"
CONCURRENCY: Final = "concurrency"
CLAIM_REASONS: Final = (
    CLAIMED, CONCURRENCY, Reason.TIMEOUT, Reason.DRAIN, Reason.DEGRADED, Reason.SUPERSEDED,
)  # fmt: skip
"""Why a claim was answered."""

_CLAIM_FIELDS: Final = frozenset({"worker", "tags", "max", "wait"})
_WORKER: Final = re.compile(r"[A-Za-z0-9._:@-]{1,64}\Z")


async def token(request: web.Request) -> web.Response:
    """Say what the token is good for."""
    login, grant = await working(request)
    expires_at = None if math.isinf(login.expires_at) else dt.datetime.fromtimestamp(login.expires_at, dt.UTC)
    return json_reply(
        {
            "id": grant.token_id,
            "name": grant.name,
            "tags": sorted(grant.tags),
            "concurrency": grant.concurrency,
            "expiresAt": expires_at,
        }
    )


async def claim(request: web.Request) -> web.Response:
    """Hold the request until there are tasks for this worker, or its time is over."""
    login, grant = await working(request)
    body = await parameters.json_object(request, known=_CLAIM_FIELDS)
    claimer = _read_claimer(request, grant, body)
    seconds = _jittered(request, read_wait(body.get("wait"), request.app[CONFIG].polling.hold_seconds))
    request.app[RATE_LIMITS].check_poll(f"{grant.token_id}:{claimer.worker}")
    started = time.monotonic()
    try:
        reason = await request.app[CLAIM_DESK].claim(claimer, seconds, login)
    finally:
        held_seconds = time.monotonic() - started
        request[RECORD].held = None, held_seconds, ()
    if reason is Reason.REVOKED:
        raise NotSignedIn("The token ended while this request was held.")
    return json_reply(await _describe_claim(request, claimer, reason, held_seconds))


async def _describe_claim(
    request: web.Request, claimer: Claimer, reason: Reason, held_seconds: float
) -> dict[str, object]:
    skipped = None
    if reason is Reason.TIMEOUT and not claimer.taken:
        skipped = await request.app[CLAIM_DESK].count_passed_over(claimer.tags)
    told = CLAIMED if claimer.taken else CONCURRENCY if claimer.limited and skipped is not None else reason
    poll = describe_poll(reason, changed=bool(claimer.taken), held_seconds=held_seconds, finished=False)
    lease_seconds = request.app[CONFIG].generation.delivery_seconds
    return {
        "tasks": [_describe_task(lease, task, lease_seconds) for lease, task in claimer.taken],
        "reason": told,
        "skipped": skipped,
        "waitedMs": poll["waitedMs"],
        "retryAfterMs": 0 if claimer.taken else poll["retryAfterMs"],
    }


def _describe_task(lease: Lease, task: Claim, lease_seconds: float) -> dict[str, object]:
    width, height = SIZES[task.size]
    return {
        "taskId": task.task_id,
        "type": task.type,
        "prompt": task.prompt,
        "seed": task.seed,
        "width": width,
        "height": height,
        "attempt": task.attempt,
        "lease": lease.text,
        "leaseSeconds": lease_seconds,
    }


def _read_claimer(request: web.Request, grant: WorkerGrant, body: dict[str, object]) -> Claimer:
    worker, most = body.get("worker", "worker"), parameters.whole_number(body.get("max", 1), 1, MOST_PER_CLAIM)
    if not isinstance(worker, str) or not _WORKER.match(worker):
        raise BadRequest("worker must be a name of 1 to 64 characters, of A-Z, a-z, 0-9 and . _ : @ -")
    if most is None:
        raise BadRequest(f"max must be a whole number from 1 to {MOST_PER_CLAIM}.")
    tags = _read_tags(body.get("tags"), grant)
    return Claimer(grant, worker, tags, most, is_open=lambda: is_open(request.transport))


def _read_tags(value: object, grant: WorkerGrant) -> frozenset[str]:
    if value is None:
        return grant.tags
    known = f"Known are: {', '.join(TAGS)}."
    if not isinstance(value, list) or not value or not all(isinstance(tag, str) for tag in value):
        raise BadRequest(f"tags must be a list of at least one tag. {known}")
    tags = frozenset(value)
    if unknown := sorted(tags.difference(TAGS)):
        raise BadRequest(f"Unknown tag: {unknown[0][:40]}. {known}")
    if refused := sorted(tags - grant.tags):
        raise TagRefused(f"It may claim {', '.join(sorted(grant.tags))}, not {', '.join(refused)}.")
    return tags


def read_wait(value: object, longest: float) -> float:
    """Return for how many seconds a request may be held; more than the longest means the longest."""
    if value is None:
        return longest
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise BadRequest(f"wait must be a number of seconds from 0 to {longest:g}.")
    return min(float(value), longest) if value < longest else longest


def _jittered(request: web.Request, seconds: float) -> float:
    """Return a bit less than that, at random, so that workers spread out and proxies don't cut them."""
    return seconds - random.random() * min(request.app[CONFIG].polling.jitter_seconds, seconds / 10)
