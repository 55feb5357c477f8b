"""The generator that needs neither a network nor a graphics card: it paints, with nothing but NumPy and Pillow.

Rehearsal words, for operators who want to see how a failure looks from end to end: a prompt that contains `[fail]`
fails for good at the third step, one with `[flaky]` fails at the second step in a way that a retry may heal (each
retry fails again, until the attempts are used up).
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image

from server.errors import GenerationError
from server.generation.generator import GenerationRequest, Picture, Step
from server.generation.paint.canvas import Painting, bloom, follow_guide
from server.generation.paint.palettes import srgb_from_linear
from server.generation.paint.scenes import SCENES, begin_painting

_Result = TypeVar("_Result")

_STEPS = (
    Step(0.0, "reading", "Reading the prompt and choosing the colours."),
    Step(0.2, "composing", "Composing the background."),
    Step(0.4, "shaping", "Painting what the picture shows."),
    Step(0.6, "lighting", "Adding light, air and texture."),
    Step(0.8, "finishing", "Developing the picture."),
)


class ProceduralGenerator:
    """Paints a picture out of the words of its prompt, in five steps.

    Equal requests (their task ids apart) give equal bytes, with the same NumPy and Pillow on the same kind of machine.
    """

    name = "procedural"

    def __init__(self, step_seconds: float, executor: Executor) -> None:
        """Take what it works with.

        Args:
            step_seconds: how long each of the five steps lasts at least; 0 is as fast as possible.
            executor: where the painting is computed. It stays its owner's, who shuts it down.
        """
        self._step_seconds = step_seconds
        self._executor = executor

    async def ready(self) -> None:
        """Return at once."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step | Picture, None]:
        """Yield the five steps as each begins, then the picture as a PNG; see `Generator.generate`.

        Raises:
            GenerationError: the prompt contains a rehearsal word.
        """
        yield _STEPS[0]
        painting = await self._run(begin_painting, request)
        scene = SCENES[painting.reading.scene]
        yield _STEPS[1]
        _rehearse(request.prompt, "[flaky]", retryable=True)
        await self._run(scene.background, painting)
        yield _STEPS[2]
        _rehearse(request.prompt, "[fail]", retryable=False)
        await self._run(scene.shapes, painting)
        yield _STEPS[3]
        await self._run(_light, painting)
        yield _STEPS[4]
        yield Picture(await self._run(_develop, painting))

    async def _run(self, work: Callable[..., _Result], subject: GenerationRequest | Painting) -> _Result:
        """Compute in the executor, then rest for what is left of the step's time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._step_seconds
        result = await loop.run_in_executor(self._executor, work, subject)
        if (left := end - loop.time()) > 0:
            await asyncio.sleep(left)
        return result


def make(step_seconds: float) -> ProceduralGenerator:
    """Return one that has a process to itself."""
    return ProceduralGenerator(step_seconds, ThreadPoolExecutor(1, thread_name_prefix="generator"))


def _rehearse(prompt: str, word: str, *, retryable: bool) -> None:
    if word in prompt:
        raise GenerationError(f"The prompt asked for this failure with {word}.", retryable=retryable)


def _light(painting: Painting) -> None:
    SCENES[painting.reading.scene].light(painting)
    follow_guide(painting, 0.5)
    bloom(painting, 0.5)


def _develop(painting: Painting) -> bytes:
    """Turn light into a PNG: a soft shoulder instead of burnt whites, darker corners, a film's grain."""
    light = painting.pixels
    away = painting.distance((painting.aspect / 2, 0.5)) / np.float32(np.hypot(painting.aspect, 1.0) / 2)
    light *= (1.0 - np.float32(0.30) * away**3)[..., None]
    knee = np.float32(0.75)
    over = np.maximum(light - knee, 0.0)
    light = np.minimum(light, knee) + over / (1.0 + over / (1.0 - knee))
    encoded = srgb_from_linear(light) * np.float32(255.0)
    grain = painting.random.standard_normal(painting.shape, dtype=np.float32) * np.float32(1.3)
    grain = grain + painting.random.random(painting.shape, dtype=np.float32)  # and dither, against bands
    eight_bits = np.clip(encoded + grain[..., None], 0.0, 255.0).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(eight_bits).save(file, "PNG", compress_level=3)
    return file.getvalue()
