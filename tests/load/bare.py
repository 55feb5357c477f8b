"""The least that aiohttp can do: a handler that waits and answers. `python -m tests.load.bare PORT [--tame]`.

No login, no database, no log. What our server costs beyond this is the price of all it does; what this costs is
aiohttp's. `--tame`: with our collector settings, and a Future on a shared timer instead of a timer for each request.

GET /poll?task=T&version=V    held until the version of T isn't V, or 30 s have passed
POST /wake?task=T             raises it; without a task, those of all tasks
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections import defaultdict

from aiohttp import web

from server.runtime.garbage import tune_gc

HOLD_SECONDS = 30.0
# As long as a reply of ours.
BODY = (
    '{"data":{"taskId":"%s","type":"basic","status":"processing","version":%d,"result":null,"error":null,"progress":null,'
    '"stage":null,"message":"change","queuePosition":null,"etaSeconds":null,"attempt":0,"cancelRequested":false,'
    '"createdAt":"2026-01-01T00:00:00.000000Z","startedAt":"2026-01-01T00:00:00.000000Z","updatedAt":'
    '"2026-01-01T00:00:00.000000Z","finishedAt":null},"poll":{"reason":"%s","changed":true,"waitedMs":0,"next":"again",'
    '"retryAfterMs":0}}'
)


class Bare:
    """Tasks that are nothing but a version and an Event."""

    def __init__(self, *, tame: bool) -> None:
        self._versions: defaultdict[str, int] = defaultdict(lambda: 1)
        self._events: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._tame = tame
        self._connection_slots: dict[int, set[asyncio.Future[None]]] = {}
        self._waiting: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)

    async def poll(self, request: web.Request) -> web.Response:
        task, seen = request.query["task"], int(request.query["version"])
        if self._versions[task] == seen:
            await (self._hold_on_wheel(task) if self._tame else self._hold(task))
        reason = "timeout" if self._versions[task] == seen else "change"
        body = BODY % (task, self._versions[task], reason)
        return web.Response(body=body.encode(), content_type="application/json")

    async def wake(self, request: web.Request) -> web.Response:
        tasks = [request.query["task"]] if "task" in request.query else list(self._versions)
        for task in tasks:
            self._versions[task] += 1
            self._events.pop(task, asyncio.Event()).set()
            for future in self._waiting.pop(task, ()):
                if not future.done():
                    future.set_result(None)
        return web.json_response({"tasks": len(tasks)})

    async def _hold(self, task: str) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._events[task].wait(), HOLD_SECONDS)

    async def _hold_on_wheel(self, task: str) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        waiting = self._waiting[task]
        waiting.add(future)
        slot = self._slot(int(loop.time() + HOLD_SECONDS))
        slot.add(future)
        try:
            await future
        finally:
            slot.discard(future)
            waiting.discard(future)

    def _slot(self, second: int) -> set[asyncio.Future[None]]:
        if second not in self._connection_slots:
            self._connection_slots[second] = set()
            asyncio.get_running_loop().call_at(second, self._expire, second)
        return self._connection_slots[second]

    def _expire(self, second: int) -> None:
        for future in self._connection_slots.pop(second):
            if not future.done():
                future.set_result(None)


async def serve(port: int, *, tame: bool) -> None:
    bare, app = Bare(tame=tame), web.Application()
    app.router.add_get("/poll", bare.poll)
    app.router.add_post("/wake", bare.wake)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    if tame:
        tune_gc()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--tame", action="store_true")
    options = parser.parse_args()
    asyncio.run(serve(options.port, tame=options.tame))


if __name__ == "__main__":
    main()
