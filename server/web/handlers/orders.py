"""Orders for pictures: read from JSON and forms, checked, and placed as tasks."""

from __future__ import annotations

import binascii
import contextlib
import hashlib
import quopri
import random
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import orjson
from aiohttp import BodyPartReader, MultipartReader, StreamReader, web
from multidict import CIMultiDict, CIMultiDictProxy

from server.errors import (
    BadRequest,
    ConstraintViolated,
    ImageRejected,
    NotSignedIn,
    PayloadTooLarge,
    PicturesUnavailable,
    PriorityRefused,
    Problem,
    TaskNotFound,
)
from server.generation.generator import DEFAULT_SIZE, SIZES
from server.generation.reference import MAX_BYTES, clean_reference
from server.storage.images import reference_name
from server.storage.tasks import PRIORITIES, NewTask, Task
from server.storage.users import User
from server.web.handlers import parameters, texts
from server.web.keys import CONFIG, IMAGES, RECORD, TASKS
from server.web.uploads import UPLOADS

MAX_PROMPT: Final = 4000
MAX_SEED: Final = 2**53 - 1  # the largest whole number that JavaScript holds exactly
FIELDS: Final = frozenset({"prompt", "seed", "size", "priority"})
DEFAULT_PRIORITY: Final = "normal"
IMAGE_FIELD: Final = "reference_image"
_MAX_FIELD_BYTES: Final = 4 * MAX_PROMPT + 1024  # four bytes a character at most, and some white space around
_ENCODING_HEADER: Final = "Content-Transfer-Encoding"
_IDEMPOTENCY_KEY: Final = re.compile(r"[\x20-\x7e]{1,255}\Z")
# How a part may be encoded (RFC 2045): what decodes it, and how many times longer than its content it may be.
_ENCODINGS: Final[Mapping[str, tuple[Callable[[bytes], bytes], int]]] = {
    **dict.fromkeys(("", "binary", "8bit", "7bit"), (bytes, 1)),
    "base64": (binascii.a2b_base64, 2),
    "quoted-printable": (quopri.decodestring, 4),
}


@dataclass(frozen=True, slots=True)
class Order:
    """What a client asks to be made.

    `reference`: clean. `digest` tells whether two requests ask for the same.
    """

    kind: str
    prompt: str
    seed: int | None
    size: str
    reference: bytes | None
    digest: bytes
    priority: str = DEFAULT_PRIORITY


def idempotency_key(request: web.Request) -> str | None:
    """Return the key that makes repetitions of this request one order, if there is one."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _IDEMPOTENCY_KEY.match(key):
        raise BadRequest("Idempotency-Key must be 1 to 255 printable ASCII characters.")
    return key


async def place(request: web.Request, user: User, order: Order, key: str | None) -> Task | str:
    """Make a task of an order and return it; or the id of the one that an earlier request with the same key has made."""
    _check_priority(request, user, order.priority)
    task_id = request[RECORD].task_id = secrets.token_urlsafe(16)
    new = NewTask(
        task_id=task_id,
        user_id=user.user_id,
        prompt=order.prompt,
        type=order.kind,
        seed=random.randrange(2**31) if order.seed is None else order.seed,
        size=order.size,
        has_reference=order.reference is not None,
        idempotency_key=key,
        request_digest=order.digest,
        priority=PRIORITIES[order.priority],
    )
    # The image first: a worker may claim the task before this handler runs on.
    if order.reference is not None:
        await request.app[IMAGES].put(reference_name(task_id), order.reference)
    try:
        made = await request.app[TASKS].create(new)
    except (Problem, ConstraintViolated) as error:  # not if the database was silent: the row may be there
        await discard_pictures(request, task_id)
        if isinstance(error, ConstraintViolated) and error.constraint == "image_generations_user_id_fkey":
            raise NotSignedIn("The account was deleted meanwhile.") from error
        raise
    if not isinstance(made, Task):
        await discard_pictures(request, task_id)
    return made


def _check_priority(request: web.Request, user: User, priority: str) -> None:
    """Raise if this user may not use this priority."""
    allowed = request.app[CONFIG].limits.high_priority
    if priority == "high" and not {"*", user.email.lower()} & {name.lower() for name in allowed}:
        raise PriorityRefused("Only those whom limits.high_priority names may create tasks of high priority.")


async def discard_pictures(request: web.Request, task_id: str) -> None:
    """Delete the pictures of a task that isn't there (any more): if that fails, the sweep will find them."""
    with contextlib.suppress(PicturesUnavailable):  # logged and counted where it was raised
        await request.app[IMAGES].delete_task(task_id)


async def read_earlier(request: web.Request, user: User, task_id: str) -> Order:
    """Return the order that a task of this user was made from, its reference image included."""
    earlier = await request.app[TASKS].find_order(user.user_id, task_id)
    if earlier is None:
        raise TaskNotFound
    reference = await request.app[IMAGES].get(reference_name(task_id)) if earlier.has_reference else None
    if earlier.has_reference and reference is None:
        raise ImageRejected("The reference image of this task is no longer there; send a new order with it.")
    digest = hashlib.sha256(orjson.dumps(["again", task_id])).digest()
    return Order(earlier.type, earlier.prompt, earlier.seed, earlier.size, reference, digest)


# Reading -------------------------------------------------------------------------------------------------------------


async def read_order(request: web.Request, kind: str) -> Order:
    """Read an order from the body: a form, or JSON."""
    parameters.require_media_type(request, "multipart/form-data", "application/json")
    if request.content_type == "application/json":
        return await make_order(request, kind, await parameters.json_object(request, known=FIELDS), None)
    fields: dict[str, str] = {}
    image = await read_form(request, fields, known=FIELDS)
    return await make_order(request, kind, fields, image)


async def make_order(request: web.Request, kind: str, fields: Mapping[str, object], image: bytes | None) -> Order:
    """Check the fields, then the image, which is the more work."""
    prompt, seed, size = _prompt(fields.get("prompt")), _seed(fields.get("seed")), _size(fields.get("size"))
    shown = hashlib.sha256(image).hexdigest() if image is not None else None
    priority = _priority(fields.get("priority"))
    said = (
        [kind, prompt, seed, size, shown]
        if priority == DEFAULT_PRIORITY
        else [kind, prompt, seed, size, shown, priority]
    )
    digest = hashlib.sha256(orjson.dumps(said)).digest()
    reference = await request.app[UPLOADS].run(clean_reference, image) if image is not None else None
    return Order(kind, prompt, seed, size, reference, digest, priority)


async def read_form(
    request: web.Request, fields: dict[str, str], *, known: frozenset[str], with_image: bool = True
) -> bytes | None:
    """Read a form: its texts into `fields`, as they come; returns its reference image, if there is one.

    `with_image=False`: reads no farther than to the image.
    """
    given: dict[str, bytes | None] = {}
    charset = "utf-8"
    try:
        reader = _form_reader(request)
        while (part := await parameters.read_within(request, reader.next())) is not None:
            if not isinstance(part, _Field):
                raise BadRequest("A form field can't be a form itself.")
            name = _name_of(part, given, known | {IMAGE_FIELD, parameters.CHARSET_FIELD})
            if name == IMAGE_FIELD and not with_image:
                break
            if name == IMAGE_FIELD:
                content = await _read_part(request, part, MAX_BYTES, "The reference image may have at most 10 MiB.")
                given[name] = content if content or part.filename else None  # a file input that was left empty
                continue
            given[name] = content = await _read_part(request, part, _MAX_FIELD_BYTES, f"The field {name} is too long.")
            text = parameters.form_text(content, part.get_charset(charset))
            if name == parameters.CHARSET_FIELD:
                charset = text
            else:
                fields[name] = text
    except (ValueError, AssertionError, RuntimeError):
        raise BadRequest("The body isn't a complete multipart/form-data form.") from None
    return given.get(IMAGE_FIELD)


class _Field(BodyPartReader):
    """A part of a form, read as it was sent: what it is encoded with is ours to undo, as a whole."""

    def __init__(
        self, boundary: bytes, headers: CIMultiDictProxy[str], content: StreamReader, **options: object
    ) -> None:
        self.encoding = headers.get(_ENCODING_HEADER, "").strip().lower()
        others = CIMultiDict(headers)
        others.popall(_ENCODING_HEADER, None)
        options["subtype"] = "form-data"
        super().__init__(boundary, CIMultiDictProxy(others), content, **options)  # type: ignore[arg-type]


class _Parts(MultipartReader):
    part_reader_cls = _Field


def _form_reader(request: web.Request) -> MultipartReader:
    # Of a form whose first field is `_charset_`, aiohttp's reader takes the line behind that for a header of the next
    # (3.14.5, `MultipartReader.next`; aio-libs/aiohttp pull request 13640). Of other kinds of parts it doesn't.
    kind = re.sub("form-data", "mixed", request.headers["Content-Type"], count=1, flags=re.IGNORECASE)
    return _Parts({"Content-Type": kind}, request.content)


def _name_of(part: BodyPartReader, given: Mapping[str, object], known: frozenset[str]) -> str:
    name = part.name or ""
    parameters.refuse_unknown({name}, known)
    if name in given:
        raise BadRequest(f"The field {name} is there twice.")
    return name


async def _read_part(request: web.Request, part: _Field, limit: int, message: str) -> bytes:
    if part.encoding not in _ENCODINGS:
        found = part.encoding[:40]
        raise BadRequest(f"A field of the form may be encoded as base64 or quoted-printable, not as {found}.")
    decode, factor = _ENCODINGS[part.encoding]
    content = bytearray()
    while chunk := await parameters.read_within(request, part.read_chunk(64 * 1024)):
        content += chunk
        if len(content) > limit * factor:
            raise PayloadTooLarge(message)
    try:
        decoded = decode(bytes(content))
    except binascii.Error:
        raise BadRequest(f"The field {part.name} is not {part.encoding}, as it says.") from None
    if len(decoded) > limit:
        raise PayloadTooLarge(message)
    return decoded


def _prompt(value: object) -> str:
    prompt = texts.tidy(value) if isinstance(value, str) else ""
    if "\0" in prompt:
        raise BadRequest("prompt contains a NUL character; send text.")
    if texts.shows_nothing(prompt):
        raise BadRequest(f"prompt is required: 1 to {MAX_PROMPT} characters that say what the picture shows.")
    if len(prompt) > MAX_PROMPT:
        raise BadRequest(f"prompt has {len(prompt)} characters; at most {MAX_PROMPT} are accepted.")
    return prompt


def _seed(value: object) -> int | None:
    if isinstance(value, str):
        value = texts.tidy(value)
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 16:
        value = int(value)
    seed = parameters.whole_number(value, 0, MAX_SEED)
    if seed is None:
        raise BadRequest(f"seed must be a whole number from 0 to {MAX_SEED}.")
    return seed


def _priority(value: object) -> str:
    if value is None or value == "":
        return DEFAULT_PRIORITY
    if not isinstance(value, str) or value not in PRIORITIES:
        raise BadRequest(f"priority must be one of: {', '.join(PRIORITIES)}.")
    return value


def _size(value: object) -> str:
    if value is None or value == "":
        return DEFAULT_SIZE
    if not isinstance(value, str) or value not in SIZES:
        raise BadRequest(f"size must be one of: {', '.join(SIZES)}.")
    return value
