"""What every request passes: a number and a log line, errors turned into replies, who may change things, how often."""

from __future__ import annotations

import contextlib
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from server import config, logs
from server.clients import Clients
from server.errors import (
    CrossOrigin,
    DatabaseUnavailable,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    Problem,
    StorageError,
    Unavailable,
)
from server.identity import find_user
from server.keys import TRACE, Trace
from server.metrics import Metrics
from server.rates import Rates
from server.replies import problem_reply, wants_page

_POLL_ROUTES: Final = frozenset({"/api/generate/status", "/api/generate/status/batch"})
_RULES: Final = {
    "/api/auth/login": "login",
    "/api/auth/register": "register",
    "/api/generate": "create",
    "/api/generate_advanced": "create",
}
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_STATIC_ROUTE: Final = "/static/{filename}"
_QUIET_ROUTES: Final = frozenset({"/healthz", "/readyz", "/metrics", _STATIC_ROUTE})

_SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
}


def observe(metrics: Metrics, logging: config.Logging) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Return the outermost middleware: gives a request its id, its reply, its log line and its place in the metrics."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        trace = request[TRACE] = Trace(secrets.token_hex(8))
        started = time.perf_counter()
        status = 499  # the client has gone, and nobody reads the reply
        try:
            response = await _reply(request, handler, metrics)
            status = response.status
        finally:
            seconds = time.perf_counter() - started
            _measure(request, trace, status, seconds, metrics)
            _log(request, trace, status, seconds, logging)
        if request.content.exception() is not None:
            response.force_close()  # what follows in a broken body can't be told from a next request
        if not response.prepared:
            complete(response, trace.request_id, shared=_route(request) == _STATIC_ROUTE and response.status < 400)
        return response

    return middleware


async def _reply(request: web.Request, handler: Handler, metrics: Metrics) -> web.StreamResponse:
    try:
        return await handler(request)
    except Problem as problem:
        return await _refuse(request, problem)
    except web.HTTPException as error:
        if error.status < 400:
            return error
        response = await _refuse(request, _as_problem(error))
        if isinstance(error, web.HTTPMethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return response
    except DatabaseUnavailable as error:
        logs.log.warning(logs.REQUEST_CRASHED, request_id=request[TRACE].request_id, error=str(error))
        wait = random.uniform(1, 4)  # spread out, or everybody comes back at once
        return await _refuse(request, Unavailable("The database can't be reached just now.", retry_after=wait))
    except Exception as error:  # noqa: BLE001 - the last border: logged with its trace, which no client sees
        metrics.crashes.inc()
        logs.log.error(logs.REQUEST_CRASHED, request_id=request[TRACE].request_id, path=request.path, exc_info=error)
        return await _refuse(request, Problem())


async def _refuse(request: web.Request, problem: Problem) -> web.Response:
    if wants_page(request) and request[TRACE].user is None:
        # Not every handler asks who it is; the page shows it. Without a database, or a session: a stranger.
        with contextlib.suppress(StorageError, RuntimeError):
            await find_user(request)
    return await problem_reply(request, problem)


def _as_problem(error: web.HTTPException) -> Problem:
    if isinstance(error, web.HTTPNotFound):
        return NotFound()
    if isinstance(error, web.HTTPMethodNotAllowed):
        return MethodNotAllowed(f"Allowed here: {', '.join(sorted(error.allowed_methods))}.")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return PayloadTooLarge()
    problem = Problem(error.reason)
    problem.status, problem.code, problem.title = error.status, "http_error", error.reason
    return problem


def complete(response: web.StreamResponse, request_id: str, *, shared: bool = False) -> None:
    """Add the headers that every reply has. `shared`: it holds nothing that is anybody's own."""
    headers = response.headers
    headers["X-Request-Id"] = request_id
    for name, value in _SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    # The same files for everybody, asked for with their ETag: kept, but never taken for new without asking.
    headers.setdefault("Cache-Control", "no-cache" if shared else "private, no-store")


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"


def _measure(request: web.Request, trace: Trace, status: int, seconds: float, metrics: Metrics) -> None:
    route = _route(request)
    method = request.method if request.method in _METHODS else "other"  # strangers must not invent time series
    metrics.requests.labels(route, method, status).inc()
    metrics.request_seconds.labels(route).observe(seconds - trace.held_seconds)


def _log(request: web.Request, trace: Trace, status: int, seconds: float, logging: config.Logging) -> None:
    route = _route(request)
    if route in _QUIET_ROUTES and status < 400:
        return
    if trace.outcome == "timeout" and random.random() >= logging.timeout_sample:
        return
    logs.log.info(
        logs.POLL_FINISHED if route in _POLL_ROUTES else logs.REQUEST_FINISHED,
        request_id=trace.request_id,
        method=request.method,
        path=request.path,
        status=status,
        user_id=trace.user.user_id if trace.user else None,
        task_id=trace.task_id,
        outcome=trace.outcome,
        held_ms=round(trace.held_seconds * 1000, 1),
        took_ms=round((seconds - trace.held_seconds) * 1000, 1),
    )


def guard(clients: Clients, rates: Rates) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Return the middleware that refuses other sites' pages, and those who ask too often."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not clients.is_same_origin(request):
            raise CrossOrigin("Requests that change something are taken from this site's own pages only.")
        rule = _RULES.get(request.path) if request.method == "POST" else None
        if rule is not None:
            await rates.check(rule, clients.address(request))
        return await handler(request)

    return middleware
