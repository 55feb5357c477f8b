"""What a worker and the process of its generator say to each other, over a socket of their own.

    worker ─▶ process   REQUEST, and CANCEL if it isn't wanted any more
    process ─▶ worker   READY once; then for each request STEP, STEP, …, and one end: PICTURE, FAILED, CRASHED, CANCELED

A frame is a byte for its kind, four for the length of its payload, and the payload. A CANCEL that comes when nothing is
being made means nothing. What comes from the process is believed no more than what comes from a stranger.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Final, NamedTuple

import orjson

from server.errors import GenerationError, MalformedFrame
from server.generation.generator import MAX_PICTURE_BYTES, GenerationRequest, Picture, Step

MAX_TEXT: Final = 2000
"""The longest text of a step or an error, in characters; what a generator says beyond is cut off."""

_MAX_TRACE: Final = 16_000
_HEAD: Final = struct.Struct("!BI")
_COUNT: Final = struct.Struct("!I")


class Kind(IntEnum):
    """What a frame is."""

    REQUEST = 1
    CANCEL = 2
    READY = 3
    STEP = 4
    PICTURE = 5
    FAILED = 6
    CRASHED = 7
    CANCELED = 8


class Frame(NamedTuple):
    """A kind, and what belongs to it."""

    kind: Kind
    payload: bytes

    def to_bytes(self) -> bytes:
        """Return it as it is sent."""
        return _HEAD.pack(self.kind, len(self.payload)) + self.payload


ENDS: Final = frozenset({Kind.PICTURE, Kind.FAILED, Kind.CRASHED, Kind.CANCELED})
"""What a request ends with."""

FROM_WORKER: Final[Mapping[int, int]] = {Kind.REQUEST: 64 * 1024 * 1024, Kind.CANCEL: 0}
"""How many bytes of payload the frames of a worker may have."""

FROM_PROCESS: Final[Mapping[int, int]] = {
    Kind.READY: 0,
    Kind.STEP: 16 * MAX_TEXT,
    Kind.PICTURE: MAX_PICTURE_BYTES,
    Kind.FAILED: 8 * MAX_TEXT,
    Kind.CRASHED: 4 * _MAX_TRACE,
    Kind.CANCELED: 0,
}
"""How many bytes of payload the frames of a process may have."""


class FrameReader:
    """Reads frames. A read that was canceled leaves nothing half read: the next one goes on with the same frame."""

    def __init__(self, reader: asyncio.StreamReader, bounds: Mapping[int, int]) -> None:
        """`bounds`: the kinds that may come, each with its greatest length."""
        self._reader = reader
        self._bounds = bounds
        self._head: tuple[int, int] | None = None

    async def read(self) -> Frame:
        """Return the next frame.

        Raises:
            MalformedFrame: it is of no kind that may come here, or too long; nothing can be read behind it.
            asyncio.IncompleteReadError: the other end has closed.
            OSError: the connection broke.
        """
        if self._head is None:
            kind, length = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
            if length > self._bounds.get(kind, -1):
                raise MalformedFrame(f"a frame of kind {kind} with {length} bytes")
            self._head = kind, length
        kind, length = self._head
        payload = await self._reader.readexactly(length)
        self._head = None
        return Frame(Kind(kind), payload)


def request_frame(request: GenerationRequest) -> Frame:
    """Return the frame of a request."""
    fields = orjson.dumps([request.task_id, request.type, request.prompt, request.seed, request.size])
    reference = b"" if request.reference is None else request.reference
    return Frame(Kind.REQUEST, _COUNT.pack(len(fields)) + fields + reference)


def read_request(payload: bytes) -> GenerationRequest:
    """Return the request of a frame; a worker's word is believed."""
    end = _COUNT.size + _COUNT.unpack_from(payload)[0]
    task_id, kind, prompt, seed, (width, height) = orjson.loads(payload[_COUNT.size : end])
    return GenerationRequest(task_id, kind, prompt, seed, (width, height), payload[end:] or None)


def step_frame(step: Step) -> Frame:
    """Return the frame of a step."""
    return Frame(Kind.STEP, orjson.dumps([float(step.progress), _clean(step.stage), _clean(step.message)]))


def read_step(payload: bytes) -> Step:
    """Return the step of a frame.

    Raises:
        MalformedFrame: it is none.
    """
    match _loads(payload):
        case [int() | float() as progress, str() as stage, str() as message]:
            return Step(float(progress), _bounded(stage), _bounded(message))
    raise MalformedFrame("a step that is none")


def failure_frame(error: GenerationError) -> Frame:
    """Return the frame of an error that the task's owner is told."""
    return Frame(Kind.FAILED, orjson.dumps([_clean(str(error)), bool(error.retryable)]))


def read_failure(payload: bytes) -> GenerationError:
    """Return the error of a frame.

    Raises:
        MalformedFrame: it is none.
    """
    match _loads(payload):
        case [str() as message, bool() as retryable]:
            return GenerationError(_bounded(message), retryable=retryable)
    raise MalformedFrame("an error that is none")


def crash_frame(trace: str) -> Frame:
    """Return the frame of an error that only the log is told: its end, where the error itself stands."""
    return Frame(Kind.CRASHED, trace[-_MAX_TRACE:].encode(errors="replace"))


def read_outcome(frame: Frame) -> Step | Picture | GenerationError | str:
    """Return what a frame says of a request: a step, or its end; a traceback if that is an error of the generator's own.

    Raises:
        MalformedFrame: it says nothing of it, or not as it should.
    """
    match frame.kind:
        case Kind.STEP:
            return read_step(frame.payload)
        case Kind.PICTURE:
            return Picture(frame.payload)
        case Kind.FAILED:
            return read_failure(frame.payload)
        case Kind.CRASHED:
            return frame.payload.decode(errors="replace")
    raise MalformedFrame("ready or canceled, though nobody asked")


def _clean(text: str) -> str:
    """Return what of a text can be sent and stored: no NUL, which Postgres refuses, no half of a surrogate pair."""
    return str(text)[:MAX_TEXT].replace("\0", "").encode(errors="replace").decode()


def _bounded(text: str) -> str:
    if len(text) > MAX_TEXT or "\0" in text:
        raise MalformedFrame("a text that is too long, or holds a NUL")
    return text


def _loads(payload: bytes) -> object:
    try:
        value: object = orjson.loads(payload)
    except ValueError as error:
        raise MalformedFrame("a payload that is no JSON") from error
    return value
