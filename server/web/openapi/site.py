"""What people look at, and what operators and load balancers ask."""

from __future__ import annotations

from collections.abc import Sequence

from server.errors import (
    IdempotencyMismatch,
    ImageRejected,
    MetricsRefused,
    NotFound,
    PayloadTooLarge,
    Problem,
    SessionRequired,
    TaskNotFound,
    TooManyTokens,
    UnsupportedMedia,
    WrongPassword,
)
from server.protocol.replies import JSON
from server.telemetry.metrics import CONTENT_TYPE
from server.web.handlers.parameters import FORM
from server.web.openapi.parts import Json, body, operation, page, parameters, redirect, reply, schema

_PAGES = "Pages"
_OPERATION = "Operation"


def paths() -> Json:
    """Describe them by URL and method."""
    return {
        "/": {"get": _page("createPage", "Create pictures and watch them"), "post": _sent_form()},
        "/tasks": {"get": _page("historyPage", "Your pictures", takes=parameters("limit", "cursor", "status"))},
        "/tasks/{task_id}": {
            "get": _page("taskPage", "One picture", takes=parameters("task_id"), refused=[TaskNotFound])
        },
        "/login": {"get": _account_page("loginPage", "The form to log in")},
        "/register": {"get": _account_page("registerPage", "The form to sign up")},
        "/account": {"get": _account(), "post": _act_on_account()},
        "/ops": {"get": _page("figuresPage", "The figures of this process")},
        "/docs": {"get": _page("docsPage", "This description, to read", public=True)},
        "/static/{filename}": {"get": _static_file()},
        "/static/{folder}/{filename}": {"get": _static_module()},
        "/ops/figures": {"get": _figures()},
        "/healthz": {"get": _health()},
        "/readyz": {"get": _readiness()},
        "/metrics": {"get": _metrics()},
        "/openapi.json": {"get": _description()},
    }


def _page(
    name: str,
    summary: str,
    *,
    takes: Sequence[Json] = (),
    refused: Sequence[type[Problem]] = (),
    public: bool = False,
) -> Json:
    elsewhere = {} if public else {"303": redirect("For a browser that isn't logged in: to the login")}
    return operation(
        name,
        summary,
        tag=_PAGES,
        takes=takes,
        replies={"200": page("The page"), **elsewhere},
        refused=refused,
        public=public,
        html=True,
    )


def _sent_form() -> Json:
    return operation(
        "sendForm",
        "Create a picture without JavaScript",
        "What the form of the page sends by itself. If it is refused, the page comes back with what was typed. Programs"
        " use `/api/generate`.",
        tag=_PAGES,
        body=body({"multipart/form-data": schema("PageForm")}, "The form."),
        replies={"303": redirect("On to the page of the new task")},
        refused=[PayloadTooLarge, UnsupportedMedia, IdempotencyMismatch, ImageRejected],
        changes=True,
        counted=True,
        html=True,
    )


def _account_page(name: str, summary: str) -> Json:
    return operation(
        name,
        summary,
        tag=_PAGES,
        takes=parameters("next"),
        replies={"200": page("The form"), "303": redirect("Logged in already: on to `next`")},
        public=True,
        html=True,
    )


def _account() -> Json:
    made = _page("accountPage", "Your account", takes=parameters("limit", "cursor", "done"), refused=[SessionRequired])
    made["description"] = (
        "Where you are logged in, your tokens, and the forms for all that the API offers about the account."
    )
    return made


def _act_on_account() -> Json:
    return operation(
        "actOnAccount",
        "What the forms of that page send",
        "For browsers; programs use the addresses below `/api/auth/`.",
        tag=_PAGES,
        body=body({FORM: schema("AccountForm"), JSON: schema("AccountForm")}, "What is to be done."),
        replies={
            "200": page("A token was made: the page that shows it"),
            "303": redirect("Done: back to the page, or to the login", headers=["Set-Cookie"]),
        },
        refused=[NotFound, TooManyTokens, PayloadTooLarge, UnsupportedMedia, WrongPassword, SessionRequired],
        changes=True,
        counted=True,
        html=True,
    )


def _static_file() -> Json:
    return _static(
        "getStatic",
        "A file that the pages need",
        "`longpoll.js` is the client for one task, which other pages may use too: it imports what is in `longpoll`.",
        "filename",
    )


def _static_module() -> Json:
    return _static(
        "getStaticModule",
        "A module that the pages need",
        "The folders are `longpoll` (the client), `pages` (one module for each page) and `parts` (of pages).",
        "folder",
        "filename",
    )


def _static(name: str, summary: str, description: str, *path: str) -> Json:
    return operation(
        name,
        summary,
        description,
        tag=_PAGES,
        takes=parameters(*path),
        replies={
            "200": reply("The file", {"type": "string", "format": "binary"}, media="*/*", headers=["ETag"]),
            "206": reply("A part of it", {"type": "string", "format": "binary"}, media="*/*", headers=["ETag"]),
            "304": reply("You have it already", headers=["ETag"]),
            "412": reply("It isn't what `If-Match` or `If-Unmodified-Since` names"),
            "416": reply("It has no such part"),
        },
        refused=[NotFound],
        public=True,
        html=True,
    )


def _figures() -> Json:
    return operation(
        "getFigures",
        "The figures of this process",
        "Sums over everybody, nothing of anybody's own. For people who are logged in, as `/ops` is; programs read"
        " `/metrics`, which says more.",
        tag=_OPERATION,
        replies={
            "200": reply("The figures", schema("Figures")),
            "303": redirect("For a browser that isn't logged in: to the login"),
        },
        html=True,
    )


def _health() -> Json:
    made = operation(
        "getHealth",
        "Is it alive?",
        "A part that has died is started again after a pause. If this is still 503 then, the process is to be restarted.",
        tag=_OPERATION,
        replies={"200": reply("This process runs, its loop turns, and nothing has died", schema("Health"))},
        public=True,
        html=True,
    )
    return _also_replies(made, "503", reply("A part that it needs has died, and isn't back yet", schema("Health")))


def _also_replies(made: Json, status: str, described: Json) -> Json:
    """Describe a reply to an error that isn't a problem document."""
    responses = made["responses"]
    assert isinstance(responses, dict)
    responses[status] = described
    return made


def _readiness() -> Json:
    made = operation(
        "getReadiness",
        "Is it ready?",
        "Ready: notifications are proven to arrive, so Postgres can be reached; pictures can be stored; nothing has died; it doesn't stop.",
        tag=_OPERATION,
        replies={"200": reply("It is", schema("Readiness"))},
        public=True,
        html=True,
    )
    return _also_replies(made, "503", reply("It isn't", schema("Readiness"), headers=["Retry-After"]))


def _metrics() -> Json:
    return operation(
        "getMetrics",
        "All metrics",
        "In the text format of Prometheus. Nothing of anybody's tasks is in them; still they are the operator's, and not"
        " given to those who come through a proxy unless `server.metrics_through_proxy` is set.",
        tag=_OPERATION,
        replies={"200": reply("The metrics", {"type": "string"}, media=CONTENT_TYPE.partition(";")[0])},
        refused=[MetricsRefused],
        public=True,
        html=True,
    )


def _description() -> Json:
    return operation(
        "getDescription",
        "This description",
        tag=_OPERATION,
        replies={"200": reply("OpenAPI 3.1", {"type": "object"})},
        public=True,
        html=True,
    )
