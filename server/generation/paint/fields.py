"""Planes of numbers that pictures are made of: coordinates, noise, masks, soft blurs.

A plane is a float32 array (height, width). Lengths are in picture heights: y runs 0..1 from top to bottom, x runs
0..width/height, so that circles are round in every format.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

Plane = npt.NDArray[np.float32]
"""A float32 array (height, width)."""

Pixels = npt.NDArray[np.float32]
"""A float32 array (height, width, 3): linear light, red green blue, 1.0 is white."""

Line = npt.NDArray[np.float32]
"""A float32 array (width,): one number for each column."""


def smooth(low: float, high: float, value: Plane) -> Plane:
    """Rise from 0 at `low` to 1 at `high` without a corner; `high` below `low` falls instead."""
    ratio = np.clip((value - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    return np.asarray(ratio * ratio * (3.0 - 2.0 * ratio), dtype=np.float32)


def coordinates(width: int, height: int) -> tuple[Plane, Plane]:
    """Return the x of every column (1, width) and the y of every row (height, 1), in picture heights."""
    x = (np.arange(width, dtype=np.float32) + 0.5) / np.float32(height)
    y = (np.arange(height, dtype=np.float32) + 0.5) / np.float32(height)
    return x[None, :], y[:, None]


def cloud(
    random: np.random.Generator, shape: tuple[int, int], *, cells: float, slope: float = 1.7, stretch: float = 1.0
) -> Plane:
    """Draw fractal noise that wraps around at its edges, with mean 0 and deviation 1.

    Args:
        random: where the noise comes from.
        shape: height and width.
        cells: how many of the largest blobs fit into a picture height.
        slope: how fast small details fade; 1.2 is rough, 2.5 is silk.
        stretch: over 1 draws the blobs out sideways.
    """
    height, width = shape
    vertical = np.fft.fftfreq(height, 1.0 / height).astype(np.float32)[:, None] / np.float32(stretch)
    sideways = np.fft.rfftfreq(width, 1.0 / width).astype(np.float32)[None, :] * np.float32(height / width * stretch)
    square = vertical * vertical + sideways * sideways
    strength = (np.float32(cells * cells) + square) ** np.float32(-(slope + 1.0) / 2.0)
    strength[0, 0] = 0.0
    waves = random.standard_normal((2, *strength.shape), dtype=np.float32) * strength
    plane = np.fft.irfft2(waves[0] + np.complex64(1j) * waves[1], s=shape)
    return np.asarray(plane / plane.std(), dtype=np.float32)


def ridge(random: np.random.Generator, width: int, *, cells: float, slope: float, sharp: float = 0.0) -> Line:
    """Draw one fractal line, 0..1; `sharp` lets peaks grow out of its waves (0 rolling hills, 1 the Alps)."""
    line = (1.0 - sharp) * _wave_line(random, width, cells, slope)
    if sharp > 0.0:
        folded = _wave_line(random, width, cells, slope)
        line = line - (2.0 * sharp) * np.sqrt(folded * folded + 1e-4)
    return np.asarray((line - line.min()) / (float(np.ptp(line)) + 1e-6), dtype=np.float32)


def _wave_line(random: np.random.Generator, width: int, cells: float, slope: float) -> Line:
    size = 2 * width  # twice as wide as shown, so that its ends needn't meet
    frequency = np.fft.rfftfreq(size, 1.0 / size).astype(np.float32) / 2.0
    strength = (np.float32(cells * cells) + frequency * frequency) ** np.float32(-slope / 2.0)
    strength[0] = 0.0
    waves = random.standard_normal((2, strength.size), dtype=np.float32) * strength
    line = np.fft.irfft(waves[0] + np.complex64(1j) * waves[1])[:width]
    return np.asarray(line / (np.abs(line).max() + 1e-6), dtype=np.float32)


def sample(field: npt.NDArray[np.float32], x: Plane, y: Plane) -> npt.NDArray[np.float32]:
    """Read a plane or pixels between their points; x and y are in pixels and wrap around."""
    height, width = field.shape[:2]
    column, row = np.floor(x), np.floor(y)
    right, low = (x - column).astype(np.float32), (y - row).astype(np.float32)
    left_index, top_index = column.astype(np.int32) % width, row.astype(np.int32) % height
    right_index, low_index = (left_index + 1) % width, (top_index + 1) % height
    flat = field.reshape(height * width, *field.shape[2:])
    if field.ndim == 3:
        right, low = right[..., None], low[..., None]
    top = _mix(flat[top_index * width + left_index], flat[top_index * width + right_index], right)
    bottom = _mix(flat[low_index * width + left_index], flat[low_index * width + right_index], right)
    return _mix(top, bottom, low)


def _mix(
    first: npt.NDArray[np.float32], second: npt.NDArray[np.float32], share: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    return np.asarray(first + (second - first) * share, dtype=np.float32)


def resized(plane: Plane, width: int, height: int) -> Plane:
    """Scale a plane smoothly to another size."""
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)


def blurred(pixels: Pixels, cells: int) -> Pixels:
    """Blur pixels until about `cells` soft spots fill a picture height."""
    height, width = pixels.shape[:2]
    across = max(2, round(cells * width / height))
    planes = (pixels[..., channel] for channel in range(pixels.shape[2]))
    return np.stack([resized(resized(plane, across, cells), width, height) for plane in planes], axis=-1)


def coverage(distance: Plane, height: int) -> Plane:
    """Turn a distance from an edge (picture heights, inside positive) into a mask whose edge is one pixel soft."""
    return np.asarray(np.clip(distance * np.float32(height) + np.float32(0.5), 0.0, 1.0), dtype=np.float32)


def below(line: Line, y: Plane, height: int) -> Plane:
    """Return the antialiased mask of what lies below a line of y values."""
    steepness = np.gradient(line) * height
    return coverage((y - line[None, :]) / np.sqrt(1.0 + steepness * steepness)[None, :].astype(np.float32), height)
