"""Colours: OKLab arithmetic, the palettes a picture can have, and those found in a reference image.

OKLab (https://bottosson.github.io/posts/oklab/) is lightness, green-red, blue-yellow. A straight line in it looks
straight to the eye, so that no blend turns muddy on its way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from server.generation.paint.fields import Pixels, Plane

Colours = npt.NDArray[np.float32]
"""A float32 array (…, 3) of colours; which space they are in is said beside it."""

_TABLE_SIZE = 4096

_TO_CONES = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]], dtype=np.float32)  # fmt: skip
_TO_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]], dtype=np.float32)  # fmt: skip
_FROM_LAB: Colours = np.linalg.inv(_TO_LAB).astype(np.float32)
_FROM_CONES: Colours = np.linalg.inv(_TO_CONES).astype(np.float32)


def linear_from_srgb(encoded: Colours) -> Colours:
    """Turn sRGB values 0..1, as files hold them, into linear light."""
    low, high = encoded / 12.92, ((encoded + 0.055) / 1.055) ** np.float32(2.4)
    return np.asarray(np.where(encoded <= 0.04045, low, high), dtype=np.float32)


def srgb_from_linear(light: Colours) -> Colours:
    """Turn linear light into sRGB values, cut to 0..1."""
    light = np.clip(light, 0.0, 1.0)
    low, high = light * 12.92, 1.055 * light ** np.float32(1.0 / 2.4) - 0.055
    return np.asarray(np.where(light <= 0.0031308, low, high), dtype=np.float32)


def oklab_from_linear(light: Colours) -> Colours:
    """Turn linear light into OKLab."""
    return np.asarray(np.cbrt(light @ _TO_CONES.T) @ _TO_LAB.T, dtype=np.float32)


def linear_from_oklab(lab: Colours) -> Colours:
    """Turn OKLab into linear light; what no screen can show is cut off at 0."""
    return np.asarray(np.maximum((lab @ _FROM_LAB.T) ** 3 @ _FROM_CONES.T, 0.0), dtype=np.float32)


def oklab_from_hex(code: str) -> Colours:
    """Return the OKLab colour (3,) of a code such as "ff8800"."""
    encoded = np.array([int(code[place : place + 2], 16) / 255.0 for place in (0, 2, 4)], dtype=np.float32)
    return oklab_from_linear(linear_from_srgb(encoded))


class Palette:
    """A ramp of colours from the deepest shadow (0) to the brightest light (1)."""

    def __init__(self, stops: Colours) -> None:
        """Take two or more OKLab colours (n, 3), evenly spaced, dark to light."""
        self.stops = stops

    @classmethod
    def from_codes(cls, codes: str) -> Palette:
        """Build a palette from colour codes with spaces between, dark to light."""
        return cls(np.stack([oklab_from_hex(code) for code in codes.split()]))

    @cached_property
    def _table(self) -> Colours:
        places = np.linspace(0.0, len(self.stops) - 1.0, _TABLE_SIZE)
        ramp = np.stack([np.interp(places, np.arange(len(self.stops)), stop) for stop in self.stops.T], axis=-1)
        kernel = np.hanning(_TABLE_SIZE // 6)  # corners in the ramp would show as bands
        padded = np.pad(ramp, ((len(kernel) // 2, len(kernel) - len(kernel) // 2 - 1), (0, 0)), mode="reflect",
                        reflect_type="odd")  # fmt: skip
        kernel /= kernel.sum()
        rounded = np.stack([np.convolve(channel, kernel, mode="valid") for channel in padded.T], axis=-1)
        return linear_from_oklab(rounded.astype(np.float32))

    def shade(self, position: Plane) -> Pixels:
        """Return the linear light at each position 0..1 (cut to that range)."""
        index = np.clip(position * np.float32(_TABLE_SIZE - 1), 0, _TABLE_SIZE - 1).astype(np.int32)
        return np.asarray(self._table.take(index, axis=0), dtype=np.float32)

    def colour(self, position: float) -> Colours:
        """Return the linear light (3,) at one position 0..1."""
        return self.shade(np.asarray(position, dtype=np.float32))


MOODS: dict[str, tuple[str, ...]] = {
    "dawn": ("1d2140 4b3f72 b56f92 f2a494 fbd3a8 fff3da", "1b2a41 3f5f7f 8fa5b8 e9b7a8 fbdcc0 fff6e6",
             "2a1f3d 6a4c7d c682a0 f4b6b0 fce0cc fff8ec"),
    "day": ("10263a 1f5673 3f8fb0 8cc4d8 d3ebee fffaf0", "132b2b 2a5d5a 5c9a8c a6cdb4 e1ecd0 fffbea",
            "1a2a4f 34599c 6f9bd1 aecdea e4eff6 fffdf5"),
    "sunset": ("170f2e 45194f 9a2c5f e2574c fb9f4e ffe3a0", "1a1433 4a2560 a63d74 ee6f5f fdb366 fff0b8",
               "0f1a33 2d3561 7b3f72 d8576b f99e5c ffe9b0", "1b0f1c 5c1f2f b23a2e ec7b31 fbbd4f fff0c0"),
    "night": ("050914 0d1b38 1d3a66 3f6c9c 8fb6d0 f3f3dc", "080718 19153d 3a2c70 6b58a8 ab9fd6 f7efe4",
              "04100f 0a2a30 15525a 35868a 8cc3b6 f2f6dd"),
    "storm": ("0b0f14 1c2730 3a4a56 66777f 9fabab e6e6da", "0d0e16 242638 454a63 757b93 abb0bd eceae0"),
}  # fmt: skip
"""Palettes for each time of day and weather, as `Palette.from_codes` takes them."""

CHOICE: tuple[str, ...] = (
    "0c0f2b 2a2170 7a2a92 e0457b ff8f5c ffe7a3", "06191f 0c4a54 1f8a84 7cc7a1 e8e3a0 fff8e0",
    "160a1e 4a1547 a3265a ee5a4f f9a66c fdebd0", "0a1730 1a4480 3f87c4 9cc9dd f3d9b1 fff6e4",
    "10130d 2f4a2a 6a8a3d b9bf5a f0dc8c fffbe0", "1a0e0a 5a2417 b0502a e59a4b f6d590 fffae6",
    "0b0b1f 27306b 5a63c0 b18be0 f4b8d8 fff1ea", "071a17 12544a 3aa17e a9d6a0 fbe3a6 fff9ea",
    "120a24 3c1a6e 8b3fb0 d978b8 ffbfa8 fff3d9", "0d1418 28404d 5f7f8a b9a88f ecd2b0 fff7ea",
)  # fmt: skip
"""Palettes for prompts that name neither a colour nor a time."""

SUBJECTS: dict[str, tuple[str, ...]] = {
    "forest": ("07140f 153528 2f6148 7a9d76 cfd8a8 fbf6d8", "0a1518 1c3a3c 40695f 8aa58c d5d6b4 fffbe6",
               "160d08 4a2413 99481f d88a3a f2c777 fff3cf"),
    "sea": ("06182c 0d3d5c 1f7a94 6bb8bd c9e4d3 fffaea", "0a1836 1d3f78 4479b0 92b8d6 efd9c0 fff8ea"),
    "desert": ("21101a 5e2a2c a8532f dd934f f3c98b fff1d2", "1b1526 56304a a85c52 e0a06a f6d3a0 fff5de"),
    "flower": ("12101f 4b1440 a81f5c ea5c86 fcb0b0 fff0e2", "0e1428 33287a 7c4fc4 c48be8 f5c6e6 fff5f0",
               "161008 6b2413 d04a1c f98f2c fdcf5a fff6cf", "0d1a1a 1f4a4a a0525f ee8f8a fbd0b8 fff6ea"),
    "cosmos": ("030510 14123c 4b1f78 b03a8a ff8f70 fff0cc", "02060f 0a2044 155a86 35a7b0 b6e3c6 fffbe6",
               "050408 2a0f2c 7a1f3e d2553a f8b060 fff3d0"),
    "city": ("070a18 161f42 3b3470 8f4f88 f08a78 ffe2ae", "080c14 132a40 25566f 5e93a0 d0c9a0 fff4d0"),
}  # fmt: skip
"""Palettes for prompts that name a subject but neither a colour nor a time."""


def palette_of_colours(codes: Sequence[str]) -> Palette:
    """Build a ramp around colours that a prompt named: cool shadows below them, warm light above."""
    named = sorted((oklab_from_hex(code) for code in codes), key=lambda lab: float(lab[0]))
    if len(named) == 1:
        named = _around(named[0])
    darkest, lightest = named[0], named[-1]
    shadow = [_turned(darkest, 0.10, 0.45, -0.6), _turned(darkest, min(0.28, float(darkest[0])), 0.85, -0.35)]
    light = [_turned(lightest, max(0.90, float(lightest[0])), 0.55, 0.35), _turned(lightest, 0.985, 0.15, 0.6)]
    return Palette(np.stack(shadow + named + light).astype(np.float32))


def _around(lab: Colours) -> list[Colours]:
    """Return a colour between its own darker and lighter neighbours."""
    lightness = float(lab[0])
    lighter = lightness + (0.93 - lightness) * 0.5
    return [_turned(lab, lightness * 0.72, 1.0, -0.18), lab, _turned(lab, lighter, 0.9, 0.2)]


def _turned(lab: Colours, lightness: float, strength: float, turn: float) -> Colours:
    """Return a colour of the same family: other lightness, strength times its chroma, hue turned by radians at most."""
    chroma = math.hypot(float(lab[1]), float(lab[2])) * strength
    hue = math.atan2(float(lab[2]), float(lab[1]))
    goal = math.radians(-80.0 if turn < 0 else 90.0)  # shadows go to blue, light to yellow
    away = math.remainder(goal - hue, math.tau)
    hue += math.copysign(min(abs(turn), abs(away)), away)
    return np.array([lightness, chroma * math.cos(hue), chroma * math.sin(hue)], dtype=np.float32)


def dominant_colours(encoded: Colours, count: int = 6) -> Colours:
    """Find the few colours an image is made of, by k-means from evenly spread starts.

    Args:
        encoded: sRGB values 0..1 of some thousand pixels (n, 3).
        count: how many colours.

    Returns:
        OKLab colours (count, 3), dark to light.
    """
    points = oklab_from_linear(linear_from_srgb(encoded))
    order = points[np.argsort(points[:, 0], kind="stable")]
    centres = order[np.linspace(0, len(order) - 1, 2 * count + 1).astype(int)[1::2]]
    for _ in range(12):
        nearest = ((points[:, None, :] - centres[None]) ** 2).sum(axis=-1).argmin(axis=1)
        groups = [points[nearest == place] for place in range(count)]
        centres = np.stack(
            [group.mean(axis=0) if len(group) else centre for group, centre in zip(groups, centres, strict=True)]
        )
    return np.asarray(centres[np.argsort(centres[:, 0], kind="stable")], dtype=np.float32)


def palette_of_reference(encoded: Colours) -> Palette:
    """Build a ramp from an image's dominant colours, with room for a shadow and a light of the same family."""
    found = dominant_colours(encoded)
    shadow = _turned(found[0], min(float(found[0][0]), 0.14), 0.6, -0.2)
    light = _turned(found[-1], max(float(found[-1][0]), 0.93), 0.35, 0.2)
    return Palette(np.concatenate([shadow[None], found, light[None]]).astype(np.float32))
