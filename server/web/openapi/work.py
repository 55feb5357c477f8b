"""What workers ask."""

from __future__ import annotations

from server.web.openapi.parts import Json, operation, reply, schema

_TAG = "Work"


def paths() -> Json:
    """Describe them by URL and method."""
    return {"/api/work/token": {"get": _token()}}


def _token() -> Json:
    return operation(
        "getWorkerToken",
        "What this token is good for",
        "For a worker that starts, to learn that it may work, and at what.",
        tag=_TAG,
        replies={"200": reply("It is valid", schema("WorkerToken"))},
        works=True,
    )
