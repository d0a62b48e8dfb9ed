"""Geometry of bar charts as inline SVG, like `curves`; drawn by the template."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dae3d.reporting.curves import BOTTOM, LEFT, RIGHT, TOP, nice

_GAP = 0.12  # share of the width of a group
_LABEL = 14  # height for the value above a bar


@dataclass(frozen=True)
class Bar:
    """A bar with its `value` written at (x + width / 2, text)."""

    x: float
    y: float
    width: float
    height: float
    value: str
    text: float


@dataclass(frozen=True)
class BarChart:
    """Bars by series; `groups` are (position, label) below them, `words` is a text alternative."""

    title: str
    series: list[tuple[str, list[Bar]]]
    groups: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    zero: float
    words: str


def bar_chart(
    title: str, groups: Sequence[str], series: Mapping[str, Sequence[float | None]], form: str = ".3g"
) -> BarChart | None:
    """Lay out series side by side; None if there are no finite values.

    Args:
        title: title of the chart.
        groups: labels below the bars.
        series: values by the name in the legend, one per group; None for no value.
        form: format of the values.
    """
    values = [v for each in series.values() for v in each if v is not None and math.isfinite(v)]
    if not values:
        return None
    low, high = min(0.0, *values), max(0.0, *values)
    high = high if high > low else low + 1.0
    top = TOP + _LABEL
    slot = (RIGHT - LEFT) / len(groups)
    width = slot * (1 - _GAP) / len(series)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - top) * (value - low) / (high - low), 1)

    def bar(group: int, place: int, value: float) -> Bar:
        upper, lower = sorted((y(value), y(0)))
        x = LEFT + slot * (group + _GAP / 2) + width * place
        return Bar(round(x, 1), upper, round(width, 1), round(lower - upper, 1), f"{value:{form}}", upper - 3)

    drawn = [
        (name, [bar(i, place, v) for i, v in enumerate(each) if v is not None and math.isfinite(v)])
        for place, (name, each) in enumerate(series.items())
    ]
    told = [
        f"{name}: "
        + ", ".join(f"{group} {v:{form}}" for group, v in zip(groups, each, strict=True) if v is not None)
        for name, each in series.items()
    ]
    return BarChart(
        title=title,
        series=drawn,
        groups=[(round(LEFT + slot * (i + 0.5), 1), label) for i, label in enumerate(groups)],
        y_ticks=[(y(v), f"{v:.4g}") for v in nice(low, high, 4)],
        zero=y(0),
        words=f"{title}. {'; '.join(told)}.",
    )
