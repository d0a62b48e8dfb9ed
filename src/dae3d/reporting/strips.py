"""Geometry of strip plots (one dot per case) as inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dae3d.evaluation.results import Mean

WIDTH, HEIGHT = 360, 62  # SVG units, about the pixels of a phone
LEFT, RIGHT, MIDDLE, AXIS = 10, 350, 22, 44
RADIUS = 4.0
MOST_DOTS = 100  # more would overlap, and slow down pages with many classes
_LAYERS = (0, -7, 7, -14, 14)  # vertical offsets of overlapping dots


@dataclass(frozen=True)
class Dot:
    """The dot of a case, with its name and value as `title`."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Strip:
    """The strip plot of a class; mean and interval are positions on the axis, None if unknown."""

    name: str
    cases: int
    dots: list[Dot]
    mean: float | None
    interval: tuple[float, float] | None
    ticks: list[tuple[float, str]]


def lowest_tick(values: Sequence[float]) -> float:
    """The start of an axis up to 1 that includes all values, a multiple of 0.1."""
    known = [value for value in values if math.isfinite(value)]
    return min(0.9, math.floor(10 * min(known, default=0.9)) / 10)


def strip(name: str, cases: Sequence[str], values: Sequence[float], mean: Mean, start: float) -> Strip:
    """Lay out the values of a class by case on an axis from `start` to 1; NaN is left out.

    At most `MOST_DOTS` cases are drawn, evenly spaced by rank.
    """

    def place(value: float) -> float:
        return round(LEFT + (value - start) / (1 - start) * (RIGHT - LEFT), 1)

    dots: list[Dot] = []
    known = sorted((value, case) for value, case in zip(values, cases, strict=True) if math.isfinite(value))
    drawn = np.linspace(0, len(known) - 1, min(len(known), MOST_DOTS)).round().astype(int)
    for value, case in (known[i] for i in drawn):
        x = place(value)
        crowd = sum(abs(dot.x - x) < 1.5 * RADIUS for dot in dots[-len(_LAYERS) :])
        dots.append(Dot(x, MIDDLE + _LAYERS[crowd % len(_LAYERS)], f"{case}: {value:.3f}"))
    steps = round((1 - start) * 10)
    every = 2 if steps > 5 else 1
    ticks = [start + i / 10 for i in range(steps, -1, -every)]
    return Strip(
        name=name,
        cases=len(known),
        dots=dots,
        mean=place(mean.value) if math.isfinite(mean.value) else None,
        interval=(place(mean.low), place(mean.high)) if math.isfinite(mean.low) else None,
        ticks=[(place(tick), f"{tick:.1f}") for tick in ticks],
    )
