"""Who is logged in."""

from __future__ import annotations

from aiohttp import web

from server.web.identity import signed_in_user
from server.web.replies import json_reply


async def show(request: web.Request) -> web.Response:
    """Tell who is logged in, mostly from memory: pages ask when somebody comes back to them."""
    user = await signed_in_user(request)
    return json_reply({"user": {"id": user.user_id, "email": user.email}})
