"""The description of the API, for programs and for people."""

from __future__ import annotations

import aiohttp_jinja2
from aiohttp import web

from server.web.identity import find_user
from server.web.keys import CONFIG, DESCRIPTION, RENDERED
from server.web.replies import json_reply, page


async def description(request: web.Request) -> web.Response:
    """Give the OpenAPI document."""
    return json_reply(request.app[DESCRIPTION])


async def read(request: web.Request) -> web.Response:
    """Show it to a person."""
    await find_user(request)  # nobody needs to be, but who is signed in sees it in the header
    # Put together by hand: `request.url` raises for a Host that is no part of a URL.
    here = f"{request.scheme}://{request.host}" if request.host else ""
    site = request.app[CONFIG].server.public_url.rstrip("/") or here
    context = {"api": request.app[DESCRIPTION], "operations": await _operations(request.app), "site": site}
    return await page(request, "docs.html", context)


async def _operations(app: web.Application) -> str:
    """Return what is the same on everybody's page. To render it takes 30 ms, for which the loop would stand still."""
    rendered = app[RENDERED]
    if "operations" not in rendered:
        template = aiohttp_jinja2.get_env(app).get_template("docs_operations.html")
        rendered["operations"] = await template.render_async(api=app[DESCRIPTION])
    return rendered["operations"]
