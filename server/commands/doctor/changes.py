"""Checks of what changes something: are the site's own pages let in, and does a large body pass?"""

from __future__ import annotations

import io
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from server.commands.doctor.deployment import Deployment
from server.commands.doctor.report import Finding, failed, ok, skipped
from server.commands.doctor.site import NoReply, Reply, post
from server.commands.doctor.waiting_task import waiting_task

_ANSWER_SECONDS: Final = 30.0  # time enough for the body, on a slow line
_UPLOAD_BYTES: Final = 2_000_000  # more than the 1 MiB of nginx as it comes, less than the 10 MiB of a reference image
_LET_LARGE_BODIES_THROUGH: Final = "let it pass 12 MB: client_max_body_size 12m (nginx), the limit for bodies elsewhere"
_KEEP_THE_HOST: Final = (
    "let the proxy pass the host on: proxy_set_header Host $http_host (nginx); or set LONGPOLL_SERVER__PUBLIC_URL={url}"
)


async def check_origin(deployment: Deployment) -> Finding:
    """Send a POST as one of the site's own pages would, to nobody's harm: without a login it is refused anyway."""
    url, settings = deployment.url, deployment.config.server
    public, origin = settings.public_url, _origin(url)
    remedy = f"set LONGPOLL_SERVER__PUBLIC_URL={origin}"
    if public and _origin(public) != origin:
        return failed(
            f"server.public_url is {public}: forms and uploads of pages at {origin} are refused",
            f"{remedy}, or give --url as browsers see the site",
        )
    if origin.startswith("https:") and not public and not settings.tls_certificate:
        return failed(
            "something in front speaks https, but the server doesn't know: its cookies aren't Secure, and it may take its own"
            " pages for another site's",
            remedy,
        )
    try:
        reply = await post(f"{url}/api/generate/cancel", _ANSWER_SECONDS, b"{}", origin=origin)
    except NoReply as error:
        return failed(f"a POST was not answered: {error}", "let the proxy pass POST on, too")
    if reply.object().get("code") == "not_signed_in":
        return ok(f"a POST from a page of {origin} is taken for what it is")
    if reply.object().get("code") == "cross_origin":
        return failed(
            f"a POST from a page of {origin} is taken for another site's, so that nobody can log in by plain http: the"
            " server is told another host than browsers use",
            _KEEP_THE_HOST.format(url=origin),
        )
    return failed(f"a POST is answered {_by_whom(reply)}", "let the proxy pass POST on as it came")


async def check_upload(deployment: Deployment) -> Finding:
    """Send 2 MB that are no picture, as a reference image: the server refuses them when it has all of them."""
    form = aiohttp.FormData({"prompt": "The doctor sends a large body"})
    body = io.BytesIO(bytes(_UPLOAD_BYTES))
    form.add_field("reference_image", body, filename="doctor.png", content_type="image/png")
    what, url = f"an upload of {_UPLOAD_BYTES // 1_000_000} MB", deployment.url
    async with deployment.opened() as database, waiting_task(database) as (_, token):
        try:
            reply = await post(f"{url}/api/generate_advanced", _ANSWER_SECONDS, form, token=token)
        except NoReply as error:
            return failed(
                f"{what} ended after {error.seconds:.1f} s without a reply: {error}", _LET_LARGE_BODIES_THROUGH
            )
    if reply.object().get("code") in {"image_rejected", "unsupported_media_type"}:
        return ok(f"{what} comes through")
    if reply.object().get("code") == "not_signed_in":
        return skipped("looked at when this is ok: hold")  # which says why it knows no login of this database
    if "code" in reply.object():
        return failed(f"{what} was answered {_by_whom(reply)}", "look for it in the server's log")
    return failed(f"{what} was answered {_by_whom(reply)}", _LET_LARGE_BODIES_THROUGH)


def _by_whom(reply: Reply) -> str:
    title = reply.object().get("title")
    return f"by the server with {reply.status}: {title}" if title else f"by a proxy, with {reply.status}"


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()
