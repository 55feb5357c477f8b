"""What operators and load balancers ask."""

from __future__ import annotations

from aiohttp import web

from server import metrics
from server.keys import BACKGROUND, LISTENER, METRICS, WAITERS
from server.replies import json_reply


async def healthz(_request: web.Request) -> web.Response:
    """Say that this process runs and its loop turns."""
    return json_reply({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """Say whether requests should be sent here: the listener is proven to work (and so is the database), nothing died."""
    app = request.app
    checks = {
        "listener": app[LISTENER].healthy,
        "background": not app[BACKGROUND].dead,
        "accepting": not app[WAITERS].draining,
    }
    ready = all(checks.values())
    body = {"status": "ready" if ready else "unready", "checks": checks, "dead": sorted(app[BACKGROUND].dead)}
    return json_reply(body, status=200 if ready else 503, headers={} if ready else {"Retry-After": "2"})


async def exposition(request: web.Request) -> web.Response:
    """Give all metrics in the text format of Prometheus."""
    body = request.app[METRICS].exposition()
    return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})
