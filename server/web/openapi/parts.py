"""The parts that a description is put together from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from server.errors import (
    BadRequest,
    CrossOrigin,
    ExpectationFailed,
    HeadersTooLarge,
    MethodNotAllowed,
    Misdirected,
    NotSignedIn,
    OtherUser,
    Problem,
    ScopeTooNarrow,
    TooManyRequests,
    Unavailable,
    UriTooLong,
    WorkerTokenRefused,
    WorkerTokenRequired,
)
from server.protocol.replies import JSON, PROBLEM_JSON

Json: TypeAlias = dict[str, object]

HTML: Final = "text/html"
COMMON_HEADERS: Final = (
    "X-Request-Id",
    "Cache-Control",
    "Content-Security-Policy",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "Referrer-Policy",
    "Cross-Origin-Opener-Policy",
)
"""What every reply has."""
_WITH_HTTPS: Final = ("Strict-Transport-Security",)


def reference(kind: str, name: str) -> Json:
    """Point to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def schema(name: str) -> Json:
    """Point to a schema."""
    return reference("schemas", name)


def parameters(*names: str) -> list[Json]:
    """Point to parameters."""
    return [reference("parameters", name) for name in names]


def reply(
    description: str, content: Json | None = None, *, media: str = JSON, headers: Sequence[str] = (), html: bool = False
) -> Json:
    """Describe a reply with that schema as its content; `html`: or a page, if a person is looking."""
    made: Json = {
        "description": description,
        "headers": {name: reference("headers", name) for name in (*COMMON_HEADERS, *_WITH_HTTPS, *headers)},
    }
    if content is not None:
        made["content"] = {media: {"schema": content}, **({HTML: {"schema": {"type": "string"}}} if html else {})}
    return made


def page(description: str) -> Json:
    """Describe a reply that is a page for people."""
    return reply(description, {"type": "string"}, media=HTML, headers=["Set-Cookie"])


def redirect(description: str, *, headers: Sequence[str] = ()) -> Json:
    """Describe a reply that sends a browser elsewhere."""
    return reply(description, headers=["Location", *headers])


def refusals(problems: Iterable[type[Problem]], *, html: bool) -> Json:
    """Describe how a request may be refused: a reply for each status, and in it the codes that tell why."""
    by_status: dict[int, list[type[Problem]]] = {}
    for problem in problems:
        by_status.setdefault(problem.status, []).append(problem)
    return {str(status): _refusal(status, reasons, html=html) for status, reasons in sorted(by_status.items())}


def _refusal(status: int, reasons: Sequence[type[Problem]], *, html: bool) -> Json:
    content: Json = {
        "allOf": [schema("Problem")],
        "properties": {"status": {"const": status}, "code": {"enum": [reason.code for reason in reasons]}},
    }
    own = {401: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}.get(status, [])
    described = "; ".join(f"`{reason.code}`: {reason.title}" for reason in reasons)
    return reply(described, content, media=PROBLEM_JSON, headers=own, html=html)


def anything_else(*, html: bool) -> Json:
    """Describe what any request may be refused with."""
    content: Json = {"allOf": [schema("Problem")]}
    described = (
        f"`{MethodNotAllowed.code}` (405), `{UriTooLong.code}` (414), `{ExpectationFailed.code}` (417), `{Misdirected.code}`"
        f" (421: `Host` names another site), `{HeadersTooLarge.code}` (431), or `{Problem.code}` (500): asking again may help"
        " with the last only"
    )
    return reply(described, content, media=PROBLEM_JSON, headers=["Allow"], html=html)


def operation(
    name: str,
    summary: str,
    description: str = "",
    *,
    tag: str,
    replies: Mapping[str, Json],
    refused: Sequence[type[Problem]] = (),
    takes: Sequence[Json] = (),
    body: Json | None = None,
    public: bool = False,
    works: bool = False,
    changes: bool = False,
    counted: bool = False,
    html: bool = False,
) -> Json:
    """Describe one method of one URL.

    `public`: for anybody, and `works`: for workers, not for users; `changes`: pages of other sites may not; `counted`: there is a limit on how often; `html`: errors are pages for people.
    """
    for_users = not public and not works
    refused = [
        BadRequest,
        *refused,
        *([] if public else [NotSignedIn]),
        *([OtherUser, WorkerTokenRefused] if for_users else []),
        *([WorkerTokenRequired] if works else []),
        *([CrossOrigin] if changes else []),
        *([ScopeTooNarrow] if changes and for_users else []),
        *([TooManyRequests] if counted else []),
        Unavailable,
    ]
    made: Json = {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "description": description,
        "responses": {**replies, **refusals(refused, html=html), "default": anything_else(html=html)},
    }
    takes = [*takes, *(parameters("Expected-User") if for_users else [])]
    if takes:
        made["parameters"] = takes
    if body is not None:
        made["requestBody"] = body
    if public:
        made["security"] = []
    if works:
        made["security"] = [{"worker": []}]
    return made


def body(content: Mapping[str, Json], description: str) -> Json:
    """Describe what is sent: a schema for each media type."""
    return {
        "required": True,
        "description": description,
        "content": {media: {"schema": described} for media, described in content.items()},
    }
