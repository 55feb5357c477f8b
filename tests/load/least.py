"""The least that Python can do: a protocol that writes bytes made once. `python -m tests.load.least PORT [--loop uvloop]`.

It reads nothing of a request but task and version, and checks nothing: no login, no limits, no log, no deadline. What our
server costs beyond this is the price of everything that it does besides holding and writing; what this costs is the
event loop's, the socket's and the kernel's. It is asked as `tests/load/bare.py` is.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from collections import defaultdict
from typing import cast

from server.protocol import heads
from server.runtime import event_loop
from server.runtime.garbage import tune_gc
from tests.load.bare import BODY

_POLL = re.compile(rb"GET /poll\?task=([^&]+)&version=([0-9]+) ")
_WAKE = re.compile(rb"POST /wake\?task=([^ ]+) ")


class Least:
    """Tasks that are nothing but a version and those who wait."""

    def __init__(self) -> None:
        self.versions: defaultdict[str, int] = defaultdict(lambda: 1)
        self.waiting: defaultdict[str, set[asyncio.Transport]] = defaultdict(set)

    def wake(self, task: str) -> None:
        self.versions[task] += 1
        reply = self.reply(task)
        for transport in self.waiting.pop(task, ()):
            transport.write(reply)

    def reply(self, task: str) -> bytes:
        """Return a reply as long as ours."""
        version = self.versions[task]
        head = f'ETag: "{task}.{version}"\r\nX-Task-Version: {version}\r\nContent-Type: application/json\r\n'
        body = (BODY % (task, version, "change")).encode()
        return heads.reply_bytes(
            200, head.encode(), body, request_id="0" * 16, end_of_head=heads.end_of_head(close=False)
        )


class Client(asyncio.Protocol):
    """A connection."""

    __slots__ = ("_least", "_task", "_transport")

    def __init__(self, least: Least) -> None:
        self._least = least
        self._task = ""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        least, found = self._least, _POLL.match(data)
        if found is not None:
            self._task = found[1].decode()
            if least.versions[self._task] == int(found[2]):
                least.waiting[self._task].add(self._transport)
            else:
                self._transport.write(least.reply(self._task))
        elif (wake := _WAKE.match(data)) is not None:
            least.wake(wake[1].decode())
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def connection_lost(self, _error: Exception | None) -> None:
        self._least.waiting[self._task].discard(self._transport)


async def serve(port: int) -> None:
    least = Least()
    await asyncio.get_running_loop().create_server(lambda: Client(least), "127.0.0.1", port, backlog=4096)
    tune_gc()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--loop", choices=["auto", "asyncio", "uvloop"], default=event_loop.ASYNCIO)
    options = parser.parse_args()
    event_loop.run(lambda: serve(options.port), options.loop)


if __name__ == "__main__":
    main()
