"""What every maker of pictures promises, whatever does the work: this process, a GPU elsewhere, a paid service.

    pieces = generator.generate(request)
    Step, Step, Step, …, Picture            or a GenerationError instead of what was still to come

The worker reads the pieces one by one, tells the waiting person about each step, and closes the generator when the
task is canceled.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from server.errors import GenerationError

SIZES: dict[str, tuple[int, int]] = {
    "512x512": (512, 512),
    "768x768": (768, 768),
    "1024x1024": (1024, 1024),
    "768x512": (768, 512),
    "512x768": (512, 768),
}
"""The sizes a client may ask for by name, as (width, height) in pixels."""

MAX_PICTURE_BYTES = 64 * 1024 * 1024
"""The largest picture that is kept, in bytes."""

DEFAULT_SIZE = "768x768"
"""The size of a picture whose request names none."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """All that a picture depends on; equal requests may give equal pictures.

    Attributes:
        task_id: for logs and for remote services that want a name; never part of the picture.
        type: "basic" or "advanced".
        prompt: 1..4000 characters.
        seed: 0..2**63-1.
        size: width and height in pixels, one of `SIZES`.
        reference: a PNG that went through `clean_reference`, what "advanced" builds on, or None.
    """

    task_id: str
    type: str
    prompt: str
    seed: int
    size: tuple[int, int]
    reference: bytes | None


@dataclass(frozen=True, slots=True)
class Step:
    """Where the work is now.

    Attributes:
        progress: the share that is done, 0..1; never less than in an earlier step.
        stage: one word or two, such as "composing".
        message: a sentence for the person who waits.
    """

    progress: float
    stage: str
    message: str


@dataclass(frozen=True, slots=True)
class Picture:
    """The finished picture.

    Attributes:
        content: the bytes of a PNG, JPEG or WebP file. Which of them, and whether it is one, is told by the content.
    """

    content: bytes


class Generator(Protocol):
    """Makes pictures, any number of them at a time.

    Attributes:
        name: what logs and metrics call it, the same for the life of the process.
    """

    name: str

    async def ready(self) -> None:
        """Wait until work can begin. A worker claims no task before, so waiting costs none of its attempts."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Step | Picture, None]:
        """Yield a Step as each piece of work begins or ends, then exactly one Picture, last.

        Calling it does nothing yet: the work starts with the first `anext` and rests while its caller holds a piece,
        so a slow caller slows the work down and nothing piles up. It runs in a process of its own, so it may block; one
        that doesn't (what takes long runs in an executor or elsewhere) can be canceled without being killed.

        To cancel, between two pieces: `await pieces.aclose()`. It frees what the request holds (a remote job, a place
        in a queue) and nothing of that request runs afterwards. A generator that is at work can't be closed (Python
        raises RuntimeError); to stop it there, cancel the task that awaits the next piece. It ends by CancelledError
        then, frees the same things, and at most the one computation already begun runs to its end, unseen.
        A caller that stops reading early for any other reason closes too: `async with aclosing(pieces)`.

        Raises:
            GenerationError: the picture can't be made. Its message is written for the task's owner, and `retryable`
                says whether another attempt with the same request may succeed. Nothing follows it. Errors of a
                library or a remote service are turned into this one; any other exception is a defect.
        """
        ...


async def hold_to_contract(pieces: AsyncGenerator[Step | Picture, None]) -> AsyncGenerator[Step | Picture, None]:
    """Pass the pieces of `Generator.generate` on, and close it at the end however that comes.

    The picture is passed on only once the generator has ended, so that it is known to be the only one.

    Raises:
        GenerationError: the progress went back or out of 0..1, or there was not exactly one picture, last.
            Not retryable: the generator has a defect.
    """
    progress, picture = 0.0, None
    async with aclosing(pieces):
        async for piece in pieces:
            if picture is not None:
                raise GenerationError("The generator went on after its picture", retryable=False)
            if isinstance(piece, Picture):
                picture = piece
                continue
            if not progress <= piece.progress <= 1.0:
                raise GenerationError("The generator reported an impossible progress", retryable=False)
            progress = piece.progress
            yield piece
    if picture is None:
        raise GenerationError("The generator ended without a picture", retryable=False)
    yield picture
