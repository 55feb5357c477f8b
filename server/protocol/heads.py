"""What stands in the head of every reply, and a whole reply as bytes for connections that aiohttp no longer serves."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE

SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
}
PRIVATE: Final = "private, no-store"
REQUEST_ID: Final = "X-Request-Id"
CHALLENGE: Final = 'Bearer realm="longpoll"'
"""How to sign in, of every 401 (RFC 9110, 15.5.2). Browsers open no window for this scheme."""
_SAME_FOR_ALL: Final = "".join(
    f"{name}: {value}\r\n"
    for name, value in {**SECURITY_HEADERS, "Cache-Control": PRIVATE, "Server": SERVER_SOFTWARE}.items()
)
_UNWRITABLE: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f]")
_STATUS_LINES: Final = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in HTTPStatus}


def require_writable(headers: Mapping[str, str]) -> None:
    """Make sure that aiohttp will write these headers (http_writer.py, `_safe_header`), for those who can't undo what they do.

    Raises:
        ValueError: one has a control character.
    """
    for name, value in headers.items():
        if _UNWRITABLE.search(value):
            raise ValueError(f"the header {name} can't be written")


def complete(response: web.StreamResponse, request_id: str, *, shared: bool = False) -> None:
    """Add the headers that every reply has. `shared`: it holds nothing that is anybody's own."""
    headers = response.headers
    headers[REQUEST_ID] = request_id
    if response.status == 401:
        headers.setdefault("WWW-Authenticate", CHALLENGE)
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    # The same files for everybody, asked for with their ETag: kept, but never taken for new without asking.
    headers.setdefault("Cache-Control", "no-cache" if shared else PRIVATE)


def reply_bytes(status: int, head: bytes, body: bytes | None, *, request_id: str, end_of_head: bytes) -> bytes:
    """Return a reply of HTTP/1.1 as aiohttp would send it behind our middlewares.

    Body None: there can't be one (304). `end_of_head`: what the function of that name returns.
    """
    length = "" if body is None else f"Content-Length: {len(body)}\r\n"
    own = f"{length}{REQUEST_ID}: {request_id}\r\n".encode()
    return b"".join((_STATUS_LINES[status], head, own, end_of_head, body or b""))


def status_line(status: int) -> bytes:
    """Return the first line of a reply."""
    return _STATUS_LINES[status]


def end_of_head(*, close: bool) -> bytes:
    """Return what all replies of this second share; `close`: the connection ends with this one."""
    return _end_of_head(rfc822_formatted_time(), close)


@functools.lru_cache(maxsize=2)
def _end_of_head(date: str, close: bool) -> bytes:  # noqa: FBT001 - a key of the cache
    connection = "Connection: close\r\n" if close else ""
    return f"{_SAME_FOR_ALL}Date: {date}\r\n{connection}\r\n".encode()
