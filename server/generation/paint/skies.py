"""What is above a landscape: the sky, its sun, moon, stars and clouds, and the weather that falls out of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.generation.paint.canvas import Painting
from server.generation.paint.fields import Plane, cloud, coverage, ridge, smooth


def paint_sky(painting: Painting) -> None:
    """Fill the canvas with the sky of the hour, and whatever hangs in it."""
    daylight, reading = painting.daylight, painting.reading
    descent = np.clip(painting.y / np.float32(painting.horizon), 0.0, 1.0)
    nearness = np.exp(-((painting.distance(painting.lamp) / np.float32(0.55)) ** 2))
    position = daylight.zenith + (daylight.horizon - daylight.zenith) * descent**1.25
    position = (
        position
        + nearness * np.float32(0.16 * daylight.glow)
        + cloud(painting.random, painting.shape, cells=1.5, slope=2.4, stretch=2.0) * np.float32(0.012)
    )
    painting.pixels[:] = painting.palette.shade(position.astype(np.float32))
    night = reading.time == "night"
    if night or "stars" in reading.features:
        paint_stars(painting, 900, 0.9, until=painting.horizon)
    if "aurora" in reading.features:
        paint_aurora(painting)
    if "moon" in reading.features or (night and "aurora" not in reading.features and "stars" not in reading.features):
        paint_moon(painting)
    elif not night and reading.time != "storm":
        paint_sun(painting)
    paint_clouds(painting, position.astype(np.float32))


def paint_sun(painting: Painting) -> None:
    """Add a sun and the glow around it."""
    away = painting.distance(painting.lamp)
    glow, light = painting.daylight.glow, painting.palette.colour(0.97)
    painting.shine(np.exp(away / np.float32(-0.07)) * np.float32(0.5 * glow), light)
    painting.shine(np.exp(away / np.float32(-0.28)) * np.float32(0.22 * glow), painting.palette.colour(0.75))
    disc = coverage(np.float32(0.052) - away, painting.height)
    painting.cover(disc, painting.palette.colour(1.0) * np.float32(1.15))


def paint_moon(painting: Painting) -> None:
    """Add a moon, full or not, with its seas and its halo."""
    random, (left, top) = painting.random, painting.lamp
    away, radius = painting.distance(painting.lamp), float(random.uniform(0.045, 0.07))
    painting.shine(np.exp(away / np.float32(-0.10)) * np.float32(0.30), painting.palette.colour(0.85))
    painting.shine(np.exp(away / np.float32(-0.35)) * np.float32(0.10), painting.palette.colour(0.7))
    seas = smooth(-0.4, 1.6, cloud(random, painting.shape, cells=14.0, slope=2.2))
    face = coverage(np.float32(radius) - away, painting.height)
    phase = float(random.uniform(0.35, 2.2)) * radius
    shade = painting.distance((left + phase * 0.8, top - phase * 0.35))
    lit = smooth(0.86, 1.12, shade / np.float32(radius)) if phase < 1.2 * radius else np.ones_like(face)
    colour = painting.palette.colour(0.98) * (np.float32(1.05) - np.float32(0.3) * seas)[..., None]
    painting.cover(face * lit, colour.astype(np.float32))


def paint_stars(painting: Painting, count: int, strength: float, until: float = 1.0) -> None:
    """Scatter stars down to a height, most of them faint and a few with a glow of their own."""
    random, height, width = painting.random, painting.height, painting.width
    amount = int(count * painting.aspect)
    x, y = random.uniform(0, width - 2, amount), random.uniform(0, (height - 2) * until, amount)
    power = np.minimum(0.06 * random.pareto(1.35, amount) + 0.05, 1.6) * strength * (1.0 - 0.75 * y / (height * until))
    warmth = random.uniform(0.0, 1.0, amount)[:, None]
    tint = (1.0 - warmth) * np.array([0.78, 0.88, 1.1]) + warmth * np.array([1.1, 0.92, 0.76])
    column, row = x.astype(int), y.astype(int)
    right, low = x - column, y - row
    for across, down, share in ((0, 0, (1 - right) * (1 - low)), (1, 0, right * (1 - low)),
                                (0, 1, (1 - right) * low), (1, 1, right * low)):  # fmt: skip
        np.add.at(painting.pixels, (row + down, column + across), (tint * (power * share)[:, None]).astype(np.float32))
    for place in np.argsort(-power)[: 14 + amount // 90]:
        _stamp_glow(painting, float(x[place]), float(y[place]), float(power[place]), tint[place])


def _stamp_glow(painting: Painting, x: float, y: float, power: float, tint: npt.NDArray[np.float64]) -> None:
    reach = max(6, painting.height // 48)
    left, top = max(int(x) - reach, 0), max(int(y) - reach, 0)
    part = painting.pixels[top : int(y) + reach + 1, left : int(x) + reach + 1]
    across = np.arange(left, left + part.shape[1]) - x
    down = (np.arange(top, top + part.shape[0]) - y)[:, None]
    square = across * across + down * down
    scale = painting.height / 768.0
    light = np.exp(-square / (1.6 * scale**2)) + 0.10 * np.exp(-np.sqrt(square) / (2.6 * scale))
    part += (np.maximum(light - 0.002, 0.0)[..., None] * tint * min(power, 1.0)).astype(np.float32)


def paint_clouds(painting: Painting, sky: Plane) -> None:
    """Add layers of cloud, lit from the side where the light is."""
    reading, random = painting.reading, painting.random
    heavy = reading.time == "storm" or "rain" in reading.features
    amount = 1.0 if heavy else -0.55 if reading.time == "night" else float(random.uniform(-0.25, 0.35))
    noise = cloud(random, painting.shape, cells=2.2, slope=1.75, stretch=2.6)
    toward = -1 if painting.lamp[0] < painting.aspect / 2 else 1
    slope = noise - np.roll(noise, (-painting.height // 60, -toward * painting.width // 50), axis=(0, 1))
    height = smooth(painting.horizon + 0.02, painting.horizon - 0.35, painting.y)
    density = smooth(0.2 - amount, 2.3 - amount, noise) * height
    nearness = np.exp(painting.distance(painting.lamp) / np.float32(-0.35))
    depth = -0.10 if heavy else 0.10
    position = sky + depth + np.float32(0.11) * np.clip(slope, -1.5, 1.5) + np.float32(0.22) * nearness
    painting.cover(density * np.float32(0.8), painting.palette.shade(position.astype(np.float32)))


def paint_aurora(painting: Painting) -> None:
    """Hang curtains of northern light into the sky."""
    random, palette = painting.random, painting.palette
    for layer in range(3):
        wave = ridge(random, painting.width, cells=1.2, slope=3.2)
        foot = np.float32(painting.horizon * (0.45 + 0.16 * layer)) + (wave - 0.5) * np.float32(0.34)
        rays = 0.35 + 0.65 * ridge(random, painting.width, cells=9.0, slope=1.5)
        rays = rays * (0.25 + 0.75 * ridge(random, painting.width, cells=2.0, slope=2.5))
        up = foot[None, :] - painting.y
        curtain = np.exp(-np.maximum(up, 0.0) / np.float32(0.16)) * smooth(-0.035, 0.02, up) * rays[None, :]
        crown = np.exp(-(((up - 0.22) / np.float32(0.16)) ** 2)) * rays[None, :]
        painting.shine((curtain * np.float32(0.55)).astype(np.float32), np.array([0.10, 0.95, 0.50], dtype=np.float32))
        painting.shine((crown * np.float32(0.16)).astype(np.float32), np.array([0.75, 0.20, 0.85], dtype=np.float32))
        painting.shine((curtain * np.float32(0.12)).astype(np.float32), palette.colour(0.85))


def paint_weather(painting: Painting) -> None:
    """Let rain, snow or mist come between us and the scene."""
    features = painting.reading.features
    if "mist" in features:
        noise = cloud(painting.random, painting.shape, cells=2.0, slope=2.0, stretch=3.5)
        band = np.exp(-(((painting.y - painting.horizon - 0.12) / np.float32(0.22)) ** 2))
        mask = smooth(-1.6, 1.8, noise) * band * np.float32(0.75)
        painting.cover(mask.astype(np.float32), painting.palette.colour(painting.daylight.horizon))
    if "rain" in features:
        _fall(painting, _RAIN)
    if "snowfall" in features or ("snow" in features and painting.reading.scene != "mountains"):
        _fall(painting, _SNOW)


@dataclass(frozen=True, slots=True)
class _Falling:
    """Soft short lines: so many in a square picture, their length (picture heights), width (pixels of 768), lean."""

    count: int
    length: float
    width: float
    lean: float
    strength: float


_RAIN = _Falling(count=420, length=0.075, width=0.9, lean=0.16, strength=0.16)
_SNOW = _Falling(count=520, length=0.0, width=2.2, lean=0.0, strength=0.75)


def _fall(painting: Painting, kind: _Falling) -> None:
    random, height, lean = painting.random, painting.height, kind.lean
    colour = painting.palette.colour(0.96) * np.float32(kind.strength)
    for _ in range(int(kind.count * painting.aspect)):
        near = float(random.uniform(0.25, 1.0)) ** 2
        thick = max(kind.width * (0.35 + near) * height / 768.0, 0.6)
        long, margin = kind.length * (0.4 + near) * height, int(thick * 2) + 2
        x, y = float(random.uniform(0, painting.width)), float(random.uniform(-long, height))
        left, top = max(int(x - lean * long) - margin, 0), max(int(y) - margin, 0)
        part = painting.pixels[top : max(int(y + long) + margin, 0), left : max(int(x) + margin, 0)]
        across = (np.arange(left, left + part.shape[1], dtype=np.float32) - np.float32(x))[None, :]
        down = (np.arange(top, top + part.shape[0], dtype=np.float32) - np.float32(y))[:, None]
        along = np.clip(down, 0.0, np.float32(long))
        square = (across + np.float32(lean) * along) ** 2 + (down - along) ** 2
        part += (np.exp(-square / np.float32(thick * thick)) * np.float32(0.3 + 0.7 * near))[..., None] * colour
