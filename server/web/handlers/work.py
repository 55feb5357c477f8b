"""Workers that have nothing but HTTPS."""

from __future__ import annotations

import datetime as dt
import math

from aiohttp import web

from server.web.identity import working
from server.web.replies import json_reply


async def token(request: web.Request) -> web.Response:
    """Say what the token is good for."""
    login, grant = await working(request)
    expires_at = None if math.isinf(login.expires_at) else dt.datetime.fromtimestamp(login.expires_at, dt.UTC)
    return json_reply(
        {
            "id": grant.token_id,
            "name": grant.name,
            "tags": sorted(grant.tags),
            "concurrency": grant.concurrency,
            "expiresAt": expires_at,
        }
    )
