"""aiohttp's connection, so that what it answers by itself looks like every other reply of this server.

Two kinds of request never reach a middleware: what isn't HTTP, and what expects something that can't be had.
"""

from __future__ import annotations

from aiohttp import web

from server.errors import BadRequest, ExpectationFailed, Problem
from server.keys import PARKING, TRACE
from server.middlewares import complete
from server.observing import Trace
from server.poll_handler import PollHandler, PollServer
from server.poll_replies import compose_problem, headers_of

_EXPECTED = "This server knows no expectation but 100-continue."


class Runner(web.AppRunner):
    """An application runner whose connections are ours."""

    __slots__ = ()

    async def _make_server(self) -> PollServer:
        return PollServer(await super()._make_server(), self.app[PARKING].connect, Handler)


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
        super().handle_error(request, status, exc, message)  # raises if a reply has begun
        problem = Problem()
        if status < 500:
            problem = BadRequest("The request isn't HTTP as this server understands it.")
        elif not request.headers.get("Expect", "").isascii():
            # aiohttp fails to say in UTF-8 what was expected (web_urldispatcher.py, `_default_expect_handler`).
            problem = ExpectationFailed(_EXPECTED)
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
        try:
            return await super().finish_response(request, resp, start_time)
        except Exception as error:  # noqa: BLE001 - the last border: what a middleware has prepared may still fail to be sent
            response = self.handle_error(request, 500, error)  # raises if a reply has begun: the connection is closed
            return await super().finish_response(request, response, start_time)


def _reply(request: web.BaseRequest, problem: Problem) -> web.Response:
    trace = request[TRACE] = Trace()
    status, head, body = compose_problem(problem, trace.request_id)
    response = web.Response(body=body, status=status, headers=headers_of(head))
    complete(response, trace.request_id)
    return response
