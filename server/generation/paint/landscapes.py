"""Scenes with a horizon: mountains, the sea, a desert."""

from __future__ import annotations

import numpy as np

from server.generation.paint.canvas import Painting
from server.generation.paint.fields import Plane, below, cloud, ridge, sample, smooth
from server.generation.paint.skies import paint_weather


def paint_mountains(painting: Painting) -> None:
    """Stand range behind range, the far ones pale with haze."""
    layers = 8 if painting.rich else 6
    rock = cloud(painting.random, painting.shape, cells=5.0, slope=1.5)
    for layer in range(layers):
        nearness = layer / (layers - 1)
        _paint_range(painting, nearness, rock if layer % 2 else rock[:, ::-1])


def _paint_range(painting: Painting, nearness: float, rock: Plane) -> None:
    random, daylight, width = painting.random, painting.daylight, painting.width
    base = painting.horizon - 0.02 + (0.97 - painting.horizon) * nearness**1.25
    tall = 0.30 - 0.12 * nearness + float(random.uniform(-0.05, 0.05))
    sharp = 0.75 * (1.0 - nearness) ** 0.7 + 0.1
    shape = ridge(random, width, cells=1.8, slope=1.75 + 0.5 * nearness, sharp=sharp)
    line = base - tall * (shape - 0.25)
    line = painting.bend(line.astype(np.float32), 0.9 * (1.0 - 0.6 * nearness))
    top = max(int(line.min() * painting.height) - 2, 0)
    y, stone = painting.y[top:], rock[top:]
    depth = y - line[None, :]
    position = daylight.far + (daylight.near - daylight.far) * nearness**0.85
    mist = (daylight.far - daylight.near) * (0.34 - 0.22 * nearness)
    ramp = position + mist * smooth(0.0, 0.30, depth) + _slopes(stone, painting) * np.float32(0.030 + 0.012 * nearness)
    if "snow" in painting.reading.features and nearness < 0.75:
        cap = smooth(0.12, 0.01, depth + stone * np.float32(0.012)) * smooth(base + 0.04, base - 0.10, line)[None, :]
        ramp = ramp + cap * np.maximum(np.float32(0.90 - 0.3 * nearness) - ramp, 0.0) * np.float32(0.62)
    painting.cover(below(line, y, painting.height), painting.palette.shade(ramp.astype(np.float32)), top)


def _slopes(stone: Plane, painting: Painting) -> Plane:
    """Return how much light each place of a range gets: its faces, rough as stone."""
    step = max(painting.height // 200, 1)
    face = np.roll(stone, step, axis=1) - np.roll(stone, -step, axis=1)
    side = np.tanh((painting.x - np.float32(painting.lamp[0])) * np.float32(6.0))
    return np.asarray(np.clip(face * 1.5, -1.6, 1.6) * side + stone * 0.3, dtype=np.float32)


def paint_sea(painting: Painting) -> None:
    """Lay water under the sky, with islands at the end of it."""
    painting.horizon = min(painting.horizon, 0.6)
    for layer in range(2):
        tall, base = 0.10 - 0.02 * layer, painting.horizon + 0.004
        line = ridge(painting.random, painting.width, cells=1.4, slope=2.1, sharp=0.25)
        line = base - tall * np.maximum(line - np.float32(0.45 + 0.1 * layer), 0.0) * 2.0
        line = np.minimum(painting.bend(line.astype(np.float32), 0.35), base).astype(np.float32)
        island = below(line, painting.y, painting.height)
        position = painting.daylight.far - (painting.daylight.far - painting.daylight.near) * 0.35 * (layer + 0.6)
        painting.cover(island, painting.palette.colour(position))
    reflect(painting, painting.horizon, calm=0.25)


def reflect(painting: Painting, shore: float, *, calm: float) -> None:
    """Turn all that is below a y into water that mirrors what is above it.

    Args:
        painting: what to change.
        shore: the y where the water begins.
        calm: 0 for a rough sea, 1 for a mirror.
    """
    height, width = painting.shape
    top = int(shore * height) + 1
    y = painting.y[top:]
    depth = (y - np.float32(shore)) / np.float32(1.0 - shore)
    waves, swell = _waves(painting, depth)
    rough = np.float32(1.0 - 0.75 * calm)
    mirror_y = (2.0 * shore - y) * height + waves * (6.0 + 60.0 * depth) * rough * np.float32(height / 768.0)
    mirror_x = painting.x * height + swell * (2.0 + 14.0 * depth) * rough * np.float32(height / 768.0)
    mirror_x = np.clip(np.broadcast_to(mirror_x, waves.shape), 0, width - 1)
    mirrored = sample(painting.pixels, mirror_x, np.clip(mirror_y, 0, top - 2))
    deep = painting.palette.shade((painting.daylight.near + 0.16 + 0.05 * waves * rough).astype(np.float32))
    share = (0.22 + 0.5 * depth**0.7) * (1.0 - 0.4 * calm) - np.float32(0.10) * waves * rough
    painting.pixels[top:] = mirrored + (deep - mirrored) * np.clip(share, 0.05, 0.85)[..., None]
    _glitter(painting, top, depth, waves)


def _waves(painting: Painting, depth: Plane) -> tuple[Plane, Plane]:
    """Return height and sideways slope of the water, seen in perspective: fine far away, wide nearby."""
    field = cloud(painting.random, (512, 512), cells=10.0, slope=1.5, stretch=1.6)
    far = 1.0 / (depth + np.float32(0.06))
    x = (painting.x - np.float32(painting.aspect / 2)) * far * np.float32(70.0)
    y = np.broadcast_to(far * np.float32(330.0), x.shape)
    fade = smooth(0.0, 0.12, depth)
    first = sample(field, x, y)
    second = sample(field, x * np.float32(2.3) + np.float32(91.0), y * np.float32(1.9) + np.float32(37.0))
    waves = (first + 0.5 * second) * (0.25 + 0.75 * fade)
    return waves.astype(np.float32), (second * fade).astype(np.float32)


def _glitter(painting: Painting, top: int, depth: Plane, waves: Plane) -> None:
    """Lay the path of light under the sun or moon."""
    away = (painting.x - np.float32(painting.lamp[0])) / (np.float32(0.035) + np.float32(0.16) * depth)
    spark = smooth(0.55, 1.7, waves + np.float32(0.5)) * np.exp(-away * away) * (1.0 - 0.55 * depth)
    strength = np.float32(0.9 * painting.daylight.glow)
    painting.pixels[top:] += (spark * strength)[..., None] * painting.palette.colour(0.95)


def paint_desert(painting: Painting) -> None:
    """Roll dune behind dune, each with a lit and a shaded side."""
    layers = 6 if painting.rich else 5
    for layer in range(layers):
        _paint_dune(painting, layer / (layers - 1))


def _paint_dune(painting: Painting, nearness: float) -> None:
    random, daylight = painting.random, painting.daylight
    base = painting.horizon + (0.88 - painting.horizon) * nearness**1.15
    tall = 0.07 + 0.15 * nearness
    line = base - tall * (ridge(random, painting.width, cells=0.9, slope=3.6, sharp=0.0) - 0.4)
    line = painting.bend(line.astype(np.float32), 0.5 * (1.0 - 0.5 * nearness))
    top = max(int(line.min() * painting.height) - 2, 0)
    y = painting.y[top:]
    depth = y - line[None, :]
    # the crest wanders down across the dune: one side of it looks at the light
    wander = ridge(random, painting.height, cells=1.5, slope=3.4)[top:, None]
    margin = painting.width // 6
    summit = float(margin + line[margin:-margin].argmin()) / painting.height
    toward = 1.0 if painting.lamp[0] > summit else -1.0
    lean = depth * np.float32(toward * random.uniform(0.5, 1.4))
    crest = (painting.x - np.float32(summit) + (wander - wander[0]) * np.float32(0.35) + lean) * np.float32(toward)
    lit = smooth(-0.006, 0.012 + 0.01 * nearness, crest)
    position = daylight.far - 0.04 + (daylight.near - daylight.far) * np.float32(0.54 * nearness)
    contrast = 0.14 + 0.22 * nearness
    ramp = position + contrast * (lit - 0.45) - np.float32(0.16 * nearness) * smooth(0.0, 0.5, depth)
    ramp = ramp + _ripples(painting, depth, nearness) * (0.35 + 0.65 * lit) * np.float32(0.028 * nearness)
    painting.cover(below(line, y, painting.height), painting.palette.shade(ramp.astype(np.float32)), top)


def _ripples(painting: Painting, depth: Plane, nearness: float) -> Plane:
    """Return the small waves that the wind leaves in sand."""
    bend = cloud(painting.random, (64, 64), cells=2.0, slope=2.6)
    height = depth.shape[0]
    down = np.arange(height, dtype=np.float32)[:, None] * np.float32(46.0 / painting.height)
    across = painting.x * np.float32(46.0)
    drift = sample(bend, np.broadcast_to(across, depth.shape), np.broadcast_to(down, depth.shape))
    far = depth * np.float32(150.0 - 60.0 * nearness) + painting.x * np.float32(14.0) + drift * np.float32(2.6)
    return np.asarray(np.sin(far) * smooth(0.0, 0.05, depth), dtype=np.float32)


def light_landscape(painting: Painting) -> None:
    """Let air and weather into the scene."""
    band = np.exp(-(((painting.y - painting.horizon) / np.float32(0.10)) ** 2))
    nearness = np.exp(painting.distance(painting.lamp) / np.float32(-0.4))
    air = band * nearness * np.float32(0.22 * painting.daylight.glow)
    painting.shine(air.astype(np.float32), painting.palette.colour(0.85))
    paint_weather(painting)
