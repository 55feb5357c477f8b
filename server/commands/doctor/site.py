"""Checks of what stands in front: does the site answer, and does a poll come through whole and in time?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import orjson

from server.commands.doctor.deployment import Deployment
from server.commands.doctor.report import Finding, failed, ok, skipped, warning
from server.commands.doctor.waiting_task import waiting_task

_ANSWER_SECONDS: Final = 10.0
_PATIENCE_SECONDS: Final = 15.0
_LATE_SECONDS: Final = 2.0
# What its settings say can't be seen from here; of a single server in an upstream it asks on anyway.
_NGINX: Final = (
    ", through nginx: if that has several servers in an upstream, write max_fails=0 behind each, or none of them is asked"
    " for 10 s after it has restarted"
)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, and after how many seconds."""

    status: int
    body: bytes
    seconds: float
    sender: str = ""

    def object(self) -> dict[str, Any]:
        """Return the JSON object in the body, or an empty one: it may be somebody else's page."""
        try:
            value = orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return {}
        return value if isinstance(value, dict) else {}


class NoReply(Exception):
    """The connection was refused, cut or silent; says which, and after how many seconds."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(what)
        self.seconds = seconds


async def get(url: str, seconds: float, *, token: str = "", **query: str) -> Reply:
    """Ask once for a URL, and follow nothing.

    Raises:
        NoReply: none came within these seconds.
    """
    return await _send("GET", url, seconds, _bearer(token), params=query)


async def post(url: str, seconds: float, body: object, *, token: str = "", origin: str = "") -> Reply:
    """Send a body once; with an origin, as a page of that one would.

    Raises:
        NoReply: none came within these seconds.
    """
    return await _send("POST", url, seconds, {**_bearer(token), **({"Origin": origin} if origin else {})}, data=body)


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


async def _send(method: str, url: str, seconds: float, headers: Mapping[str, str], **what: Any) -> Reply:
    begun, timeout = time.perf_counter(), aiohttp.ClientTimeout(total=seconds)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, middlewares=[_only_once]) as session,
            session.request(method, url, headers=headers, allow_redirects=False, **what) as reply,
        ):
            sender = reply.headers.get("Server", "")
            return Reply(reply.status, await reply.read(), time.perf_counter() - begun, sender)
    except TimeoutError:
        raise NoReply("nobody answered", time.perf_counter() - begun) from None
    except aiohttp.ClientConnectorError as error:
        raise NoReply(str(error.os_error), time.perf_counter() - begun) from error
    except (aiohttp.ClientError, ValueError) as error:
        raise NoReply(str(error) or type(error).__name__, time.perf_counter() - begun) from error


async def _only_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from asking again by itself after a cut (client.py, `retry_persistent_connection`): we look for cuts."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise aiohttp.ClientPayloadError("the connection was cut") from error


async def check_site(deployment: Deployment) -> Finding:
    """Ask for /healthz."""
    if not deployment.url:
        return skipped("what stands in front is looked at with --url, the address that browsers use")
    try:
        reply = await get(f"{deployment.url}/healthz", _ANSWER_SECONDS)
    except NoReply as error:
        return failed(
            f"{deployment.url} can't be reached: {error}", "see that the proxy and the server run, or correct --url"
        )
    if reply.status == 200 and reply.object().get("status") == "ok":
        return ok(f"{deployment.url} answers{_NGINX if reply.sender.startswith('nginx') else ''}")
    return failed(
        f"{deployment.url}/healthz answers {reply.status}, not as this server does",
        "give --url as browsers see it, and see that the proxy passes everything on and that the server runs",
    )


async def check_hold(deployment: Deployment) -> Finding:
    """Hold a real poll for as long as the server holds one, and see what comes of it."""
    hold_seconds = deployment.config.polling.hold_seconds
    async with deployment.opened() as database, waiting_task(database) as (task_id, token):
        try:
            reply = await get(
                f"{deployment.url}/api/generate/status",
                hold_seconds + _PATIENCE_SECONDS,
                token=token,
                taskId=task_id,
                wait=f"{hold_seconds:g}",
            )
        except NoReply as error:
            return failed(
                f"a poll of {hold_seconds:g} s ended after {error.seconds:.1f} s: {error}", _be_patient(hold_seconds)
            )
    return judge(reply, hold_seconds)


def judge(reply: Reply, hold_seconds: float) -> Finding:
    """Say what the reply to a poll that was to be held for so long tells about the way it came."""
    body, what = reply.object(), f"a poll of {hold_seconds:g} s was answered after {reply.seconds:.1f} s"
    if reply.status == 401 and body.get("code") == "not_signed_in":
        return failed(
            "the site doesn't know a token that was made in this database just now: it has another one",
            "run this with the settings of the very server that stands behind --url",
        )
    if "code" in body:
        return failed(
            f"{what} by the server with {reply.status}: {body.get('title')}", "look for it in the server's log"
        )
    if "poll" not in body:
        return failed(f"{what} by a proxy, with {reply.status}", _be_patient(hold_seconds))
    late = reply.seconds - body["poll"]["waitedMs"] / 1000
    if late > _LATE_SECONDS:
        return failed(
            f"a reply arrived {late:.1f} s after the server had sent it: something in front buffers it",
            "let it pass replies on at once: proxy_buffering off and no limit_rate (nginx), no filters (HAProxy)",
        )
    if body["poll"]["reason"] != "timeout":
        return warning(
            f"{what} ({body['poll']['reason']}), so no longer wait was tried",
            "run this again when the server has less to do",
        )
    return ok(f"a poll was held for {reply.seconds:.1f} s, and its reply arrived at once")


def _be_patient(hold_seconds: float) -> str:
    return (
        f"let whatever stands in front wait for {hold_seconds + 5:g} s or longer: proxy_read_timeout (nginx), timeout"
        " server (HAProxy), idle timeout (load balancers); or lower polling.hold_seconds"
    )
