"""aiohttp's connection, so that what it answers by itself looks like every other reply of this server.

Two kinds of request never reach a middleware: what isn't HTTP, and what expects something that can't be had.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, cast

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from server.errors import BadRequest, ExpectationFailed, HeadersTooLarge, Problem, UriTooLong
from server.protocol.aiohttp_handler import MOST_HEADER_BYTES, MOST_LINE_BYTES, PollHandler, PollServer, missing_names
from server.protocol.heads import complete
from server.protocol.parking import Parking
from server.protocol.replies import compose_problem, headers_of
from server.telemetry import logs
from server.telemetry.metrics import Metrics
from server.telemetry.requests import RequestRecord

_TOO_MANY: Final = "Too many headers received"  # aiohttp, _http_parser.pyx
_TOO_LONG: Final = web.ResponseKey("too long", tuple[Problem, str])  # with the id of the request
_EXPECTED: Final = "This server knows no expectation but 100-continue."


ErrorPage: TypeAlias = Callable[[str, str, Problem, str], Awaitable[web.Response | None]]
"""Takes path, header lines, problem and request id of what couldn't be read; returns a page if a person looks at it."""


class Runner(web.AppRunner):
    """An application runner whose connections are ours."""

    __slots__ = ("_error_page", "_head_seconds", "_parking")

    def __init__(
        self, app: web.Application, parking: Parking, error_page: ErrorPage, *, head_seconds: float, **options: Any
    ) -> None:
        """Run this application. `head_seconds`: how long the head of a request may take; `options`: aiohttp's own."""
        super().__init__(app, **options)
        self._parking = parking
        self._error_page = error_page
        self._head_seconds = head_seconds

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        missing = missing_names(made)
        if missing:
            logs.log.warning(logs.PARKING_UNAVAILABLE, aiohttp=aiohttp.__version__, missing=missing)
            return made
        return Server(made, self._parking, self._error_page, self._head_seconds)


class Server(PollServer):
    """aiohttp's server with our connections."""

    def __init__(self, made: web.Server, parking: Parking, error_page: ErrorPage, head_seconds: float) -> None:
        """Be what aiohttp has made for its application."""
        super().__init__(made, parking.connect, Handler, head_seconds=head_seconds)
        self.error_page = error_page


class Handler(PollHandler):
    """What handles requests of a connection. aiohttp logs what it refuses to its logger, which counts it; the reply is ours."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what can't be read, or what failed outside of every middleware; the connection ends with it."""
        if status >= 500 and not request.headers.get("Expect", "").isascii():
            # aiohttp fails to say in UTF-8 what was expected (web_urldispatcher.py, `_default_expect_handler`).
            self.logger.warning("Unknown expectation")
            problem: Problem = ExpectationFailed(_EXPECTED)
        else:
            super().handle_error(request, status, exc, message)  # raises if a reply has begun
            problem = Problem() if status >= 500 else _problem_of(exc)
        response = _reply(problem)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the reply. Only a refused expectation has seen no middleware (web_app.py, `Application._handle`)."""
        if isinstance(resp, web.HTTPExpectationFailed):
            self.logger.warning("Unknown expectation")
            resp = _reply(ExpectationFailed(_EXPECTED))
        if _TOO_LONG in resp:
            resp = await self._page(*resp[_TOO_LONG]) or resp
        try:
            return await super().finish_response(request, resp, start_time)
        except Exception as error:  # noqa: BLE001 - the last border: what a middleware has prepared may still fail to be sent
            response = self.handle_error(request, 500, error)  # raises if a reply has begun: the connection is closed
            return await super().finish_response(request, response, start_time)

    async def _page(self, problem: Problem, request_id: str) -> web.Response | None:
        """Return a page if a browser shows the reply to this head, which wasn't read: browsers say so early on."""
        line, _, fields = self.head.partition(b"\r\n")
        path = line.partition(b" ")[2].decode(errors="replace")
        error_page = cast("Server", self.server).error_page
        response = await error_page(path, fields.decode(errors="replace"), problem, request_id)
        if response is not None:
            complete(response, request_id)
            response.force_close()
        return response


def _problem_of(error: BaseException | None) -> Problem:
    if isinstance(error, LineTooLong) and error.args[1] == MOST_LINE_BYTES:
        return UriTooLong(f"The address may have at most {MOST_LINE_BYTES} bytes.")
    if isinstance(error, LineTooLong) or (isinstance(error, HttpProcessingError) and error.message == _TOO_MANY):
        return HeadersTooLarge(
            f"The cookies and other headers of a request may have {MOST_HEADER_BYTES // 1024} KB together. In a browser:"
            " delete the cookies of this site, among which are those of everything else on the same host, and log in again."
        )
    return BadRequest("The request isn't HTTP as this server understands it.")


def _reply(problem: Problem) -> web.Response:
    request_id = RequestRecord().request_id
    status, head, body = compose_problem(problem, request_id)
    response = web.Response(body=body, status=status, headers=headers_of(head))
    if isinstance(problem, HeadersTooLarge | UriTooLong):
        response[_TOO_LONG] = problem, request_id
    complete(response, request_id)
    return response


def server_logger(metrics: Metrics) -> logging.Logger:
    """Return the logger for aiohttp's protocol, which tells malformed requests from our own failures."""
    # aiohttp thinks an unknown method worth no more than a debug message (web_protocol.py, `handle_error`).
    logger = logging.Logger("aiohttp.server", logging.DEBUG)  # noqa: LOG001 - one of its own for each application
    logger.addHandler(
        logs.ProtocolComplaints(
            (HttpProcessingError, web.RequestPayloadError),
            count_malformed=metrics.malformed_requests.inc,
            count_crash=metrics.crashes.inc,
        )
    )
    return logger
