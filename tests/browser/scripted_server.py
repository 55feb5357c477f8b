"""A server whose every reply is decided by the test: it sees each request and answers when it likes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

HERE = Path(__file__).parent
STATIC = HERE.parents[1] / "server" / "static"
PAGE = '<!doctype html><link rel="icon" href="data:,"><script type="module" src="/harness.js"></script>'
PATIENCE_SECONDS = 10
HALF_A_REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"


def describe(
    version: int, *, task: str = "task-1", status: str = "processing", place: int | None = None, **poll: object
) -> dict[str, object]:
    """Make a status reply as the contract has it."""
    told = {"reason": "change", "changed": True, "waitedMs": 0, "next": "again", "retryAfterMs": 0}
    return {"data": {"taskId": task, "status": status, "version": version, "queuePosition": place}, "poll": told | poll}


class Ask:
    """One status request, waiting for the test's answer."""

    def __init__(self, request: web.Request) -> None:
        self.query = request.query
        self.gone = asyncio.Event()
        self._request = request
        self._answer: asyncio.Future[web.Response] = asyncio.get_running_loop().create_future()

    @property
    def instant(self) -> bool:
        """Whether the client wants the state as it is, without a hold."""
        return self.query.get("wait") == "0"

    @property
    def version(self) -> str | None:
        """The version the client has seen."""
        return self.query.get("version")

    def tell(self, version: int, *, status: str = "processing", **poll: object) -> None:
        """Answer with a state of the task that was asked for."""
        body = describe(version, task=self.query["taskId"], status=status, **poll)
        self._answer.set_result(web.json_response(body))

    @property
    def tasks(self) -> dict[str, int]:
        """The tasks of a batch request, and the version the client has seen of each."""
        named = (task.rpartition(":") for task in self.query.getall("task"))
        return {task_id: int(version) for task_id, _, version in named}

    def tell_of(
        self,
        versions: Mapping[str, int],
        *,
        status: str = "processing",
        place: int | None = None,
        gone: Sequence[str] = (),
        **poll: object,
    ) -> None:
        """Answer a batch request with the states of these tasks, and the ids of those that are no more."""
        items = [describe(version, task=task, status=status, place=place)["data"] for task, version in versions.items()]
        told = describe(0, **poll)["poll"]
        self._answer.set_result(web.json_response({"items": items, "unchanged": [], "notFound": gone, "poll": told}))

    def refuse(self, status: int, headers: Mapping[str, str] | None = None, **problem: object) -> None:
        """Answer with an error that isn't of this server: a proxy's, a firewall's."""
        self._answer.set_result(web.json_response(problem, status=status, headers=headers))

    def refuse_as_ours(self, status: int, code: str) -> None:
        """Answer with a problem document of this server."""
        problem = {"type": f"urn:longpoll:problem:{code}", "title": "No", "status": status, "code": code, "error": "No"}
        body = json.dumps(problem)
        reply = web.Response(text=body, status=status, content_type="application/problem+json")
        self._answer.set_result(reply)

    def reply(self, **response: Any) -> None:
        """Answer with just this."""
        self._answer.set_result(web.Response(**response))

    def say(self, text: str) -> None:
        """Answer 200 with something that is not of this server: a captive portal's page."""
        self._answer.set_result(web.Response(text=text, content_type="text/html"))

    def break_off(self) -> None:
        """Close the connection in the middle of the reply: before it, Chromium would ask again itself."""
        if self._request.transport is not None:
            self._request.transport.write(HALF_A_REPLY)
            self._request.transport.close()

    async def wait(self) -> web.Response:
        """Hold the request until the test has answered, or the client has gone."""
        try:
            return await self._answer
        except asyncio.CancelledError:
            self.gone.set()
            raise

    async def wait_until_gone(self) -> None:
        """Return when the client has closed the connection."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.gone.wait()


class ScriptedServer:
    """A real aiohttp server on a free port: the client's modules, an empty page, and the status."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[Ask] = asyncio.Queue()
        self.held = 0
        self.most_held = 0
        app = web.Application()
        app.router.add_get("/", self._serve_page)
        app.router.add_get("/harness.js", self._serve_harness)
        app.router.add_get("/api/generate/status", self._hold)
        app.router.add_get("/api/generate/status/batch", self._hold)
        app.router.add_static("/static", STATIC)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        self.url = ""

    async def start(self) -> None:
        """Listen on a free port of this machine."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/"

    async def stop(self) -> None:
        """Close every connection."""
        await self._runner.cleanup()

    async def next_ask(self) -> Ask:
        """Wait for the client's next request."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.arrived.get()

    async def _hold(self, request: web.Request) -> web.Response:
        ask = Ask(request)
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        self.arrived.put_nowait(ask)
        try:
            return await ask.wait()
        finally:
            self.held -= 1

    async def _serve_page(self, _request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def _serve_harness(self, _request: web.Request) -> web.FileResponse:
        return web.FileResponse(HERE / "harness.js")
