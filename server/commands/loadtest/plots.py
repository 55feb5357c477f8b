"""Plots as SVG, by hand: a histogram over a logarithmic axis and bars for the rounds. No library is worth its weight here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 260, 60, 40, 30
_BARS_PER_DECADE: Final = 10
_INK, _PALE, _BAR = "#333", "#ddd", "#3b7dd8"


class Bucket(NamedTuple):
    """How many values lie from `low` up to `high`."""

    low: float
    high: float
    size: int


def buckets(values: Sequence[float], per_decade: int = _BARS_PER_DECADE, least: float = 0.01) -> list[Bucket]:
    """Sort values into buckets of equal width on a logarithmic axis; what is below `least` counts as that."""
    places = [math.floor(math.log10(max(value, least)) * per_decade) for value in values]
    if not places:
        return []
    counts = dict.fromkeys(range(min(places), max(places) + 1), 0)
    for place in places:
        counts[place] += 1
    return [Bucket(10 ** (at / per_decade), 10 ** ((at + 1) / per_decade), count) for at, count in counts.items()]


def histogram(title: str, values: Sequence[float], unit: str) -> str:
    """Draw how often which value came."""
    found = buckets(values)
    labels = [f"{bucket.low:.3g}" for bucket in found]
    return _chart(title, [float(bucket.size) for bucket in found], labels, f"{unit}, logarithmic")


def percentiles(title: str, values: Sequence[float], unit: str) -> str:
    """Draw the values in their order: how long the fastest, the median, the slowest took."""
    ordered, shares = sorted(values), range(0, 101, 2)
    picked = [ordered[min(len(ordered) * share // 100, len(ordered) - 1)] for share in shares]
    return _chart(title, picked, [f"{share} %" for share in shares], unit)


def bars(title: str, values: Sequence[float], unit: str) -> str:
    """Draw one bar for each round."""
    return _chart(title, values, [str(number) for number in range(1, len(values) + 1)], unit)


def _chart(title: str, heights: Sequence[float], labels: Sequence[str], unit: str) -> str:
    highest = max(heights, default=0) or 1
    step = (_WIDTH - _LEFT - 10) / max(len(heights), 1)
    every = max(1, len(labels) // 12)
    parts = [_text(_WIDTH / 2, 16, title, "middle", 14)]
    for share in (0, 0.5, 1):
        y = _y(share)
        parts += [_line(_LEFT, y, _WIDTH - 10, y), _text(_LEFT - 6, y + 4, f"{highest * share:.4g}", "end")]
    for number, (height, label) in enumerate(zip(heights, labels, strict=True)):
        x, y = _LEFT + number * step, _y(max(height, 0) / highest)
        parts.append(
            f'<rect x="{x + step * 0.05:.1f}" y="{y:.1f}" width="{step * 0.9:.1f}" height="{_y(0) - y:.1f}" fill="{_BAR}">'
            f"<title>{escape(label)}: {height:.4g}</title></rect>"
        )
        if number % every == 0:
            parts.append(_text(x + step / 2, _y(0) + 15, label, "middle", 10))
    parts.append(_text(_WIDTH / 2, _HEIGHT - 6, unit, "middle"))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-label="{escape(title)}" font-family="sans-serif">\n{body}\n</svg>'
    )


def _y(share: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{_PALE}"/>'


def _text(x: float, y: float, text: str, anchor: str, size: int = 11) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{_INK}">{escape(text)}</text>'
    )
