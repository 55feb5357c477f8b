"""What every request passes: a number and a log line, errors turned into replies, who may change things, how often."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from server.errors import (
    BoardStopped,
    CrossOrigin,
    DatabaseUnavailable,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    PicturesUnavailable,
    Problem,
    ScopeTooNarrow,
    StorageError,
    Unavailable,
)
from server.protocol.heads import REQUEST_ID, complete
from server.protocol.parking import CONNECTION, PARKED
from server.protocol.whole_reply import WholeReply
from server.telemetry import logs
from server.telemetry.metrics import Metrics
from server.telemetry.requests import CLIENT_CLOSED_REQUEST, RequestLog, RequestRecord
from server.web.hosts import Hosts
from server.web.identity import find_user
from server.web.keys import RECORD, USER, WAITERS
from server.web.proxy_headers import ProxyHeaders
from server.web.rate_limits import RateLimits
from server.web.replies import problem_reply, wants_page

_RULES: Final = {
    "/api/auth/login": "login",
    "/api/auth/register": "register",
    "/api/generate": "create",
    "/api/generate_advanced": "create",
    "/api/generate/tasks/{task_id}/again": "create",
}
_STATIC_ROUTES: Final = frozenset({"/static/{filename}", "/static/{folder}/{filename}"})
_STRICT_TRANSPORT: Final = f"max-age={365 * 86_400}"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:=+/@-]{1,128}")


def observe(
    request_log: RequestLog, proxy_headers: ProxyHeaders, *, secure: bool
) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Return the outermost middleware: gives a request its id, its reply, its log line and its place in the metrics.

    `secure`: browsers reach this site by https, and are told to do so ever after.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        record = request[RECORD] = RequestRecord()
        if proxy_headers.is_proxied(request) and _REQUEST_ID.fullmatch(given := request.headers.get(REQUEST_ID, "")):
            record.request_id = given
        status = CLIENT_CLOSED_REQUEST
        response: web.StreamResponse | None = None
        try:
            try:
                response = await handler(request)
                await _prepare(request, response, secure=secure)
            except Exception as error:  # noqa: BLE001 - whatever it was, the client is answered
                if CONNECTION in request:
                    request[CONNECTION].withdraw()  # to be parked, had not somebody between us and the handler failed
                status = Problem.status  # unless that answer can be made
                response = await _reply_to(error, request, request_log.metrics)
                await _prepare(request, response, secure=secure)
            status = response.status
        except asyncio.CancelledError:
            if CONNECTION in request:
                request[CONNECTION].abandon()  # parked, but somebody between us and the handler had to wait
            raise
        finally:
            if response is not PARKED:
                seconds = time.perf_counter() - record.started
                request_log.request_finished(record, request.method, _route(request), request.path, status, seconds)
        return response

    return middleware


async def _prepare(request: web.Request, response: web.StreamResponse, *, secure: bool) -> None:
    """Complete the reply and have aiohttp make its head, here where a head that can't be made is one more error."""
    if response is PARKED:
        return  # its connection will do the rest when it is answered
    if request.content.exception() is not None:
        response.force_close()  # what follows in a broken body can't be told from a next request
    if request.app[WAITERS].draining:
        response.force_close()  # who has no idle connection to a process that stops can't ask just as it closes
    if not isinstance(response, WholeReply):
        shared = _route(request) in _STATIC_ROUTES and response.status < 400
        complete(response, request[RECORD].request_id, shared=shared)
        # Not for a developer's own machine: it would hold for everything else there, whatever its port. Polls go without:
        # the page that sends them has been told.
        if secure and not request.host.partition(":")[0].endswith("localhost"):
            response.headers.setdefault("Strict-Transport-Security", _STRICT_TRANSPORT)
    if isinstance(response, web.Response | WholeReply):  # the others, files, are sent as they are prepared
        await response.prepare(request)


async def _reply_to(error: Exception, request: web.Request, metrics: Metrics) -> web.StreamResponse:
    """Return what the client is told of an error. Here is the last border: no trace of it passes, but into the log."""
    if isinstance(error, Problem):
        return await _refuse(request, error)
    if isinstance(error, web.HTTPException):
        if error.status < 400:
            return error
        response = await _refuse(request, _as_problem(error))
        if isinstance(error, web.HTTPMethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return response
    if isinstance(error, DatabaseUnavailable | PicturesUnavailable):
        logs.log.warning(logs.REQUEST_CRASHED, request_id=request[RECORD].request_id, error=str(error))
        wait = random.uniform(1, 4)  # spread out, or everybody comes back at once
        return await _refuse(request, Unavailable(error.told, retry_after=wait))
    if isinstance(error, BoardStopped):
        return await _refuse(request, Unavailable("A part of this process is being restarted.", retry_after=1))
    metrics.crashes.inc()
    logs.log.error(logs.REQUEST_CRASHED, request_id=request[RECORD].request_id, path=request.path, exc_info=error)
    return await _refuse(request, Problem())


async def _refuse(request: web.Request, problem: Problem) -> web.Response:
    if wants_page(request) and request.get(USER) is None:
        # Not every handler asks who it is; the page shows it. Without a database, or a session: a stranger.
        with contextlib.suppress(StorageError, RuntimeError, ScopeTooNarrow):
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


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"


def guard(hosts: Hosts, proxy_headers: ProxyHeaders, rates: RateLimits) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Return the middleware that refuses what is meant for other sites or comes from their pages, and those who ask too often.

    It isn't a coroutine of its own: a held poll would keep one more frame for it.
    """

    @web.middleware
    def middleware(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
        hosts.check(request)
        if not proxy_headers.is_same_origin(request):
            raise CrossOrigin(proxy_headers.explain_refusal(request))
        rule = _RULES.get(_route(request)) if request.method == "POST" else None
        return handler(request) if rule is None else limited(rule, request, handler)

    async def limited(rule: str, request: web.Request, handler: Handler) -> web.StreamResponse:
        await rates.check(rule, proxy_headers.network(request))
        return await handler(request)

    return middleware
