"""The picture while it is being made: its pixels, its light, and what steers them."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from server.generation.paint.fields import Line, Pixels, Plane, blurred, coordinates, resized
from server.generation.paint.palettes import Colours, Palette, linear_from_srgb
from server.generation.paint.prompts import Reading


@dataclass(frozen=True, slots=True)
class Daylight:
    """Where on the palette's ramp (0 dark, 1 light) the parts of a landscape lie.

    Attributes:
        zenith, horizon: the sky above and at the horizon.
        far, near: the ground in the distance and at our feet.
        glow: how strongly the sun or moon shines.
    """

    zenith: float
    horizon: float
    far: float
    near: float
    glow: float


DAYLIGHT: dict[str, Daylight] = {
    "dawn": Daylight(0.30, 0.80, 0.66, 0.07, 0.50),
    "day": Daylight(0.42, 0.80, 0.68, 0.10, 0.38),
    "sunset": Daylight(0.16, 0.80, 0.60, 0.03, 0.75),
    "night": Daylight(0.07, 0.46, 0.40, 0.02, 0.40),
    "storm": Daylight(0.16, 0.66, 0.52, 0.04, 0.20),
}
"""The light of every time that a prompt can name."""


@dataclass(frozen=True, slots=True)
class Guide:
    """What a reference image says about the picture.

    Attributes:
        sample: sRGB values 0..1 of some thousand of its pixels (n, 3).
        light: its colours as linear light, soft, at the picture's size.
        lightness: its brightness 0..1 from its darkest to its brightest part, at the picture's size.
    """

    sample: Colours
    light: Pixels
    lightness: Plane

    @classmethod
    def of(cls, reference: bytes, width: int, height: int) -> Guide:
        """Read a reference image for a picture of this size."""
        with Image.open(io.BytesIO(reference), formats=("PNG",)) as image:
            flat = Image.new("RGBA", image.size, "white")
            flat.alpha_composite(image.convert("RGBA"))
        whole = flat.convert("RGB")
        encoded = _encoded(whole.resize((64, 64), Image.Resampling.BOX))
        seen = ImageOps.fit(whole, (96 * width // height, 96), Image.Resampling.BOX)  # the middle, undistorted
        soft = linear_from_srgb(_encoded(seen.filter(ImageFilter.GaussianBlur(1.6))))
        light = np.stack([resized(soft[..., channel], width, height) for channel in range(3)], axis=-1)
        grey = np.sqrt(np.maximum(soft @ np.array([0.2126, 0.7152, 0.0722], dtype=np.float32), 0.0))
        low, high = np.percentile(grey, [2, 98])
        lightness = resized(np.clip((grey - low) / max(high - low, 0.02), 0.0, 1.0), width, height)
        return cls(encoded.reshape(-1, 3), np.maximum(light, 0.0), np.clip(lightness, 0.0, 1.0))

    def brightest(self) -> tuple[float, float]:
        """Return x and y (picture heights) of the centre of its brightest part."""
        height, width = self.lightness.shape
        x, y = coordinates(width, height)
        weight = self.lightness**8
        total = float(weight.sum()) + 1e-6
        return float((weight * x).sum()) / total, float((weight * y).sum()) / total

    def skyline(self) -> Line:
        """Return for each column the y around which it changes most from light to dark."""
        height, width = self.lightness.shape
        _, y = coordinates(width, height)
        change = np.abs(np.gradient(self.lightness, axis=0)) ** 2 + np.float32(1e-9)
        line = (change * y).sum(axis=0) / change.sum(axis=0)
        soft = np.convolve(np.pad(line, width // 16, mode="edge"), np.hanning(width // 8 + 1), mode="valid")
        return np.asarray(soft / np.hanning(width // 8 + 1).sum(), dtype=np.float32)[:width]


def _encoded(image: Image.Image) -> Colours:
    return np.asarray(image, dtype=np.float32) / np.float32(255.0)


@dataclass(slots=True)
class Painting:
    """A picture in the making. A scene's functions change it in place, one after another.

    Attributes:
        width, height: in pixels.
        random: the picture's only source of chance.
        reading: what the prompt asked for.
        palette: its colours.
        daylight: where on the palette the parts of a landscape lie.
        rich: whether to take the time for more layers ("advanced").
        guide: the reference image, or None.
        pixels: what is painted so far, as linear light.
        horizon: the y of the horizon, in picture heights.
        lamp: x and y of the sun, the moon, or whatever the light comes from.
    """

    width: int
    height: int
    random: np.random.Generator
    reading: Reading
    palette: Palette
    daylight: Daylight
    rich: bool
    guide: Guide | None
    pixels: Pixels = field(init=False)
    x: Plane = field(init=False)
    y: Plane = field(init=False)
    horizon: float = field(init=False)
    lamp: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        """Stretch the canvas and decide where the light comes from."""
        self.pixels = np.zeros((self.height, self.width, 3), dtype=np.float32)
        self.x, self.y = coordinates(self.width, self.height)
        self.horizon = float(self.random.uniform(0.54, 0.66))
        self.lamp = float(self.random.uniform(0.22, 0.78)) * self.aspect, float(self.random.uniform(0.2, 0.34))
        if self.reading.time in ("sunset", "dawn"):
            self.lamp = self.lamp[0], self.horizon - float(self.random.uniform(0.06, 0.2))
        if self.guide is not None:
            self.lamp = self.guide.brightest()
            self.horizon = float(np.clip(self.guide.skyline().mean(), 0.42, 0.7))

    @property
    def aspect(self) -> float:
        """Return the width in picture heights."""
        return self.width / self.height

    @property
    def shape(self) -> tuple[int, int]:
        """Return height and width in pixels, as NumPy wants them."""
        return self.height, self.width

    def distance(self, place: tuple[float, float]) -> Plane:
        """Return how far every pixel is from a place."""
        return np.asarray(np.hypot(self.x - np.float32(place[0]), self.y - np.float32(place[1])), dtype=np.float32)

    def cover(self, mask: Plane, colour: Colours, top: int = 0, left: int = 0) -> None:
        """Paint a colour, or pixels of the mask's size, where the mask is 1; the mask starts at (top, left)."""
        part = self.pixels[top : top + mask.shape[0], left : left + mask.shape[1]]
        part += (colour - part) * mask[..., None]

    def shine(self, mask: Plane, colour: Colours) -> None:
        """Add light of a colour, as much as the mask says."""
        self.pixels += mask[..., None] * colour

    def bend(self, line: Line, share: float) -> Line:
        """Let a line follow the reference's skyline, if there is one."""
        if self.guide is None:
            return line
        skyline = self.guide.skyline()
        return np.asarray(line + (skyline - skyline.mean()) * np.float32(share), dtype=np.float32)


def bloom(painting: Painting, strength: float) -> None:
    """Let what is bright shine into what is beside it."""
    excess = np.maximum(painting.pixels - np.float32(0.55), 0.0)
    for cells, share in ((96, 0.5), (32, 0.35), (12, 0.25)):
        painting.pixels += np.maximum(blurred(excess, cells), 0.0) * np.float32(share * strength)


def follow_guide(painting: Painting, share: float) -> None:
    """Pull colour and brightness of each region towards the reference's; details keep their contrast."""
    if painting.guide is None:
        return
    own = np.maximum(blurred(painting.pixels, 7), 0.0) + np.float32(0.012)
    wanted = np.maximum(blurred(painting.guide.light, 7), 0.0) + np.float32(0.012)
    painting.pixels *= np.clip((wanted / own) ** np.float32(share), 0.2, 5.0)
