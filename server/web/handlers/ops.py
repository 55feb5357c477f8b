"""What operators and load balancers ask."""

from __future__ import annotations

import datetime as dt
import time
from typing import Final

from aiohttp import web

from server import __version__
from server.errors import MetricsRefused
from server.telemetry import metrics
from server.web.identity import signed_in_user
from server.web.keys import BACKGROUND, BACKLOG, BOARD, CONFIG, DATABASE, IMAGES, LISTENER, METRICS, STARTED_AT, WAITERS
from server.web.replies import json_reply, page

REFRESH_SECONDS: Final = 3
_OF_PROXIES: Final = frozenset({"forwarded", "via", "x-real-ip"})
_QUANTILES: Final = {"p50Seconds": 0.5, "p90Seconds": 0.9, "p99Seconds": 0.99}


async def healthz(request: web.Request) -> web.Response:
    """Say that this process runs, its loop turns, and nothing that it needs has died. If this lasts, it must be restarted."""
    dead = sorted(request.app[BACKGROUND].dead)
    return json_reply({"status": "failing" if dead else "ok", "dead": dead}, status=503 if dead else 200)


async def readyz(request: web.Request) -> web.Response:
    """Say whether requests should be sent here: the listener is proven to work (and so is the database), pictures can be stored, nothing died."""
    checks = _checks(request.app)
    ready = all(checks.values())
    body = {"status": "ready" if ready else "unready", "checks": checks, "dead": sorted(request.app[BACKGROUND].dead)}
    return json_reply(body, status=200 if ready else 503, headers={} if ready else {"Retry-After": "2"})


def _checks(app: web.Application) -> dict[str, bool]:
    return {
        "listener": app[LISTENER].healthy,
        "background": not app[BACKGROUND].dead,
        "pictures": app[IMAGES].usable,
        "accepting": not app[WAITERS].draining,
    }


async def exposition(request: web.Request) -> web.Response:
    """Give all metrics in the text format of Prometheus: to those who ask this process, not to those whom a proxy lets in."""
    if not request.app[CONFIG].server.metrics_through_proxy and _came_through_a_proxy(request):
        raise MetricsRefused(
            "Ask this process itself, past the proxy; or let the operator set server.metrics_through_proxy."
        )
    body = request.app[METRICS].exposition()
    return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})


def _came_through_a_proxy(request: web.Request) -> bool:
    # Whether it is one that we trust doesn't matter: who makes such a header up gets less.
    return any(name.lower().startswith("x-forwarded-") or name.lower() in _OF_PROXIES for name in request.headers)


async def overview(request: web.Request) -> web.Response:
    """Show the figures of this process to a person."""
    await signed_in_user(request)
    context = {"figures": await _read_figures(request.app), "refresh_seconds": REFRESH_SECONDS}
    return await page(request, "ops.html", context)


async def figures(request: web.Request) -> web.Response:
    """Give the same figures to the page that shows them: sums over everybody, nothing of anybody's own."""
    await signed_in_user(request)
    return json_reply(await _read_figures(request.app))


async def _read_figures(app: web.Application) -> dict[str, object]:
    measured, waiters, listener, database = app[METRICS], app[WAITERS], app[LISTENER], app[DATABASE]
    backlog = await app[BACKLOG].read()
    started = dt.datetime.fromtimestamp(app[STARTED_AT], dt.UTC)
    return {
        "process": {
            "version": __version__,
            "startedAt": started.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "uptimeSeconds": round(time.time() - app[STARTED_AT], 1),
            "checks": _checks(app),
            "dead": sorted(app[BACKGROUND].dead),
        },
        "polls": {
            "held": len(waiters),
            "limit": waiters.max_held,
            "watched": len(app[BOARD]),
            "ended": measured.polls_by_outcome(),
        },
        "wakes": {
            "count": int(measured.value("longpoll_wake_latency_seconds_count")),
            **{name: measured.wake_quantile(share) for name, share in _QUANTILES.items()},
        },
        "listener": {
            "up": listener.healthy,
            "lagSeconds": round(listener.lag_seconds, 6),
            "reconnects": int(measured.value("longpoll_listener_reconnects_total")),
            "repairs": int(measured.value("longpoll_missed_notify_repairs_total")),
        },
        "database": {
            "statements": database.statements,
            "busy": database.busy,
            "connections": database.connections,
            "limit": database.pool_size,
        },
        "tasks": None if backlog is None else {"pending": backlog.pending, "processing": backlog.processing},
    }
