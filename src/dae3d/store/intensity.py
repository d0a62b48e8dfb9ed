"""Scale acquired intensities for the network, and back: one rule per modality label."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import AfterValidator

from dae3d.scans.modality import Label
from dae3d.scans.padding import background
from dae3d.store.statistics import LARGEST, PERCENTILES, SMALLEST_RANGE, Statistics, distinguishable

_LEAST_DEVIATION = 1e-12  # of the range


class Normalisation(NamedTuple):
    """`(intensity - shift) / scale`, either clipped to [0, 1] or with zeros that stay zeros."""

    shift: float
    scale: float
    clips: bool


@dataclass(frozen=True)
class IntensityWindow:
    """Fixed bounds in acquired units, scaled to [0, 1] and clipped: for intensities with a physical unit.

    As MONAI's `ScaleIntensityRange(low, high, 0, 1, clip=True)`.
    """

    low: float
    high: float

    def normalisation(self, statistics: Statistics) -> Normalisation:
        """From bound to bound."""
        return Normalisation(self.low, self.high - self.low, clips=True)


@dataclass(frozen=True)
class ZScore:
    """Mean 0 and standard deviation 1 over the scan's non-zero, or foreground, voxels; zeros stay zeros.

    As MONAI's `NormalizeIntensity(nonzero=True)` on the whole scan. For MR, whose intensities have no unit.
    Use non-zero voxels if the background was removed, the foreground if the background is noise.
    """

    over_foreground: bool = False

    def normalisation(self, statistics: Statistics) -> Normalisation:
        """Mean and standard deviation."""
        mean, std = statistics.mean, statistics.std
        if self.over_foreground:
            mean, std = statistics.foreground_mean, statistics.foreground_std
        # A mask has no deviation except rounding errors.
        std = max(std, (statistics.maximum - statistics.minimum) * _LEAST_DEVIATION)
        return Normalisation(mean, std, clips=False)


@dataclass(frozen=True)
class PercentileRange:
    """The range between two percentiles of the scan, scaled to [0, 1] and clipped.

    As MONAI's `ScaleIntensityRangePercentiles(low, high, 0, 1, clip=True)` on the whole scan.
    """

    low: float = 0.5
    high: float = 99.5

    def normalisation(self, statistics: Statistics) -> Normalisation:
        """From percentile to percentile."""
        low, high = statistics.percentile(self.low), statistics.percentile(self.high)
        if not distinguishable(low, high):
            # In a map that is empty nearly everywhere the percentiles are equal.
            low, high = statistics.minimum, statistics.maximum
        return Normalisation(low, high - low, clips=True)


@dataclass(frozen=True)
class UptakeRatio:
    """Uptake from 0 to `high` times the mean of the body, scaled to [0, 1] and clipped.

    For PET and SPECT. It stands in for the standardised uptake value (SUV), which needs the injected dose and
    the body weight; image files do not have them.
    """

    high: float = 10.0

    def normalisation(self, statistics: Statistics) -> Normalisation:
        """From 0 to a multiple of the mean of the body."""
        # Difference maps may be below zero nearly everywhere.
        return Normalisation(0.0, self.high * max(statistics.body_mean, SMALLEST_RANGE), clips=True)


Scaling = IntensityWindow | ZScore | PercentileRange | UptakeRatio

_HOUNSFIELD = IntensityWindow(-1000.0, 1000.0)
SCALINGS: dict[str, Scaling] = {
    "ct": _HOUNSFIELD,
    "ct-phantom": _HOUNSFIELD,
    "cbct": _HOUNSFIELD,
    "ct-raw": PercentileRange(),
    "cbct-raw": PercentileRange(),
    "pet": UptakeRatio(),
    "spect": UptakeRatio(),
    "gm-map": PercentileRange(),
    "wm-map": PercentileRange(),
}


@lru_cache(maxsize=64)
def parse_scaling(text: str) -> Scaling:
    """Parse a rule.

    `window:LOW:HIGH` in acquired units, `percentiles:LOW:HIGH`, `zscore` over non-zero voxels,
    `zscore:foreground`, or `suv:HIGH` in multiples of the mean of the body.

    Raises:
        ValueError: if it is not one of these, or its bounds are invalid.
    """
    kind, *words = text.strip().lower().split(":")
    if kind == "zscore" and words in ([], ["foreground"]):
        return ZScore(over_foreground=bool(words))
    if {"window": 2, "percentiles": 2, "suv": 1}.get(kind) != len(words):
        raise ValueError(
            f"{text!r} is not an intensity scaling: window:LOW:HIGH (HU for CT), percentiles:LOW:HIGH, "
            "zscore, zscore:foreground or suv:HIGH"
        )
    try:
        low, high = map(float, words if len(words) == 2 else ["0", *words])
    except ValueError:
        raise ValueError(f"{text!r}: the bounds must be numbers, such as 'window:-175:250'") from None
    if not (abs(low) <= LARGEST and abs(high) <= LARGEST and distinguishable(low, high)):
        raise ValueError(f"{text!r}: the lower bound must be below the upper one, and both finite")
    if kind == "window":
        return IntensityWindow(low, high)
    if kind == "suv":
        return UptakeRatio(high)
    if {low, high} - set(PERCENTILES):
        raise ValueError(f"{text!r}: percentiles must be among {', '.join(f'{p:g}' for p in PERCENTILES)}")
    return PercentileRange(low, high)


def _checked_scaling(text: str) -> str:
    parse_scaling(text)
    return text


# For settings: a rule as text, and rules by modality label, which override `SCALINGS`.
ScalingText = Annotated[str, AfterValidator(_checked_scaling)]
ScalingRules = dict[Label, ScalingText]


def scaling(modality: str, rules: Mapping[str, str] | None = None) -> Scaling:
    """The rule for a modality label; labels in neither `rules` nor `SCALINGS` are scaled as MR."""
    if rules and modality in rules:
        return parse_scaling(rules[modality])
    return SCALINGS.get(modality, ZScore())


def normalise(
    crop: np.ndarray, modality: str, statistics: Statistics, rules: Mapping[str, str] | None = None
) -> np.ndarray:
    """Scale intensities in acquired units, of any real type, for the network; returns a new float32 array.

    Padding is first replaced by background: air in CT, 0 elsewhere.
    """
    if statistics.padding is not None:
        crop = np.where(crop <= statistics.padding, np.float32(background(modality)), crop)
    shift, scale, clips = scaling(modality, rules).normalisation(statistics)
    scaled = np.subtract(crop, shift, dtype=np.float32)
    with np.errstate(over="ignore"):  # such values are clipped below
        scaled /= np.float32(scale)
    if clips:
        return np.clip(scaled, 0, 1, out=scaled)
    scaled[crop == 0] = 0
    return scaled


def denormalise(
    crop: np.ndarray, modality: str, statistics: Statistics, rules: Mapping[str, str] | None = None
) -> np.ndarray:
    """Invert `normalise` as far as possible; returns a new float32 array in acquired units.

    Clipped values stay at the bounds. With z-scores, an intensity equal to the mean becomes 0.
    """
    shift, scale, clips = scaling(modality, rules).normalisation(statistics)
    acquired = np.multiply(crop, scale, dtype=np.float32)
    acquired += np.float32(shift)
    if not clips:
        acquired[crop == 0] = 0
    return acquired
