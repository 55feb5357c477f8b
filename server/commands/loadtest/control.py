"""The few ordinary requests of a load test: an account, tasks, metrics. They are not what is measured."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson

from server.errors import LoadTestError

_SECONDS: Final = 15.0


class Reply(NamedTuple):
    """What came back: the status, the session cookie if one was set, the body."""

    status: int
    cookie: str | None
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The body, which is an object."""
        try:
            value = orjson.loads(self.body)
        except orjson.JSONDecodeError:
            value = {}
        return value if isinstance(value, dict) else {}


class Control:
    """One connection for requests, one after the other."""

    def __init__(self, host: str, port: int) -> None:
        """Take note of the address."""
        self._connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
        self._name = f"http://{host}:{port}"

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send a request, JSON if it has a body; returns the whole reply, whatever its status.

        Raises:
            LoadTestError: nobody answers.
        """
        content = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        sent = {**(headers or {}), **({} if content is None else {"Content-Type": "application/json"})}
        for attempt in (1, 2):
            try:
                self._connection.request(method, path, content, sent)
                with self._connection.getresponse() as response:
                    cookie = response.getheader("Set-Cookie")
                    return Reply(response.status, cookie and cookie.partition(";")[0], response.read())
            except http.client.RemoteDisconnected:
                self._connection.close()  # an idle connection may be closed by the other end: once more, on a new one
                if attempt == 1:
                    continue
                raise LoadTestError(f"{self._name} closes every connection without an answer") from None
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                raise LoadTestError(f"nobody answers at {self._name}: {_sentence(error)}") from error
        raise AssertionError("unreachable")

    def metrics(self) -> dict[str, float]:
        """Return the server's figures that have no labels; none if it shows none."""
        reply = self.request("GET", "/metrics")
        lines = reply.body.decode(errors="replace").splitlines() if reply.status == 200 else []
        pairs = (line.split() for line in lines if line and line[0] != "#" and "{" not in line)
        return {pair[0]: float(pair[1]) for pair in pairs if len(pair) == 2}

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def _sentence(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
