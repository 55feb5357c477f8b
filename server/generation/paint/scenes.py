"""Every scene there is, and how a request becomes one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from server.generation.generator import GenerationRequest
from server.generation.paint.canvas import DAYLIGHT, Guide, Painting
from server.generation.paint.landscapes import light_landscape, paint_desert, paint_mountains, paint_sea
from server.generation.paint.palettes import (
    CHOICE,
    MOODS,
    SUBJECTS,
    Palette,
    palette_of_colours,
    palette_of_reference,
)
from server.generation.paint.patterns import (
    light_blossoms,
    light_deep,
    light_folds,
    paint_blossoms,
    paint_deep,
    paint_flow,
    paint_folds,
    paint_garden,
    paint_nebula,
)
from server.generation.paint.prompts import Reading, read_prompt
from server.generation.paint.silhouettes import light_city, light_forest, paint_city, paint_forest
from server.generation.paint.skies import paint_sky

Stroke = Callable[[Painting], None]
"""Something that changes a painting in place; blocks for some tenths of a second."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What is painted, in this order.

    Attributes:
        background: fills the whole canvas.
        shapes: what the picture shows.
        light: what lies over it: light, air, weather.
    """

    background: Stroke
    shapes: Stroke
    light: Stroke


SCENES: dict[str, Scene] = {
    "mountains": Scene(paint_sky, paint_mountains, light_landscape),
    "sea": Scene(paint_sky, paint_sea, light_landscape),
    "desert": Scene(paint_sky, paint_desert, light_landscape),
    "city": Scene(paint_sky, paint_city, light_city),
    "forest": Scene(paint_sky, paint_forest, light_forest),
    "cosmos": Scene(paint_deep, paint_nebula, light_deep),
    "flower": Scene(paint_garden, paint_blossoms, light_blossoms),
    "flow": Scene(paint_flow, paint_folds, light_folds),
}
"""The scenes by the names that `read_prompt` gives them."""

_USUAL_TIMES: dict[str, tuple[str, ...]] = {
    "city": ("night", "sunset"),
    "forest": ("dawn", "day"),
    "desert": ("sunset", "day", "dawn"),
    "sea": ("day", "sunset", "dawn"),
}


def begin_painting(request: GenerationRequest) -> Painting:
    """Read a request and stretch the canvas for it; the same request always begins the same."""
    reading, random = read_prompt(request.prompt), _chance(request)
    width, height = request.size
    guide = Guide.of(request.reference, width, height) if request.reference is not None else None
    if guide is not None and not reading.known:
        reading = replace(reading, scene="flow")  # nothing else asked for: the reference itself is the subject
    palette, time = _palette_and_time(reading, guide, random)
    reading = replace(reading, time=time)
    return Painting(width, height, random, reading, palette, DAYLIGHT[time], request.type == "advanced", guide)


def _chance(request: GenerationRequest) -> np.random.Generator:
    """Return the picture's own source of chance, which depends on everything that was asked and on nothing else."""
    digest = hashlib.sha256()
    for part in (request.prompt, str(request.seed), request.type, "{}x{}".format(*request.size)):
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    digest.update(request.reference or b"")
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest.digest(), "big")))


def _palette_and_time(reading: Reading, guide: Guide | None, random: np.random.Generator) -> tuple[Palette, str]:
    usual = _USUAL_TIMES.get(reading.scene, ("dawn", "day", "sunset"))
    time = reading.time or usual[int(random.integers(len(usual)))]
    subject = SUBJECTS.get(reading.scene)
    choice = CHOICE + MOODS[time]
    if reading.time and reading.scene not in ("flower", "cosmos"):
        choice = MOODS[time]
    elif subject is not None:
        choice = subject
    codes = choice[int(random.integers(len(choice)))]
    if guide is not None:
        return palette_of_reference(guide.sample), time
    return palette_of_colours(reading.colours) if reading.colours else Palette.from_codes(codes), time
