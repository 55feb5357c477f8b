"""What stands in the head of every reply, and a whole reply as bytes for connections that aiohttp no longer serves."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

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
_SAME_FOR_ALL: Final = "".join(
    f"{name}: {value}\r\n"
    for name, value in {**SECURITY_HEADERS, "Cache-Control": PRIVATE, "Server": SERVER_SOFTWARE}.items()
)
_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}


def reply_bytes(status: int, head: str, body: bytes | None, *, request_id: str, close: bool) -> bytes:
    """Return a reply of HTTP/1.1 as aiohttp would send it behind our middlewares; body None: there can't be one (304)."""
    length = "" if body is None else f"Content-Length: {len(body)}\r\n"
    connection = "Connection: close\r\n" if close else ""
    whole = (
        f"{_STATUS_LINES[status]}{head}{length}{REQUEST_ID}: {request_id}\r\n"
        f"{_SAME_FOR_ALL}Date: {rfc822_formatted_time()}\r\n{connection}\r\n"
    )
    return whole.encode("latin-1") + (body or b"")
