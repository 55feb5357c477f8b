"""aiohttp's connection, so that what it answers by itself looks like every other reply of this server.

Two kinds of request never reach a middleware: what isn't HTTP, and what expects something that can't be had.
"""

from __future__ import annotations

from typing import Final, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from server.errors import BadRequest, ExpectationFailed, HeadersTooLarge, Problem, UriTooLong
from server.keys import CONFIG, PARKING, TRACE
from server.middlewares import complete
from server.observing import Trace
from server.poll_handler import MOST_HEADER_BYTES, MOST_LINE_BYTES, PollHandler, PollServer
from server.poll_replies import compose_problem, headers_of
from server.replies import is_for_people, standalone_page

_TOO_MANY: Final = "Too many headers received"  # aiohttp, _http_parser.pyx
_TOO_LONG: Final = web.ResponseKey("too long", Problem)
_EXPECTED: Final = "This server knows no expectation but 100-continue."


class Runner(web.AppRunner):
    """An application runner whose connections are ours."""

    __slots__ = ()

    async def _make_server(self) -> Server:
        return Server(await super()._make_server(), self.app)


class Server(PollServer):
    """aiohttp's server with our connections, which knows its application."""

    def __init__(self, made: web.Server, app: web.Application) -> None:
        """Serve this application."""
        super().__init__(made, app[PARKING].connect, Handler, head_seconds=app[CONFIG].server.receive_seconds)
        self.app = app


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
        response = _reply(request, problem)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the reply. Only a refused expectation has seen no middleware (web_app.py, `Application._handle`)."""
        if isinstance(resp, web.HTTPExpectationFailed):
            self.logger.warning("Unknown expectation")
            resp = _reply(request, ExpectationFailed(_EXPECTED))
        problem = resp.get(_TOO_LONG)
        if problem is not None and self._is_asked_by_a_person:
            resp = await self._page(request, problem)
        try:
            return await super().finish_response(request, resp, start_time)
        except Exception as error:  # noqa: BLE001 - the last border: what a middleware has prepared may still fail to be sent
            response = self.handle_error(request, 500, error)  # raises if a reply has begun: the connection is closed
            return await super().finish_response(request, response, start_time)

    @property
    def _is_asked_by_a_person(self) -> bool:
        """Whether a browser shows the reply to a head that wasn't read: browsers say so early on."""
        line, _, fields = self.head.partition(b"\r\n")
        path = line.partition(b" ")[2].decode(errors="replace")
        return is_for_people(path, fields.decode(errors="replace"))

    async def _page(self, request: web.BaseRequest, problem: Problem) -> web.Response:
        response = await standalone_page(cast(Server, self.server).app, problem, request[TRACE].request_id)
        complete(response, request[TRACE].request_id)
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


def _reply(request: web.BaseRequest, problem: Problem) -> web.Response:
    trace = request[TRACE] = Trace()
    status, head, body = compose_problem(problem, trace.request_id)
    response = web.Response(body=body, status=status, headers=headers_of(head))
    if isinstance(problem, HeadersTooLarge | UriTooLong):
        response[_TOO_LONG] = problem
    complete(response, trace.request_id)
    return response
