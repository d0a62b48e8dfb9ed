"""Geometry of charts of metrics over steps as inline SVG; drawn by the template."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dae3d.reporting.run_folder import Series

# SVG units. Narrow, so that text is as large as the text of the page on a phone.
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 350, 8, 196
_POINTS = 400
_FEW = 40
_SMOOTHED_SHARE = 0.03


@dataclass(frozen=True)
class Line:
    """One curve: an SVG path, the unsmoothed path behind it, and marked points."""

    name: str
    path: str
    faint: str
    dots: list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A chart. Ticks are (position, label); `words` is a text alternative."""

    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    words: str


def chart(
    title: str, series: Mapping[str, Series | None], log: bool = False, smooth: bool = True
) -> Chart | None:
    """Lay out series in one chart; None if there are no finite values.

    The points of short series (validation) are marked.

    Args:
        title: title of the chart.
        series: by the name in the legend; None is left out.
        log: logarithmic scale, if all values are positive and span more than a factor of 5.
        smooth: smooth long series (training) with a centred moving mean over 3 % of their length, with the
            unsmoothed curve behind.
    """
    finite = {name: _finite(s) for name, s in series.items() if s is not None}
    drawn = {name: s for name, s in finite.items() if len(s.steps)}
    if not drawn:
        return None
    reduced = {name: _reduced(s) for name, s in drawn.items()}
    curves = {name: _smoothed(s) if smooth else s for name, s in reduced.items()}
    values = np.concatenate([s.values for s in curves.values()])
    log = log and values.min() > 0 and values.max() > 5 * values.min()
    last = max(float(s.steps[-1]) for s in curves.values())
    low, high, y_values = _log_axis(values) if log else _linear_axis(values)
    warp = np.log10 if log else np.asarray

    def x(steps: ArrayLike) -> np.ndarray:
        return LEFT + (RIGHT - LEFT) * np.asarray(steps) / max(last, 1)

    def y(numbers: ArrayLike) -> np.ndarray:
        return BOTTOM - (BOTTOM - TOP) * (warp(numbers) - warp(low)) / (warp(high) - warp(low))

    lines = []
    for name, curve in curves.items():
        raw = reduced[name]
        few = len(raw.steps) <= _FEW
        shown = np.clip(raw.values, low, high)
        lines.append(
            Line(
                name=name,
                path=_path(x(curve.steps), y(curve.values)),
                faint="" if few or not smooth else _path(x(raw.steps), y(shown)),
                dots=_points(x(curve.steps), y(curve.values)) if few else [],
            )
        )
    return Chart(
        title=f"{title} (log scale)" if log else title,
        lines=lines,
        x_ticks=[(round(float(x(step)), 1), _count(step)) for step in nice(0, max(last, 1), 4)],
        y_ticks=[(round(float(y(v)), 1), f"{v:.4g}") for v in y_values],
        words=f"{title}. " + "; ".join(_in_words(name, s) for name, s in drawn.items()) + ".",
    )


def _finite(series: Series) -> Series:
    keep = np.isfinite(series.values)
    return Series(series.steps[keep], series.values[keep])


def _reduced(series: Series) -> Series:
    """Reduce to at most `_POINTS` points by averaging neighbours."""
    groups = np.array_split(np.arange(len(series.steps)), min(len(series.steps), _POINTS))
    return Series(
        np.array([series.steps[group].mean() for group in groups]),
        np.array([series.values[group].mean() for group in groups]),
    )


def _smoothed(series: Series) -> Series:
    """Centred moving mean with a truncated window at the ends."""
    reach = int(len(series.steps) * _SMOOTHED_SHARE / 2 + 0.5) if len(series.steps) > _FEW else 0
    sums = np.concatenate([[0.0], np.cumsum(series.values)])
    index = np.arange(len(series.values))
    start, end = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(index))
    return Series(series.steps, (sums[end] - sums[start]) / (end - start))


def _linear_axis(values: np.ndarray) -> tuple[float, float, list[float]]:
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = (low if low == 0 else low - margin), high + margin
    return low, high, nice(low, high, 5)


def _log_axis(values: np.ndarray) -> tuple[float, float, list[float]]:
    low, high = float(values.min()) / 1.1, float(values.max()) * 1.1
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if high / low < 1000 else (1,)
    ticks = [digit * 10.0**decade for decade in decades for digit in digits]
    return low, high, [tick for tick in ticks if low <= tick <= high]


def nice(low: float, high: float, about: int) -> list[float]:
    """About `about` round numbers from low to high."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough * 0.999)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _points(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
    return [(round(float(a), 1), round(float(b), 1)) for a, b in zip(x, y, strict=True)]


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{a:g},{b:g}" for a, b in _points(x, y))


def _count(step: float) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}"


def _in_words(name: str, series: Series) -> str:
    first, last = series.values[0], series.values[-1]
    return f"{name} from {first:.4g} at step {series.steps[0]} to {last:.4g} at step {series.steps[-1]}"
