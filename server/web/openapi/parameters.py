"""What is asked with, and what replies say beside their content."""

from __future__ import annotations

from typing import Final

from server.storage.tasks import STATUSES
from server.waiting.answers import Until
from server.web.handlers.status import LONGEST_GATHER_SECONDS, MAX_BATCH
from server.web.openapi.parts import Json, schema

_LARGEST_VERSION: Final = 2**63 - 1
_UNTIL: Final = (
    "What is waited for: any visible change, another status (progress doesn't count), or the end of the task."
)


def parameters(hold_seconds: float) -> Json:
    """Return all of them by name. `hold_seconds`: the longest hold of this server."""
    return _asked_about() | _waiting(hold_seconds) | _listing() | _headers() | _path()


def _asked_about() -> Json:
    return {
        "taskId": _query("taskId", schema("TaskId"), "The task.", required=True),
        "version": _query(
            "version",
            {"type": "integer", "minimum": 0, "maximum": _LARGEST_VERSION},
            "The last version you have seen. Equal to the present one: the request is held; otherwise it is answered at"
            " once. Without it, the request is held until the task differs from what it is on arrival.",
        ),
        "place": _query(
            "place",
            {"type": "integer", "minimum": 0, "maximum": _LARGEST_VERSION},
            "The last `queuePosition` you have seen, 0 if there was none. With it, and only with it, the request is also answered"
            " when a task that waits has another place: at once when it is next, else no sooner than 2 seconds after it"
            " began, and up to 10 the farther back it stands. Heeded with `until=change` only.",
        ),
        "task": _query(
            "task",
            {
                "type": "array",
                "items": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}(:[0-9]{1,18}(:[0-9]{1,18})?)?$"},
                "minItems": 1,
                "maxItems": MAX_BATCH,
                "uniqueItems": True,
            },
            "`ID:VERSION`, once for each task: the last version you have seen of it. Without a version, 0 is taken."
            " `ID:VERSION:PLACE` asks to be told of its moves in the queue, too, as `place` does. An id that"
            " no task can have is not found; one that is there twice is refused.",
            required=True,
        ),
        "client": _query(
            "c",
            {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
            "A random name for the page that polls: when it asks again, its older request is answered.",
        ),
    }


def _waiting(hold_seconds: float) -> Json:
    return {
        "wait": _query(
            "wait",
            {"type": "number", "minimum": 0, "default": hold_seconds},
            f"How many seconds the request may be held; more than {hold_seconds:g} means {hold_seconds:g}. 0 gives the"
            " state as it is.",
        ),
        "gather": _query(
            "gather",
            {"type": "number", "minimum": 0, "default": 0},
            "Mere progress is told no sooner than so many seconds after the request began, so that several steps come"
            f" in one answer; more than {LONGEST_GATHER_SECONDS:g} means {LONGEST_GATHER_SECONDS:g}. Another status,"
            " the end of a task and a task that is no more are told at once, as everything is without it; even then"
            " changes that come within 50 ms come together.",
        ),
        "until": _query("until", {"enum": list(Until), "default": Until.CHANGE}, _UNTIL),
        "untilOfCreate": _query(
            "until",
            {"enum": list(Until), "default": Until.TERMINAL},
            f"With `Prefer: wait`. {_UNTIL} `status` answers as soon as the work has begun.",
        ),
    }


def _listing() -> Json:
    return {
        "limit": _query("limit", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}, "How many at most."),
        "cursor": _query("cursor", {"type": "string"}, "The `nextCursor` of the page before; nothing else is taken."),
        "status": _query("status", {"enum": [*STATUSES, "all", ""]}, "Only tasks with this status."),
        "done": _query("done", {"type": "string"}, "What a form has just done, to be said on the page."),
        "next": _query("next", {"type": "string"}, "Where to go afterwards: a path of this site."),
    }


def _query(name: str, described: Json, description: str, *, required: bool = False) -> Json:
    return {"name": name, "in": "query", "required": required, "schema": described, "description": description}


def _headers() -> Json:
    text: Json = {"type": "string"}
    return {
        "If-None-Match": _header(
            "If-None-Match",
            text,
            "The `ETag` of an earlier answer, instead of `version`; then a hold that ends with nothing new is a 304.",
        ),
        "If-None-Match-image": _header("If-None-Match", text, "The `ETag` of a picture you have: 304 if it is that."),
        "Prefer": _header(
            "Prefer", text, "`wait=N` (RFC 7240): how many seconds the request may be held. The query wins."
        ),
        "Expected-User": _header(
            "Expected-User",
            {"type": "string", "format": "uuid"},
            "The `id` of the user that you take yourself for. If somebody else is logged in, nothing happens and the answer"
            " is 409: a page outlives a login in another tab.",
        ),
        "Idempotency-Key": _header(
            "Idempotency-Key",
            {"type": "string", "pattern": "^[\\x20-\\x7E]{1,255}$"},
            "The same key and the same body, sent again, give the same task.",
        ),
    }


def _header(name: str, described: Json, description: str) -> Json:
    return {"name": name, "in": "header", "required": False, "schema": described, "description": description}


def _path() -> Json:
    return {
        "task_id": {
            "name": "task_id", "in": "path", "required": True, "schema": schema("TaskId"), "description": "The task.",
        },
        "token_id": {
            "name": "token_id", "in": "path", "required": True, "schema": {"type": "string"},
            "description": "The `id` of the token.",
        },
        "session_id": {
            "name": "session_id", "in": "path", "required": True, "schema": {"type": "string"},
            "description": "The `id` of the session.",
        },
        "folder": {
            "name": "folder", "in": "path", "required": True, "schema": {"type": "string"},
            "description": "The folder of the file.",
        },
        "filename": {
            "name": "filename", "in": "path", "required": True, "schema": {"type": "string"},
            "description": "The name of the file.",
        },
    }  # fmt: skip


def headers() -> Json:
    """Return the headers of replies by name."""
    return {
        name: {"schema": described, "description": description, "required": required}
        for name, (described, description, required) in _REPLY_HEADERS.items()
    }


_TEXT: Final[Json] = {"type": "string"}
_WHOLE: Final[Json] = {"type": "string", "pattern": "^[0-9]+$"}
_REPLY_HEADERS: Final[dict[str, tuple[Json, str, bool]]] = {
    "X-Request-Id": (
        {"type": "string", "pattern": "^[A-Za-z0-9._:=+/@-]{1,128}$"},
        "The id under which the request is logged: of ours, or the one that a trusted proxy has given it.",
        True,
    ),
    "Cache-Control": (
        {"enum": ["private, no-store", "no-cache", "private, max-age=86400"]},
        "`private, no-store`, but for pictures and static files.",
        True,
    ),
    "Content-Security-Policy": (_TEXT, "What a page may load: its own files.", True),
    "X-Content-Type-Options": ({"const": "nosniff"}, "The media type is meant.", True),
    "X-Frame-Options": ({"const": "DENY"}, "No page of this site may stand in another one.", True),
    "Referrer-Policy": ({"const": "same-origin"}, "Other sites don't learn where their visitor came from.", True),
    "Cross-Origin-Opener-Policy": ({"const": "same-origin"}, "Other sites' windows can't reach ours.", True),
    "Strict-Transport-Security": (
        {"type": "string", "pattern": "^max-age=[0-9]+$"},
        "Where the site is https, but for polls: come by https only.",
        False,
    ),
    "Cross-Origin-Resource-Policy": ({"const": "same-origin"}, "No page of another site may show it.", True),
    "WWW-Authenticate": (_TEXT, "How to sign in.", True),
    "ETag": (_TEXT, "Names this state: the id and the version of a task, or one picture.", True),
    "X-Task-Version": (_WHOLE, "The version of the task.", True),
    "Server-Timing": (
        {"type": "string", "pattern": "^hold;dur=[0-9.]+$"},
        "How long the request was held, in ms.",
        True,
    ),
    "Location": (_TEXT, "Where to go on.", True),
    "Preference-Applied": (
        {"type": "string", "pattern": "^wait=[0-9.]+$"},
        "What was made of `Prefer`, if it was given.",
        False,
    ),
    "Idempotent-Replayed": ({"const": "true"}, "The task was there already.", False),
    "Retry-After": (
        _WHOLE,
        "Seconds after which asking again makes sense; random, so that not all come at once.",
        True,
    ),
    "Set-Cookie": (_TEXT, "The session, `HttpOnly` and `SameSite=Lax`; or its end.", False),
    "Content-Disposition": (_TEXT, "A name for the file.", True),
    "Allow": (_TEXT, "The methods that this URL has; with 405.", False),
}
