"""Scenes without a horizon: deep space, a blossom, and pure flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from server.generation.paint.canvas import Painting
from server.generation.paint.fields import Plane, cloud, coverage, sample, smooth
from server.generation.paint.skies import paint_stars

_GOLDEN_ANGLE = math.pi * (3.0 - math.sqrt(5.0))


def warped(painting: Painting, noise: Plane, reach: float, cells: float, slope: float = 2.0) -> Plane:
    """Read a plane through moving glass: every place is shifted by up to about `reach` picture heights."""
    across = cloud(painting.random, painting.shape, cells=cells, slope=slope) * np.float32(reach * painting.height)
    down = cloud(painting.random, painting.shape, cells=cells, slope=slope) * np.float32(reach * painting.height)
    x = painting.x * np.float32(painting.height) + across
    y = painting.y * np.float32(painting.height) + down
    return sample(noise, x, y)


def _guided(painting: Painting, noise: Plane, share: float) -> Plane:
    """Give a noise plane (deviation 1) the reference's light and dark parts, if there is a reference."""
    if painting.guide is None:
        return noise
    drawn = (painting.guide.lightness - np.float32(0.5)) * np.float32(3.0)
    across = cloud(painting.random, painting.shape, cells=2.5, slope=3.2) * np.float32(0.022 * painting.height)
    x = np.clip(painting.x * painting.height + across, 0, painting.width - 1)
    y = np.clip(painting.y * painting.height - across, 0, painting.height - 1)
    return np.asarray(noise * (1.0 - share) + sample(drawn, x, y) * share, dtype=np.float32)


def paint_deep(painting: Painting) -> None:
    """Fill the canvas with the dark between the stars."""
    haze = cloud(painting.random, painting.shape, cells=1.4, slope=2.6)
    painting.pixels[:] = painting.palette.shade(np.float32(0.05) + np.float32(0.035) * haze)
    paint_stars(painting, 2600, 0.55, until=1.0)


def paint_nebula(painting: Painting) -> None:
    """Lay glowing gas over the stars, dark dust over the gas, and bright young stars over all."""
    gas = warped(painting, cloud(painting.random, painting.shape, cells=2.2, slope=1.45), 0.085, 2.0, 1.9)
    band = _band(painting)
    gas = _guided(painting, gas * np.float32(0.62) + band, 0.6)
    dust = warped(painting, cloud(painting.random, painting.shape, cells=3.2, slope=1.35), 0.05, 2.5)
    density = smooth(-0.9, 2.3, gas)
    colour = cloud(painting.random, painting.shape, cells=1.3, slope=2.4)
    position = np.float32(0.14) + np.float32(0.62) * density + np.float32(0.15) * colour
    shadow = smooth(0.35, 1.9, dust + band * np.float32(0.25))
    veil = np.clip(density * np.float32(1.25), 0.0, 1.0) * (1.0 - np.float32(0.72) * shadow)
    painting.shine(
        (veil**1.35 * np.float32(0.85)).astype(np.float32), painting.palette.shade(position.astype(np.float32))
    )
    painting.shine((smooth(1.0, 2.8, gas) * veil * np.float32(0.22)).astype(np.float32), painting.palette.colour(0.95))
    if painting.random.random() < 0.45 or "moon" in painting.reading.features:
        _paint_planet(painting)


def _band(painting: Painting) -> Plane:
    """Return a soft river across the canvas, +1.1 in its middle, negative far away."""
    tilt = float(painting.random.uniform(-0.7, 0.7))
    middle = painting.aspect / 2 + float(painting.random.uniform(-0.12, 0.12))
    x, y = painting.x - np.float32(middle), painting.y - np.float32(0.5)
    across = y * np.float32(math.cos(tilt)) - x * np.float32(math.sin(tilt))
    return np.asarray(2.0 * np.exp(-((across / np.float32(0.26)) ** 2)) - 0.9, dtype=np.float32)


def _paint_planet(painting: Painting) -> None:
    random, palette = painting.random, painting.palette
    radius = float(random.uniform(0.09, 0.19))
    centre = float(random.uniform(0.2, 0.8)) * painting.aspect, float(random.uniform(0.25, 0.75))
    x = (painting.x - np.float32(centre[0])) / np.float32(radius)
    y = (painting.y - np.float32(centre[1])) / np.float32(radius)
    square = x * x + y * y
    z = np.sqrt(np.maximum(1.0 - square, 0.0))
    turn = float(random.uniform(-2.6, -0.5))
    lit = np.clip(x * math.cos(turn) * 0.8 + y * math.sin(turn) * 0.8 + z * 0.45, 0.0, 1.0)
    belts = cloud(random, painting.shape, cells=9.0, slope=1.7, stretch=5.0)
    stripes = np.sin(y * np.float32(9.0) + belts * np.float32(0.8))
    tone = np.float32(0.5) + np.float32(0.08) * stripes + np.float32(0.04) * belts
    face = palette.shade(tone.astype(np.float32)) * (lit**1.1 * np.float32(1.15) + np.float32(0.012))[..., None]
    away = painting.distance(centre)
    painting.cover(coverage(np.float32(radius) - away, painting.height), face.astype(np.float32))
    rim = np.exp(-np.abs(away - np.float32(radius)) / np.float32(0.010)) * np.clip(
        x * math.cos(turn) + y * math.sin(turn) + 0.25, 0.0, 1.0
    )
    painting.shine((rim * np.float32(0.32)).astype(np.float32), palette.colour(0.85))


def light_deep(painting: Painting) -> None:
    """Set the nearest stars in front of everything."""
    paint_stars(painting, 260, 1.0, until=1.0)


def paint_flow(painting: Painting) -> None:
    """Let one colour run softly into another, as the ground of it all."""
    tone = cloud(painting.random, painting.shape, cells=1.2, slope=2.8)
    painting.pixels[:] = painting.palette.shade(np.float32(0.5) + np.float32(0.12) * tone)


def paint_folds(painting: Painting) -> None:
    """Pour folded colour over the canvas and light it from the side."""
    slope = float(painting.random.uniform(2.9, 3.6))
    first = cloud(painting.random, painting.shape, cells=float(painting.random.uniform(1.2, 2.0)), slope=slope)
    reach = float(painting.random.uniform(0.13, 0.2))
    folded = warped(painting, first, reach, 1.5, 3.0)
    folded = warped(painting, folded, reach * 0.4, 2.6, 3.0)
    height = _guided(painting, folded, 0.62)
    tint = cloud(painting.random, painting.shape, cells=1.2, slope=2.8)
    lines = np.sin(height * np.float32(painting.random.uniform(7.0, 13.0)) + tint)
    position = np.float32(0.5) + np.float32(0.235) * height + np.float32(0.035) * lines + np.float32(0.05) * tint
    painting.cover(np.full(painting.shape, 0.9, dtype=np.float32), painting.palette.shade(position.astype(np.float32)))
    _light_relief(painting, (height * np.float32(0.9) + lines * np.float32(0.05)).astype(np.float32))


def _light_relief(painting: Painting, relief: Plane) -> None:
    """Light a plane as if it were silk: a soft side and a shine along the folds."""
    strength = np.float32(painting.height * 0.05)
    down, across = np.gradient(relief)
    across, down = across * strength, down * strength
    length = np.sqrt(across * across + down * down + 1.0)
    facing = (-0.50 * across - 0.55 * down + 0.67) / length
    painting.pixels *= np.clip(0.42 + 0.85 * facing, 0.15, 1.5).astype(np.float32)[..., None]
    half = (-0.28 * across - 0.31 * down + 0.91) / length
    painting.shine((np.clip(half, 0.0, 1.0) ** 60 * np.float32(0.22)).astype(np.float32), painting.palette.colour(0.97))


def light_folds(painting: Painting) -> None:
    """Let light fall on the folds from one side."""
    fall = smooth(painting.aspect, 0.0, painting.x + (painting.y - np.float32(0.5)) * np.float32(0.6))
    painting.pixels *= (np.float32(0.86) + np.float32(0.28) * fall)[..., None]


def paint_garden(painting: Painting) -> None:
    """Fill the canvas with leaves and lights out of focus."""
    random = painting.random
    noise = cloud(random, painting.shape, cells=1.6, slope=2.4)
    position = np.float32(0.16) + np.float32(0.075) * noise + np.float32(0.10) * (1.0 - painting.y)
    painting.pixels[:] = painting.palette.shade(_guided_tone(painting, position.astype(np.float32)))
    for _ in range(30 if painting.rich else 24):
        _paint_light_spot(painting)


def _paint_light_spot(painting: Painting) -> None:
    random, height = painting.random, painting.height
    radius = float(random.uniform(0.02, 0.085))
    centre = float(random.uniform(0, painting.aspect)), float(random.uniform(0, 1))
    left, top = (max(int((place - radius * 1.1) * height), 0) for place in centre)
    right, low = (int((place + radius * 1.1) * height) + 1 for place in centre)
    away = np.hypot(painting.x[:, left:right] - np.float32(centre[0]), painting.y[top:low] - np.float32(centre[1]))
    disc = smooth(radius * 1.08, radius * 0.9, away) * (0.6 + 0.4 * smooth(radius * 0.5, radius, away))
    light = painting.palette.colour(float(random.uniform(0.35, 0.85))) * np.float32(random.uniform(0.03, 0.16))
    painting.pixels[top:low, left:right] += disc[..., None] * light


def _guided_tone(painting: Painting, position: Plane) -> Plane:
    if painting.guide is None:
        return position
    return np.asarray(position + (painting.guide.lightness - np.float32(0.5)) * np.float32(0.28), dtype=np.float32)


def paint_blossoms(painting: Painting) -> None:
    """Open one large blossom, and smaller ones behind it."""
    random = painting.random
    for _ in range(int(random.integers(2, 5))):
        place = float(random.uniform(0.05, 0.95)) * painting.aspect, float(random.uniform(0.08, 0.95))
        _paint_blossom(painting, place, float(random.uniform(0.10, 0.17)), petals=34, dim=0.55)
    centre = painting.aspect * float(random.uniform(0.44, 0.56)), float(random.uniform(0.46, 0.54))
    if painting.guide is not None:
        bright = painting.guide.brightest()
        centre = (centre[0] + bright[0]) / 2, (centre[1] + bright[1]) / 2
    size = min(painting.aspect, 1.0) * float(random.uniform(0.38, 0.45))
    _paint_blossom(painting, centre, size, petals=120 if painting.rich else 92, dim=1.0)


def _paint_blossom(painting: Painting, centre: tuple[float, float], size: float, *, petals: int, dim: float) -> None:
    random = painting.random
    start, wide = float(random.uniform(0, math.tau)), float(random.uniform(0.30, 0.46))
    pointed, turn = float(random.uniform(0.55, 1.1)), 1.0 if random.random() < 0.5 else -1.0
    ring = int(random.choice([0, 0, 8, 10, 13, 16]))  # petals in each ring; 0 is a spiral like a sunflower's
    for place in range(petals, 0, -1):
        share = place / petals  # 1 is the outermost, which is painted first
        angle = start + turn * place * _GOLDEN_ANGLE
        if ring:
            share = (place // ring + 1) * ring / (petals + ring)
            angle = start + (place + place // ring / 2) * math.tau / ring
        length = size * (0.16 + 0.84 * share**0.75) * float(random.uniform(0.93, 1.05))
        tone = 0.93 - 0.50 * share**0.8 + float(random.uniform(-0.03, 0.03))
        petal = _Petal(angle, length, wide * (0.75 + 0.25 * share), pointed, tone)
        _paint_petal(painting, centre, petal, dim)


@dataclass(frozen=True, slots=True)
class _Petal:
    """One petal: its direction, its length (picture heights), half its width by its length, its tip, its tone."""

    angle: float
    length: float
    wide: float
    pointed: float
    tone: float


def _paint_petal(painting: Painting, centre: tuple[float, float], petal: _Petal, dim: float) -> None:
    """Paint one petal, and the shadow it throws on those under it."""
    angle, length, wide = petal.angle, petal.length, petal.wide
    height, half_width = painting.height, (wide + 0.11) * length
    margins = half_width * abs(math.sin(angle)) + 0.004, half_width * abs(math.cos(angle)) + 0.004
    tip = centre[0] + length * math.cos(angle), centre[1] + length * math.sin(angle)
    left, top = (
        max(int((min(near, far) - margin) * height), 0) for near, far, margin in zip(centre, tip, margins, strict=True)
    )
    right, low = (
        max(int((max(near, far) + margin) * height), 0) for near, far, margin in zip(centre, tip, margins, strict=True)
    )
    x, y = painting.x[:, left:right] - np.float32(centre[0]), painting.y[top:low] - np.float32(centre[1])
    along = (x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))) / np.float32(length)
    side = (y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle))) / np.float32(length)
    inside = np.clip(along, 0.0, 1.0)
    swell = np.maximum(np.sin(np.float32(math.pi) * inside ** np.float32(1.35)), 0.0)
    half = np.float32(wide) * swell ** np.float32(petal.pointed) + np.float32(0.004)
    edge = (half - np.abs(side)) * np.float32(length)
    edge = np.where((along < 0.0) | (along > 1.0), np.float32(-1.0), edge)
    part = painting.pixels[top:low, left:right]
    part *= (1.0 - 0.38 * smooth(-0.10 * length, 0.02 * length, edge))[..., None]
    fold = side / half
    ramp = petal.tone - 0.20 * (1.0 - inside) - 0.07 * fold * fold + 0.05 * inside
    veins = 0.012 * np.sin(fold * np.float32(16.0)) * inside
    colour = painting.palette.shade((ramp + veins).astype(np.float32)) * np.float32(dim)
    part += (colour - part) * coverage(edge, height)[..., None]


def light_blossoms(painting: Painting) -> None:
    """Let the sun fall in from one corner."""
    corner = (0.0 if painting.random.random() < 0.5 else painting.aspect, 0.0)
    fade = np.exp(painting.distance(corner) / np.float32(-0.45)) * np.float32(0.16)
    painting.shine(fade, painting.palette.colour(0.9))
