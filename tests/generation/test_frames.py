"""What comes from a generator's process is a frame that may come, or refused; whatever its bytes are."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import GenerationError, MalformedFrame
from server.generation import frames
from server.generation.frames import ENDS, FROM_PROCESS, MAX_TEXT, Frame, FrameReader, Kind
from server.generation.generator import GenerationRequest, Picture, Step


def reader_of(sent: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(sent)
    return reader


@given(st.text(), st.integers(0, 2**63 - 1), st.none() | st.binary(min_size=1))
def test_a_request_comes_through(prompt: str, seed: int, reference: bytes | None) -> None:
    try:
        prompt.encode()
    except UnicodeEncodeError:
        return  # half a surrogate pair, which no database gives
    request = GenerationRequest("task", "advanced", prompt, seed, (768, 512), reference)
    assert frames.read_request(frames.request_frame(request).payload) == request


@given(st.floats(0, 1), st.text(st.characters()), st.text(st.characters(), max_size=5))
def test_whatever_a_step_says_it_can_be_stored(progress: float, stage: str, message: str) -> None:
    frame = frames.step_frame(Step(progress, stage, message * 3000))
    assert len(frame.payload) <= FROM_PROCESS[Kind.STEP]
    step = frames.read_outcome(frame)
    assert isinstance(step, Step)
    assert step.progress == progress
    assert len(step.message) <= MAX_TEXT
    assert "\0" not in step.stage + step.message
    (step.stage + step.message).encode()


@given(st.text(st.characters()), st.booleans())
def test_an_error_comes_through(message: str, retryable: bool) -> None:  # noqa: FBT001 - from hypothesis
    error = frames.read_outcome(frames.failure_frame(GenerationError(message * 500, retryable=retryable)))
    assert isinstance(error, GenerationError)
    assert error.retryable == retryable


@given(st.sampled_from(Kind), st.binary() | st.sampled_from([b"[" * 30_000, b'[1e999,"",""]', b"9" * 30_000]))
def test_any_bytes_are_an_outcome_or_refused(kind: Kind, payload: bytes) -> None:
    try:
        outcome = frames.read_outcome(Frame(kind, payload))
    except MalformedFrame:
        return
    assert isinstance(outcome, Step | Picture | GenerationError | str)


@given(st.binary(min_size=5))
def test_any_stream_is_frames_or_refused(sent: bytes) -> None:
    async def read() -> Frame:
        reader = reader_of(sent)
        reader.feed_eof()
        return await FrameReader(reader, FROM_PROCESS).read()

    try:
        frame = asyncio.run(read())
    except (MalformedFrame, asyncio.IncompleteReadError):
        return
    assert len(frame.payload) <= FROM_PROCESS[frame.kind]


@pytest.mark.parametrize("kind", sorted(FROM_PROCESS))
async def test_a_frame_that_is_too_long_is_refused_before_it_comes(kind: Kind) -> None:
    head = Frame(kind, b"").to_bytes()[:1] + (FROM_PROCESS[kind] + 1).to_bytes(4)
    with pytest.raises(MalformedFrame):
        await FrameReader(reader_of(head), FROM_PROCESS).read()


async def test_a_read_that_was_canceled_amid_a_frame_is_gone_on_with() -> None:
    """Else what comes next would be read from its middle."""
    sent = Frame(Kind.PICTURE, b"picture").to_bytes() + Frame(Kind.CANCELED, b"").to_bytes()
    reader = reader_of(sent[:8])
    received = FrameReader(reader, FROM_PROCESS)
    reading = asyncio.create_task(received.read())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    reader.feed_data(sent[8:])
    assert [await received.read(), await received.read()] == [(Kind.PICTURE, b"picture"), (Kind.CANCELED, b"")]


def test_every_end_may_come() -> None:
    assert set(FROM_PROCESS) >= ENDS
