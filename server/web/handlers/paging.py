"""Lists that are given a page at a time, newest first: how many, and from where on."""

from __future__ import annotations

import base64
import binascii
import datetime as dt

from aiohttp import web

from server.errors import BadRequest, Problem
from server.web.handlers import parameters


def limit(request: web.Request) -> int:
    """Return how many the client wants at most."""
    given = request.query.get("limit", "20")
    if not (given.isascii() and given.isdigit() and len(given) <= 3 and 1 <= int(given) <= 100):
        raise BadRequest("limit must be a whole number from 1 to 100.")
    return int(given)


def cursor(created_at: dt.datetime, row_id: str) -> str:
    """Return what stands for the last row of a page."""
    return base64.urlsafe_b64encode(f"{created_at.isoformat()} {row_id}".encode()).decode().rstrip("=")


def before(request: web.Request) -> tuple[dt.datetime, str] | None:
    """Return creation time and id of the row that the page begins behind; None: it is the first page."""
    value = request.query.get("cursor")
    if not value:
        return None
    try:
        text = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).decode("ascii")
        created, _, row_id = text.partition(" ")
        moment = dt.datetime.fromisoformat(created)
        if moment.tzinfo is None:
            raise ValueError(created)  # noqa: TRY301 - one sentence for whatever is wrong with it
        return moment.astimezone(dt.UTC), parameters.task_id(row_id)
    except (ValueError, OverflowError, binascii.Error, Problem):
        raise BadRequest("cursor must be the nextCursor of an earlier page.") from None
