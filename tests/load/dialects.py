"""How the load tester speaks to servers that aren't ours: the bare handler and Nchan."""

from __future__ import annotations

import re
import time
from typing import Self

from server.commands.loadtest.control import Control
from server.commands.loadtest.targets import Answer, Reason
from server.commands.loadtest.workloads import Commit, Task
from tests.load.bare import BODY

_VERSION = re.compile(rb'"version":(\d+)')
_SEEN = re.compile(rb"\r\n(Last-Modified|Etag): ([^\r]*)", re.IGNORECASE)


class BareServer:
    """`tests/load/bare.py`."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    def request(self, task_id: str, _secret: str, _client: int) -> tuple[bytes, bytes]:
        host = f"Host: {self.host}:{self.port}\r\n"
        return f"GET /poll?task={task_id}&version=".encode(), f" HTTP/1.1\r\n{host}\r\n".encode()

    def cursor(self, version: int) -> bytes:
        return b"%d" % version

    def read(self, reply: bytes, body: int) -> Answer:
        found = _VERSION.search(reply, body)
        if found is None:
            raise ValueError(reply)
        reason = Reason.CHANGE if reply.find(b'"reason":"change"', body) > 0 else Reason.TIMEOUT
        return Answer(int(found[1]), reason, found[1])


class Nchan:
    """Nchan's long-polling subscriber: what was seen is named by the headers of the last message."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    def request(self, task_id: str, _secret: str, _client: int) -> tuple[bytes, bytes]:
        return f"GET /sub/{task_id} HTTP/1.1\r\nHost: {self.host}\r\n".encode(), b"\r\n"

    def cursor(self, version: int) -> bytes:
        """Name nothing: the channel is empty, so that the first poll is held."""
        assert version == 1, version
        return b""

    def read(self, reply: bytes, body: int) -> Answer:
        if reply[9:12] != b"200":
            return Answer(0, Reason.TIMEOUT, None)
        found = _VERSION.search(reply, body)
        seen = {name.lower(): value for name, value in _SEEN.findall(reply, 0, body)}
        if found is None or len(seen) != 2:
            raise ValueError(reply)
        cursor = b"If-Modified-Since: %b\r\nIf-None-Match: %b\r\n" % (seen[b"last-modified"], seen[b"etag"])
        return Answer(int(found[1]), Reason.CHANGE, cursor)


class PublishedTasks:
    """Tasks of a server that is told of a change by a request: `POST path/NAME` with a body as long as ours.

    It may answer everybody who waits before it answers that request: the clock starts when the request is sent.
    """

    def __init__(self, control: Control, path: str, *, tasks: int = 1, path_of_all: str | None = None) -> None:
        self._control = control
        self._path = path
        self._path_of_all = path_of_all
        self._versions = [1] * tasks
        self.tasks = [Task(f"task{number}", "") for number in range(tasks)]
        self.left = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        return

    def change(self, task: int) -> Commit | None:
        self._versions[task] += 1
        name = self.tasks[task].task_id
        body = BODY % (name, self._versions[task], "change")
        sent = time.monotonic()
        reply = self._control.request("POST", f"{self._path}{name}", body.encode())
        assert reply.status < 300, reply
        return Commit(task, self._versions[task], sent, sent)

    def change_all(self, *, singly: bool, ending: bool) -> list[Commit]:  # noqa: ARG002
        if singly or self._path_of_all is None:
            return [commit for task in range(len(self.tasks)) if (commit := self.change(task))]
        sent = time.monotonic()
        reply = self._control.request("POST", self._path_of_all)
        assert reply.status < 300, reply
        self._versions = [version + 1 for version in self._versions]
        return [Commit(task, version, sent, sent) for task, version in enumerate(self._versions)]

    def foreign_changes(self) -> int:
        return 0
