"""What is sent and what comes back, as JSON Schema."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from server.errors import Problem
from server.generation.generator import DEFAULT_SIZE, SIZES
from server.protocol.replies import LONGEST_RETRY_AFTER_MS
from server.storage.grants import TAGS
from server.storage.logins import Scope
from server.storage.passwords import MAX_PASSWORD, MIN_PASSWORD
from server.storage.tasks import PRIORITIES, STATUSES
from server.waiting.places import MOST_PLACES
from server.waiting.waiters import Reason
from server.web.handlers.account_page import ACTIONS
from server.web.handlers.login import MAX_EMAIL
from server.web.handlers.orders import DEFAULT_PRIORITY, MAX_PROMPT, MAX_SEED
from server.web.handlers.tokens import DEFAULT_DAYS, LONGEST_DAYS, MAX_TOKEN_NAME
from server.web.openapi.parts import Json, schema

_TEXT: Final[Json] = {"type": "string"}
_FLAG: Final[Json] = {"type": "boolean"}
_COUNT: Final[Json] = {"type": "integer", "minimum": 0}
_SECONDS: Final[Json] = {"type": "number", "minimum": 0}
_PROMPT: Final = (
    "Line ends become line feeds and the ends are trimmed before it is counted and kept. Something of it must be seen."
    " Without NUL."
)
_MOMENT: Final[Json] = {"type": "string", "format": "date-time"}
_PASSWORD: Final[Json] = {"type": "string", "maxLength": MAX_PASSWORD}
_NEW_PASSWORD: Final[Json] = {
    "type": "string",
    "minLength": MIN_PASSWORD,
    "maxLength": MAX_PASSWORD,
    "description": f"At least {MIN_PASSWORD} characters (as NFKC), not spaces alone, not your own address, and none of the most"
    " common passwords.",
}
_SCOPES: Final = "`read`: GET and HEAD only; `write`: everything that concerns your tasks."


def schemas() -> Json:
    """Return all of them by name."""
    task = _task()
    return {
        "TaskId": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$", "examples": ["q2Xh8yYcQm0uS4wT1nVb3A"]},
        "Task": _object(task),
        "ListedTask": _object({**task, "prompt": _said(_TEXT, "What the picture shall show.")}),
        "Poll": _object(_poll()),
        "Status": _object({"data": schema("Task"), "poll": schema("Poll")}),
        "Batch": _object(_batch()),
        "Created": _object(_created()),
        "Canceled": _object({"taskId": schema("TaskId"), "data": schema("Task")}),
        "TaskPage": _object({"items": _list(schema("ListedTask")), "nextCursor": _or_null(_TEXT)}),
        "Order": _order(multipart=False),
        "OrderForm": _order(multipart=True),
        "PageForm": _page_form(),
        "Cancel": _object({"taskId": schema("TaskId")}),
        "Credentials": _credentials(_PASSWORD),
        "NewAccount": _credentials(_NEW_PASSWORD),
        "Account": _object({"user": _object({"id": {"type": "string", "format": "uuid"}, "email": _TEXT})}),
        "PasswordChange": _object({"currentPassword": _PASSWORD, "newPassword": _NEW_PASSWORD}),
        "Confirmation": _object({"currentPassword": _PASSWORD}),
        "AccountForm": _account_form(),
        "Sessions": _object({"items": _list(schema("Session"))}),
        "Session": _object(_session()),
        "TokenOrder": _token_order(),
        "Token": _object(_token()),
        "NewToken": _object({"token": _said(_TEXT, "The secret: shown this once."), **_token()}),
        "TokenPage": _object({"items": _list(schema("Token")), "nextCursor": _or_null(_TEXT)}),
        "WorkerToken": _object(_worker_token()),
        "Problem": _problem(),
        "Health": _object({"status": {"enum": ["ok", "failing"]}, "dead": _list(_TEXT)}),
        "Checks": _object({"listener": _FLAG, "background": _FLAG, "pictures": _FLAG, "accepting": _FLAG}),
        "Readiness": _object(
            {"status": {"enum": ["ready", "unready"]}, "checks": schema("Checks"), "dead": _list(_TEXT)}
        ),
        "Figures": _object(_figures()),
    }


def _object(properties: Json, *, optional: Iterable[str] = ()) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in set(optional)],
        "additionalProperties": False,
    }


def _said(schema: Json, description: str) -> Json:
    return {**schema, "description": description}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _or_null(schema: Json) -> Json:
    return {**schema, "type": [schema["type"], "null"]}


_PLACE: Final = (
    "1 is the next one to be made; null unless it waits. As of this reply, give or take a second, in the order of claims: users take"
    f" turns. {MOST_PLACES + 1} means that or more. No part of the version."
)


def _task() -> Json:
    return {
        "taskId": schema("TaskId"),
        "type": {"enum": ["basic", "advanced"]},
        "status": {
            "enum": list(STATUSES),
            "description": "`completed`, `failed` and `canceled` are final: nothing changes any more.",
        },
        "version": {"type": "integer", "minimum": 1, "description": "Grows with every visible change."},
        "result": _said(_or_null(_TEXT), "Where the picture is, once it is completed."),
        "error": _said(_or_null(_TEXT), "Why there is no picture."),
        "progress": {"type": ["number", "null"], "minimum": 0, "maximum": 1, "description": "null while unknown."},
        "stage": _said(_or_null(_TEXT), "What is being done, in a word or two."),
        "message": _said(_or_null(_TEXT), "A sentence for the person who waits."),
        "queuePosition": _said(_or_null({"type": "integer", "minimum": 1}), _PLACE),
        "etaSeconds": _said(_or_null(_SECONDS), "An estimate from what the last pictures took."),
        "attempt": _said(_COUNT, "How often the work has been begun."),
        "cancelRequested": _FLAG,
        "createdAt": _MOMENT,
        "startedAt": _or_null(_MOMENT),
        "updatedAt": _MOMENT,
        "finishedAt": _or_null(_MOMENT),
    }


def _poll() -> Json:
    reasons = (
        "`immediate`: it was different already, `wait` was 0, or the task has ended; `change`: it changed while we"
        " waited; `place`: only its place in the queue isn't the one you named; `timeout`: the hold ended with nothing new; `reset`: your version is ahead of ours, start again from"
        " this one; `drain`: this process stops; `degraded`: too many polls are held; `superseded`: the same `c` has"
        " asked again."
    )
    return {
        "reason": {"enum": [reason for reason in Reason if reason is not Reason.REVOKED], "description": reasons},
        "changed": _said(_FLAG, "Whether anything differs from the version you named."),
        "waitedMs": _said(_COUNT, "How long the request was held."),
        "next": {"enum": ["again", "stop"], "description": "`stop`: there is nothing more to come."},
        "retryAfterMs": {
            "type": "integer",
            "minimum": 0,
            "maximum": LONGEST_RETRY_AFTER_MS,
            "description": "How long to wait before asking again; 0 unless the reason is `drain` or `degraded`.",
        },
    }


def _batch() -> Json:
    return {
        "items": _said(
            _list(schema("Task")),
            "Those that differ from the version you named, or stand at another place than you named.",
        ),
        "unchanged": _said(_list(schema("TaskId")), "The ids of those that don't."),
        "notFound": _said(_list(_TEXT), "The ids of those that you don't have, or no longer."),
        "poll": schema("Poll"),
    }


def _created() -> Json:
    return {
        "taskId": schema("TaskId"),
        "data": schema("Task"),
        "links": _object({"status": _TEXT, "cancel": _TEXT, "result": _TEXT}),
        "poll": _object(
            {
                "holdSeconds": _said(_SECONDS, "How long a status request is held at most."),
                "clientTimeoutSeconds": _said(_SECONDS, "After so long without an answer, ask again."),
            }
        ),
    }


def _order(*, multipart: bool) -> Json:
    seed: Json = {"type": "integer", "minimum": 0, "maximum": MAX_SEED}
    digits: Json = {"type": "string", "pattern": "^[0-9]{0,16}$"}
    image = "PNG, JPEG or WebP, up to 10 MiB and 16 megapixels; what `advanced` builds on."
    properties: Json = {
        "prompt": {"type": "string", "minLength": 1, "maxLength": MAX_PROMPT, "description": _PROMPT},
        "seed": {
            "anyOf": [digits, seed, *([] if multipart else [{"type": "null"}])],
            "description": "The same seed and prompt make the same picture. Random if there is none.",
        },
        "size": {
            "enum": [*SIZES, "", *([] if multipart else [None])],
            "default": DEFAULT_SIZE,
            "description": "In pixels.",
        },
        "priority": {
            "enum": [*PRIORITIES, "", *([] if multipart else [None])],
            "default": DEFAULT_PRIORITY,
            "description": "In the queue, a task of low priority counts as ten, one of high priority as a tenth. Not everybody"
            " may use `high`.",
        },
    }
    if multipart:
        properties["reference_image"] = {"type": "string", "format": "binary", "description": image}
    return _object(properties, optional=["seed", "size", "priority", "reference_image"])


def _page_form() -> Json:
    order = _order(multipart=True)
    assert isinstance(order["properties"], dict)
    own: Json = {
        "type": _said(_TEXT, "`advanced` builds on the reference image and the seed; anything else is basic."),
        "user": _said(_TEXT, "As `Expected-User`."),
        "key": _said(_TEXT, "As `Idempotency-Key`, for one and the same order."),
    }
    return {**order, "properties": {**order["properties"], **own}}


def _credentials(password: Json) -> Json:
    return _object(
        {
            "email": {"type": "string", "format": "email", "maxLength": MAX_EMAIL},
            "password": password,
            "next": _said(_TEXT, "Where a browser goes then: a path of this site."),
        },
        optional=["next"],
    )


def _session() -> Json:
    return {
        "id": {"type": "string", "format": "uuid"},
        "agent": _said(_TEXT, "What the browser called itself at the login."),
        "current": _said(_FLAG, "Whether it is the one that asks."),
        "createdAt": _MOMENT,
        "lastUsedAt": _said(_MOMENT, "Give or take a day."),
        "expiresAt": _said(_MOMENT, "Unless it is used: then its end is put off."),
    }


def _account_form() -> Json:
    optional: Json = {
        "currentPassword": _PASSWORD,
        "newPassword": _NEW_PASSWORD,
        "user": _said(_TEXT, "As `Expected-User`."),
        "id": _said(_TEXT, "Of the session or the token."),
        "name": _TEXT,
        "scope": {"enum": list(Scope)},
        "expiresInDays": _said(_TEXT, "Empty: it has no end."),
    }
    return _object({"action": {"enum": list(ACTIONS)}, **optional}, optional=optional)


def _token_order() -> Json:
    days: Json = {
        "type": ["integer", "null"], "minimum": 1, "maximum": LONGEST_DAYS, "default": DEFAULT_DAYS,
        "description": "After so many days it opens nothing any more; null: it has no end.",
    }  # fmt: skip
    return _object(
        {
            "name": {"type": "string", "minLength": 1, "maxLength": MAX_TOKEN_NAME, "default": "script"},
            "scope": {"enum": list(Scope), "default": Scope.WRITE, "description": _SCOPES},
            "expiresInDays": days,
        },
        optional=["name", "scope", "expiresInDays"],
    )


def _token() -> Json:
    return {
        "id": {"type": "string", "format": "uuid"},
        "name": _TEXT,
        "scope": {"enum": list(Scope), "description": _SCOPES},
        "createdAt": _MOMENT,
        "expiresAt": _said(_or_null(_MOMENT), "null: it has no end."),
        "lastUsedAt": _said(_or_null(_MOMENT), "Give or take an hour; null: not yet."),
    }


def _worker_token() -> Json:
    return {
        "id": {"type": "string", "format": "uuid"},
        "name": _TEXT,
        "tags": _said(_list({"enum": list(TAGS)}), "What kinds of tasks may be claimed."),
        "concurrency": {"type": "integer", "minimum": 1, "description": "How many tasks may be held at a time."},
        "expiresAt": _said(_or_null(_MOMENT), "null: it has no end."),
    }


def problem_types(root: type[Problem] = Problem) -> list[type[Problem]]:
    """Return every kind of problem."""
    return [root, *(kind for child in root.__subclasses__() for kind in problem_types(child))]


def _problem() -> Json:
    codes = sorted({kind.code for kind in problem_types()} | {"http_error"})
    return {
        "type": "object",
        "description": "RFC 9457. `error` repeats the title for older clients.",
        "properties": {
            "type": {"type": "string", "format": "uri", "description": "`urn:longpoll:problem:` and the code."},
            "title": _said(_TEXT, "One sentence, always the same for this code."),
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "instance": _said(_TEXT, "The id of the request, also in `X-Request-Id`."),
            "code": {"enum": codes, "description": "What programs compare."},
            "error": _TEXT,
            "detail": _said(_TEXT, "What was wrong with this very request."),
        },
        "required": ["type", "title", "status", "instance", "code", "error"],
        "unevaluatedProperties": False,
    }


def _figures() -> Json:
    maybe = _or_null(_SECONDS)
    return {
        "process": _object(
            {
                "version": _TEXT,
                "startedAt": _MOMENT,
                "uptimeSeconds": _SECONDS,
                "checks": schema("Checks"),
                "dead": _said(_list(_TEXT), "Background tasks that ended by an error."),
            }
        ),
        "polls": _object(
            {
                "held": _COUNT,
                "limit": _COUNT,
                "watched": _said(_COUNT, "Tasks kept in memory."),
                "ended": {"type": "object", "additionalProperties": _COUNT, "description": "Polls by their outcome."},
            }
        ),
        "wakes": _said(
            _object({"count": _COUNT, "p50Seconds": maybe, "p90Seconds": maybe, "p99Seconds": maybe}),
            "From the commit of a change to the reply that tells of it.",
        ),
        "listener": _object(
            {
                "up": _FLAG,
                "lagSeconds": _SECONDS,
                "reconnects": _COUNT,
                "repairs": _said(_COUNT, "Changes that no notification told of."),
            }
        ),
        "database": _object({"statements": _COUNT, "busy": _COUNT, "connections": _COUNT, "limit": _COUNT}),
        "tasks": {
            "anyOf": [_object({"pending": _COUNT, "processing": _COUNT}), {"type": "null"}],
            "description": "In all processes together; null while Postgres can't be reached.",
        },
    }
