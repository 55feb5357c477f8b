"""The contract between a generator and the worker that reads it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from server.errors import GenerationError
from server.generation.generator import DEFAULT_SIZE, SIZES, Picture, Step, hold_to_contract

PICTURE = Picture(b"png")


class Recital:
    """A generator that plays the given pieces, and remembers whether it was closed."""

    def __init__(self, *pieces: Step | Picture | Exception) -> None:
        self.pieces = pieces
        self.ended = False

    async def play(self) -> AsyncGenerator[Step | Picture, None]:
        try:
            for piece in self.pieces:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.ended = True


def step(progress: float) -> Step:
    return Step(progress, "composing", "Composing.")


async def read(recital: Recital) -> list[Step | Picture]:
    return [piece async for piece in hold_to_contract(recital.play())]


def test_the_default_size_is_one_of_the_sizes() -> None:
    assert SIZES[DEFAULT_SIZE] == (768, 768)


def test_sizes_are_named_after_width_and_height() -> None:
    assert all(name == f"{width}x{height}" for name, (width, height) in SIZES.items())


async def test_a_good_generator_passes_unchanged() -> None:
    pieces = (step(0.0), step(0.5), step(0.5), step(1.0), PICTURE)
    assert await read(Recital(*pieces)) == list(pieces)


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        (step(0.0), step(1.0)),
        (PICTURE, PICTURE),
        (PICTURE, step(1.0)),
        (step(0.5), step(0.4), PICTURE),
        (step(1.1), PICTURE),
        (step(-0.1), PICTURE),
        (step(float("nan")), PICTURE),
    ],
)
async def test_a_generator_that_breaks_the_rules_fails_for_good(pieces: tuple[Step | Picture, ...]) -> None:
    recital = Recital(*pieces)
    with pytest.raises(GenerationError) as caught:
        await read(recital)
    assert not caught.value.retryable
    assert recital.ended


async def test_the_generators_own_error_comes_through() -> None:
    with pytest.raises(GenerationError, match="busy") as caught:
        await read(Recital(step(0.0), GenerationError("busy")))
    assert caught.value.retryable


async def test_closing_the_checked_pieces_closes_the_generator() -> None:
    recital = Recital(step(0.0), step(0.5), PICTURE)
    pieces = hold_to_contract(recital.play())
    await anext(pieces)
    await pieces.aclose()
    assert recital.ended
