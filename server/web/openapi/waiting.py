"""The requests that wait, and the tasks they wait for."""

from __future__ import annotations

from server.errors import (
    IdempotencyMismatch,
    ImageRejected,
    PayloadTooLarge,
    PriorityRefused,
    TaskDeleted,
    TaskIdRequired,
    TaskNotFound,
    TooManyWaiting,
    UnsupportedMedia,
)
from server.generation.picture import MEDIA_TYPES
from server.protocol.replies import JSON
from server.web.openapi.parts import Json, body, operation, parameters, reply, schema

_WAITING = "Waiting"
_TASKS = "Tasks"
_NOT_THERE = [TaskIdRequired, TaskNotFound]


def paths() -> Json:
    """Describe them by URL and method."""
    return {
        "/api/generate": {"post": _create("createTask", "Ask for a picture")},
        "/api/generate_advanced": {"post": _create("createAdvancedTask", "Ask for a picture that builds on another")},
        "/api/generate/status": {"get": _status()},
        "/api/generate/status/batch": {"get": _batch()},
        "/api/generate/cancel": {"post": _cancel()},
        "/api/generate/tasks": {"get": _listing()},
        "/api/generate/tasks/{task_id}": {"delete": _delete()},
        "/api/generate/tasks/{task_id}/again": {"post": _again()},
        "/api/generate/tasks/{task_id}/image": {"get": _image()},
    }


def _status() -> Json:
    state = ["ETag", "X-Task-Version", "Server-Timing", "Preference-Applied"]
    return operation(
        "getStatus",
        "Wait for a task to change",
        "The request is held until the task's version isn't the one you name, or the hold ends. Both are a success:"
        " `poll.reason` says which. A hold ends up to a second early, at random. A task that has ended is never waited"
        " for. States in between may be skipped, the latest never is. A task of somebody else is not found. When the login"
        " or the token ends while the request is held, it is answered 401 at that moment.",
        tag=_WAITING,
        takes=parameters("taskId", "version", "place", "wait", "until", "client", "If-None-Match", "Prefer"),
        replies={
            "200": reply("The state, and why it comes now", schema("Status"), headers=state),
            "304": reply("Nothing new for a caller with `If-None-Match`", headers=state),
        },
        refused=[*_NOT_THERE, TaskDeleted],
        counted=True,
    )


def _batch() -> Json:
    return operation(
        "getStatuses",
        "Wait for any of many tasks to change",
        "One request for all that a page shows. It is answered when any task differs from the version you name, and"
        " tells of all that do by then.",
        tag=_WAITING,
        takes=parameters("task", "wait", "gather", "client", "Prefer"),
        replies={"200": reply("What differs, and why it comes now", schema("Batch"), headers=["Server-Timing"])},
        refused=[TaskIdRequired],
        counted=True,
    )


_TOLD_OF_CREATED = ["Location", "Idempotent-Replayed", "Preference-Applied"]


def _created() -> dict[str, Json]:
    return {
        "200": reply("It has ended while the create was held", schema("Created"), headers=_TOLD_OF_CREATED),
        "202": reply("It will be made", schema("Created"), headers=_TOLD_OF_CREATED),
    }


def _again() -> Json:
    return operation(
        "createTaskAgain",
        "Ask for the same picture again",
        "A new task with the prompt, seed, size, kind and reference image of an earlier one, as after a failure.",
        tag=_TASKS,
        takes=parameters("task_id", "Idempotency-Key", "Prefer", "untilOfCreate"),
        replies=_created(),
        refused=[TaskNotFound, TaskDeleted, IdempotencyMismatch, ImageRejected, TooManyWaiting],
        changes=True,
        counted=True,
    )


def _create(name: str, summary: str) -> Json:
    return operation(
        name,
        summary,
        "The answer comes at once, before the picture is made: wait for it with the status request. With"
        " `Prefer: wait=N` the create itself is held until the task has ended, or for what `until` says.",
        tag=_TASKS,
        takes=parameters("Idempotency-Key", "Prefer", "untilOfCreate"),
        body=body(
            {"multipart/form-data": schema("OrderForm"), JSON: schema("Order")},
            "A form, with a reference image if you like; or JSON without one.",
        ),
        replies=_created(),
        refused=[
            TaskNotFound,
            TaskDeleted,
            PayloadTooLarge,
            UnsupportedMedia,
            IdempotencyMismatch,
            ImageRejected,
            PriorityRefused,
            TooManyWaiting,
        ],
        changes=True,
        counted=True,
    )


def _cancel() -> Json:
    return operation(
        "cancelTask",
        "Cancel a task",
        "One that waits is canceled at once; one that is being made stops soon; one that has ended stays as it is.",
        tag=_TASKS,
        body=body({JSON: schema("Cancel")}, "The task."),
        replies={
            "200": reply("It is canceled, or had ended", schema("Canceled")),
            "202": reply("It will stop", schema("Canceled")),
        },
        refused=[*_NOT_THERE, PayloadTooLarge, UnsupportedMedia],
        changes=True,
    )


def _listing() -> Json:
    return operation(
        "listTasks",
        "List your tasks",
        "Newest first, a page at a time.",
        tag=_TASKS,
        takes=parameters("limit", "cursor", "status"),
        replies={"200": reply("A page of them", schema("TaskPage"))},
    )


def _delete() -> Json:
    return operation(
        "deleteTask",
        "Delete a task and its picture",
        "Whoever waits for it is told (410).",
        tag=_TASKS,
        takes=parameters("task_id"),
        replies={"204": reply("It is gone")},
        refused=[TaskNotFound],
        changes=True,
    )


def _image() -> Json:
    picture = reply("The picture", headers=["ETag", "Content-Disposition", "Cross-Origin-Resource-Policy"])
    picture["content"] = {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA_TYPES}
    return operation(
        "getImage",
        "Get the picture of a completed task",
        "PNG, JPEG or WebP, whichever the generator has made: the content tells, and the media type says so.",
        tag=_TASKS,
        takes=parameters("task_id", "If-None-Match-image"),
        replies={
            "200": picture,
            "304": reply("You have it already", headers=["ETag", "Cross-Origin-Resource-Policy"]),
        },
        refused=[TaskNotFound],
    )
