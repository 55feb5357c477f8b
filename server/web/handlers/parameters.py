"""Reads parameters and bodies, and says in plain words what is wrong with them."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import math
import re
import time
from collections.abc import Coroutine, Mapping
from typing import Any, Final, TypeVar

import orjson
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from server.errors import BadRequest, PayloadTooLarge, TaskIdRequired, TaskNotFound, UnsupportedMedia
from server.protocol.replies import JSON
from server.waiting.answers import Until
from server.web.keys import CONFIG, RECORD

T = TypeVar("T")

FORM: Final = "application/x-www-form-urlencoded"
MAX_JSON_BYTES: Final = 64 * 1024
CHARSET_FIELD: Final = "_charset_"  # a form says in it how its texts are encoded (HTML, RFC 7578)
# As browsers take the names. No others: Python knows codecs that no text is encoded with.
_CHARSETS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("utf-8", "utf8", "us-ascii", "ascii"), "utf-8"),
    **dict.fromkeys(("iso-8859-1", "latin1", "windows-1252"), "windows-1252"),
}
_TASK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_WAIT_PREFERENCE: Final = re.compile(
    r"""(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=$|[,;])""", re.IGNORECASE | re.ASCII
)
_LARGEST_VERSION: Final = 2**63 - 1


def task_id(value: str | None) -> str:
    """Return a task id that may exist.

    Raises:
        TaskIdRequired: there is none.
        TaskNotFound: no task can have this one; the reply is that for a task that doesn't exist.
    """
    if not value:
        raise TaskIdRequired("Name the task: ?taskId=…")
    if not is_possible_task_id(value):
        raise TaskNotFound
    return value


def is_possible_task_id(value: str) -> bool:
    """Whether a task can have this id; the database is never asked for another."""
    return _TASK_ID.match(value) is not None


def version(value: str) -> int:
    """Return a version: 0 or greater."""
    if not _is_whole(value):
        raise BadRequest("version must be a whole number, 0 or greater: the last version you have seen.")
    return int(value)


def place(value: str) -> int:
    """Return a place in the queue: 0 or greater."""
    if not _is_whole(value):
        raise BadRequest("place must be a whole number: the last queuePosition you have seen, or 0 if there was none.")
    return int(value)


def _is_whole(value: str) -> bool:
    return value.isascii() and value.isdigit() and len(value) <= 19 and int(value) <= _LARGEST_VERSION


def whole_number(value: object, least: int, most: int) -> int | None:
    """Return a JSON number that is whole, or None if the value is none in this range.

    To JSON Schema, and to JavaScript, 7.0 is a whole number; to both, true is none.
    """
    if isinstance(value, float) and value.is_integer() and least <= value <= most:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        return None
    return value


def seconds(value: str, longest: float, *, name: str = "wait") -> float:
    """Return a number of seconds, 0 or more; more than the longest means the longest."""
    wait = math.nan
    if value.isascii() and "_" not in value:
        with contextlib.suppress(ValueError):
            wait = float(value)
    if not wait >= 0 or math.isinf(wait):
        raise BadRequest(f"{name} must be a number of seconds from 0 to {longest:g}.")
    return min(wait, longest)


def preferred_wait(request: web.Request, longest: float) -> float | None:
    """Return the seconds of a `Prefer: wait=N` header (RFC 7240), or None if there is none that makes sense."""
    for header in request.headers.getall("Prefer", ()):
        found = _WAIT_PREFERENCE.search(header)
        if found:
            return min(float(found[1]), longest)
    return None


def until(value: str | None, default: Until) -> Until:
    """Return what the client waits for."""
    try:
        return Until(value or default)
    except ValueError:
        raise BadRequest(f"until must be one of: {', '.join(Until)}.") from None


async def json_object(request: web.Request, *, known: frozenset[str]) -> dict[str, object]:
    """Return the body, a JSON object that has no other members than the known ones."""
    require_media_type(request, JSON)
    body = await read_within(request, request.content.read(MAX_JSON_BYTES + 1))
    while len(body) <= MAX_JSON_BYTES and (
        more := await read_within(request, request.content.read(MAX_JSON_BYTES + 1))
    ):
        body += more
    if len(body) > MAX_JSON_BYTES:
        raise PayloadTooLarge(f"The body may have at most {MAX_JSON_BYTES} bytes.")
    try:
        value = orjson.loads(body.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError:
        raise BadRequest("The body isn't JSON.") from None
    if not isinstance(value, dict):
        raise BadRequest("The body must be a JSON object.")
    refuse_unknown(set(value), known)
    return value


async def text_fields(request: web.Request, known: frozenset[str]) -> dict[str, str]:
    """Return the texts of a form, be it JSON or as browsers send it, that has no other fields than the known ones."""
    require_media_type(request, JSON, FORM)
    if request.content_type != JSON:
        return await urlencoded_form(request, known=known)
    given = await json_object(request, known=known)
    if not all(isinstance(value, str) for value in given.values()):
        raise BadRequest(f"{_and(sorted(known))} must be texts.")
    return {name: str(value) for name, value in given.items()}


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


async def urlencoded_form(request: web.Request, *, known: frozenset[str]) -> dict[str, str]:
    """Return the fields of an application/x-www-form-urlencoded body, which has no others than the known ones."""
    _codec(request.charset or "utf-8")
    try:
        form = await read_within(request, request.post())
    except ValueError:
        raise BadRequest("The form must be UTF-8.") from None
    fields = {name: str(value) for name, value in form.items()}
    if len(fields) < len(form):
        raise BadRequest("A field of the form is there twice.")
    _codec(fields.pop(CHARSET_FIELD, "utf-8"))
    refuse_unknown(set(fields), known)
    return fields


def form_text(content: bytes, charset: str) -> str:
    """Return the text of a form's field."""
    try:
        return content.decode(_codec(charset))
    except UnicodeDecodeError:
        raise BadRequest(f"The fields of the form must be {charset.upper()}.") from None


def _codec(charset: str) -> str:
    try:
        return _CHARSETS[charset.strip().lower()]
    except KeyError:
        raise BadRequest(f"A form must be UTF-8, not {charset[:40]}.") from None


def refuse_unknown(names: set[str], known: frozenset[str]) -> None:
    """Raise if there are other fields than the known ones: a typo must not be ignored."""
    unknown = sorted(names - known)
    if unknown:
        listed = ", ".join(name[:40] for name in unknown[:5])
        raise BadRequest(f"Unknown field: {listed}. Known are: {', '.join(sorted(known))}.")


def require_media_type(request: web.Request, *accepted: str) -> None:
    """Raise if the body is of another kind."""
    if request.content_type not in accepted:
        raise UnsupportedMedia(f"Send {' or '.join(accepted)}, not {request.content_type}.")


async def read_within(request: web.Request, reading: Coroutine[Any, Any, T]) -> T:
    """Read from the body within the time that one read and the whole may take: aiohttp itself would wait for ever.

    Raises:
        BadRequest: nothing came, or too little, or something that isn't HTTP.
    """
    settings = request.app[CONFIG].server
    taken = time.perf_counter() - request[RECORD].started
    left = settings.body_seconds - taken
    if left <= 0 or _is_too_slow(request, taken):
        reading.close()
        raise BadRequest(
            f"The body came too slowly: it may take {settings.body_seconds:g} seconds, and must bring"
            f" {settings.body_bytes_per_second:g} bytes a second."
        )
    try:
        async with asyncio.timeout(min(settings.receive_seconds, left)):
            return await reading
    except TimeoutError:
        whole = min(settings.receive_seconds, settings.body_seconds)
        raise BadRequest(f"The body did not arrive within {whole:g} seconds.") from None
    except (web.RequestPayloadError, BadHttpMessage):
        raise BadRequest("The body is broken: its encoding or its framing isn't what the headers say.") from None


def _is_too_slow(request: web.Request, taken: float) -> bool:
    settings, content = request.app[CONFIG].server, request.content
    if taken < settings.receive_seconds or content.is_eof():
        return False
    return content.total_raw_bytes < taken * settings.body_bytes_per_second
