"""Scenes built of many upright shapes: a city at the water, a forest in the mist."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from server.generation.paint.canvas import Painting
from server.generation.paint.fields import Line, Plane, cloud, ridge, smooth
from server.generation.paint.landscapes import reflect
from server.generation.paint.skies import paint_weather

_SHORE = 0.80


def paint_city(painting: Painting) -> None:
    """Build a skyline, street behind street, and mirror it in a river."""
    layers = 5 if painting.rich else 4
    painting.horizon = _SHORE
    skyline = painting.bend(np.zeros(painting.width, dtype=np.float32), 0.8)
    for layer in range(layers):
        nearness = layer / (layers - 1)
        _paint_street(painting, nearness, skyline)
        haze = smooth(_SHORE - 0.42, _SHORE + 0.03, painting.y) * np.float32(0.34 * (1.0 - nearness))
        mask = np.broadcast_to(haze, painting.shape)
        painting.cover(mask, painting.palette.colour(painting.daylight.horizon * 0.92))
    reflect(painting, _SHORE, calm=0.72)


def _paint_street(painting: Painting, nearness: float, skyline: Line) -> None:
    random, height, width = painting.random, painting.height, painting.width
    envelope = ridge(random, width, cells=1.3, slope=2.6)
    left = -int(random.uniform(0, 0.03) * height)
    while left < width:
        across = int(random.uniform(0.034, 0.085) * (0.75 + 0.6 * nearness) * height)
        middle = min(max(left + across // 2, 0), width - 1)
        tall = (0.12 + 0.42 * float(envelope[middle]) ** 1.4) * (1.0 - 0.42 * nearness)
        tall *= float(random.uniform(0.65, 1.1))
        tall = max(tall - float(skyline[middle]), 0.05)
        _paint_building(painting, left, across, tall, nearness)
        left += across + int(random.choice([0, 0, 1, 3]) * height / 768)


def _paint_building(painting: Painting, left: int, across: int, tall: float, nearness: float) -> None:
    random, height, daylight = painting.random, painting.height, painting.daylight
    position = daylight.far * 0.62 + (daylight.near + 0.02 - daylight.far * 0.62) * nearness**0.7
    position += float(random.uniform(-0.025, 0.025))
    foot, roof = int(_SHORE * height) + 1, int((_SHORE - tall) * height)
    _paint_block(painting, (left, left + across), (roof, foot), position, nearness)
    if random.random() < 0.5:  # a narrower top, and perhaps a mast on it
        inset, rise = int(across * random.uniform(0.15, 0.3)), int(random.uniform(0.012, 0.05) * height)
        _paint_block(painting, (left + inset, left + across - inset), (roof - rise, roof), position, nearness)
        if random.random() < 0.5 and tall > 0.2:
            mast, middle = int(random.uniform(0.03, 0.07) * height), left + across // 2
            thick = max(1, height // 500)
            _paint_block(painting, (middle, middle + thick), (roof - rise - mast, roof - rise), position, nearness)


def _paint_block(
    painting: Painting, columns: tuple[int, int], rows: tuple[int, int], position: float, nearness: float
) -> None:
    left, right, top, bottom = max(columns[0], 0), min(columns[1], painting.width), max(rows[0], 0), rows[1]
    if right <= left or bottom <= top:
        return
    part = painting.pixels[top:bottom, left:right]
    side = np.linspace(0.5, -0.5, right - left, dtype=np.float32)[None, :]
    toward = 1.0 if painting.lamp[0] * painting.height < (left + right) / 2 else -1.0
    rise = np.linspace(0.03, -0.01, bottom - top, dtype=np.float32)[:, None]
    part[:] = painting.palette.shade(position + side * np.float32(0.05 * toward) + rise)
    if right - left > 8:
        lights, glass = _windows(painting, bottom - top, right - left, nearness)
        part += lights[..., None] * glass


def _windows(painting: Painting, tall: int, across: int, nearness: float) -> tuple[Plane, npt.NDArray[np.float32]]:
    """Return how bright each pixel of a wall is by its lit windows, and their colour."""
    random = painting.random
    pitch = max(3, round((0.0065 + 0.0035 * nearness) * painting.height))
    rows, columns = tall // pitch, (across - 2) // pitch
    busy = {"night": 0.34, "sunset": 0.26, "storm": 0.28, "dawn": 0.12}.get(painting.reading.time, 0.07)
    floor = random.random((rows, 1)) ** 1.5 * 1.6
    lit = (random.random((rows, columns)) < busy * floor * random.uniform(0.4, 1.4)).astype(np.float32)
    lit *= random.uniform(0.25, 1.0, lit.shape).astype(np.float32) ** 1.5
    gap = np.arange(pitch, dtype=np.float32)
    pane = ((gap >= 1) & (gap < max(pitch - 1, 2))).astype(np.float32)
    wall = np.kron(lit, pane[:, None] * pane[None, :])
    above, beside = tall - wall.shape[0], across - wall.shape[1]
    wall = np.pad(wall, ((above, 0), (beside // 2, beside - beside // 2)))
    warm = np.array([0.6, 0.43, 0.22], dtype=np.float32) + painting.palette.colour(0.9) * np.float32(0.4)
    cold = np.array([0.62, 0.84, 1.0], dtype=np.float32)
    glass = warm if random.random() < 0.85 else cold
    return wall, glass * np.float32(0.10 + 0.75 * nearness)


def paint_forest(painting: Painting) -> None:
    """Stand rows of firs in the mist, each row darker and nearer."""
    layers = 7 if painting.rich else 6
    painting.horizon = 0.60
    for layer in range(layers):
        nearness = layer / (layers - 1)
        _paint_row(painting, nearness)
        _paint_mist(painting, nearness)


def _paint_mist(painting: Painting, nearness: float) -> None:
    foot = 0.60 + 0.36 * nearness
    noise = cloud(painting.random, (painting.height // 2, painting.width // 2), cells=2.0, slope=2.2, stretch=3.0)
    noise = noise.repeat(2, axis=0).repeat(2, axis=1)
    band = np.exp(-(((painting.y - np.float32(foot + 0.02)) / np.float32(0.13)) ** 2))
    mask = band * smooth(-1.8, 1.6, noise) * np.float32(0.62 * (1.0 - nearness) ** 0.8)
    colour = painting.daylight.far + (painting.daylight.horizon - painting.daylight.far) * 0.6 - 0.18 * nearness
    painting.cover(mask.astype(np.float32), painting.palette.colour(colour))


def _paint_row(painting: Painting, nearness: float) -> None:
    random, daylight, height, width = painting.random, painting.daylight, painting.height, painting.width
    scale = 2 if height * width < 800_000 else 1.5  # drawn larger, then reduced: soft edges
    image = Image.new("L", (int(width * scale), int(height * scale)), 0)
    draw = ImageDraw.Draw(image)
    ground = 0.60 + 0.34 * nearness - 0.10 * (ridge(random, width, cells=1.2, slope=3.0) - 0.5)
    ground = painting.bend(ground.astype(np.float32), 0.5)
    outline = [(float(place) * scale, float(ground[place]) * height * scale) for place in range(0, width, 4)]
    corners = [(width * scale, outline[-1][1]), (width * scale, height * scale), (0.0, height * scale)]
    draw.polygon(outline + corners, fill=255)
    for x in _places(random, painting.aspect, nearness):
        foot = float(ground[min(max(int(x * height), 0), width - 1)])
        tall = (0.13 + 0.42 * nearness**1.3) * float(random.uniform(0.62, 1.15))
        points = [
            (across * height * scale, down * height * scale)
            for across, down in _fir(random, x, foot + 0.12 * tall, tall)
        ]
        draw.polygon(points, fill=255)
    mask = np.asarray(image.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / np.float32(255.0)
    position = daylight.far * 0.96 + (daylight.near - daylight.far * 0.96) * nearness**0.75
    lift = smooth(0.9, -0.4, painting.y) * np.float32(0.10 * (1.0 - nearness))
    light = np.exp(painting.distance(painting.lamp) / np.float32(-0.35)) * np.float32(0.16 * (1.0 - 0.6 * nearness))
    painting.cover(mask, painting.palette.shade((position + lift + light).astype(np.float32)))


def _places(random: np.random.Generator, aspect: float, nearness: float) -> npt.NDArray[np.float64]:
    count = int((34 - 23 * nearness) * aspect)
    places = (np.arange(count) + random.uniform(-0.5, 0.5, count)) / count * aspect * 1.06 - 0.03
    if nearness == 1.0:  # the nearest stand aside and frame the view
        middle = np.abs(places / aspect - random.uniform(0.4, 0.6))
        places = places[middle > 0.24]
    return np.asarray(places, dtype=np.float64)


def _fir(random: np.random.Generator, x: float, foot: float, tall: float) -> list[tuple[float, float]]:
    """Return the outline of a fir: tiers of branches, each a little different on either side."""
    tiers = 9 + int(tall * 26)
    wide = tall * float(random.uniform(0.17, 0.25))
    sides: list[list[tuple[float, float]]] = []
    for direction in (-1.0, 1.0):
        side = [(x, foot - tall)]
        for tier in range(1, tiers + 1):
            share = tier / tiers
            reach = wide * share**0.85 * float(random.uniform(0.72, 1.12))
            level = foot - tall + tall * 0.93 * share
            side.append((x + direction * reach, level + tall * 0.018))
            side.append((x + direction * reach * 0.45, level - tall * 0.004))
        side.append((x + direction * tall * 0.014, foot))
        sides.append(side)
    return sides[0] + sides[1][::-1]


def light_city(painting: Painting) -> None:
    """Let the glow of the streets rise into the air."""
    band = np.exp(-(((painting.y - _SHORE) / np.float32(0.16)) ** 2))
    painting.shine(np.broadcast_to(band * np.float32(0.05), painting.shape), painting.palette.colour(0.8))
    paint_weather(painting)


def light_forest(painting: Painting) -> None:
    """Send rays of light down between the trees; at night, fireflies."""
    x, y = painting.x - np.float32(painting.lamp[0]), painting.y - np.float32(painting.lamp[1])
    angle = np.arctan2(x, y)
    rays = ridge(painting.random, 1024, cells=16.0, slope=2.2)
    fan = np.interp(angle, np.linspace(-math.pi, math.pi, 1024), rays).astype(np.float32)
    away = np.hypot(x, y)
    fade = np.exp(away / np.float32(-0.38)) * smooth(0.03, 0.30, away) * smooth(-0.12, 0.25, y)
    strength = np.float32((0.30 if painting.reading.time in ("night", "storm") else 0.85) * painting.daylight.glow)
    painting.shine((smooth(0.25, 1.0, fan) * fade * strength).astype(np.float32), painting.palette.colour(0.92))
    if painting.reading.time == "night":
        _fireflies(painting)
    paint_weather(painting)


def _fireflies(painting: Painting) -> None:
    colour = np.array([1.0, 0.85, 0.35], dtype=np.float32)
    for _ in range(int(46 * painting.aspect)):
        place = float(painting.random.uniform(0, painting.aspect)), float(painting.random.uniform(0.5, 0.97))
        size, reach = float(painting.random.uniform(0.0010, 0.0028)), 0.03
        left, top = (max(int((edge - reach) * painting.height), 0) for edge in place)
        right, low = (int((edge + reach) * painting.height) for edge in place)
        away = np.hypot(painting.x[:, left:right] - place[0], painting.y[top:low] - place[1])
        light = np.exp(-((away / size) ** 2)) + 0.22 * np.exp(-away / 0.006) - 0.22 * np.exp(-reach / 0.006)
        painting.pixels[top:low, left:right] += np.maximum(light, 0.0)[..., None].astype(np.float32) * colour
