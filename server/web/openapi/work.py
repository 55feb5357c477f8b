"""What workers ask."""

from __future__ import annotations

from server.errors import PayloadTooLarge, TagRefused, UnsupportedMedia
from server.protocol.replies import JSON
from server.web.openapi.parts import Json, body, operation, reply, schema

_TAG = "Work"


def paths() -> Json:
    """Describe them by URL and method."""
    return {
        "/api/work/token": {"get": _token()},
        "/api/work/claim": {"post": _claim()},
    }


def _token() -> Json:
    return operation(
        "getWorkerToken",
        "What this token is good for",
        "For a worker that starts, to learn that it may work, and at what.",
        tag=_TAG,
        replies={"200": reply("It is valid", schema("WorkerToken"))},
        works=True,
    )


def _claim() -> Json:
    return operation(
        "claimTasks",
        "Wait for tasks",
        "Held until there is a task for this worker: one that is created is given to one of those who wait, who has waited for"
        " longest. What is claimed is to be heard of again within `leaseSeconds`; otherwise the answer is taken for lost, and"
        " the task is given to somebody else without costing an attempt. An empty list is a success like any other: ask again, after"
        " `retryAfterMs`.",
        tag=_TAG,
        body=body({JSON: schema("WorkClaim")}, "Who asks, and for what."),
        replies={"200": reply("Tasks, or none and why", schema("WorkClaimed"))},
        refused=[PayloadTooLarge, TagRefused, UnsupportedMedia],
        works=True,
        changes=True,
        counted=True,
    )
