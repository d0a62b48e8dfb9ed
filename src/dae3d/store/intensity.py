"""From acquired intensities to what the network sees, and back: one rule per modality label."""

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
    """What scales a scan: `(intensity - shift) / scale`, clipped to [0, 1], or with zeros that stay zeros."""

    shift: float
    scale: float
    clips: bool


@dataclass(frozen=True)
class IntensityWindow:
    """Fixed bounds in acquired units, clipped and scaled to [0, 1]: for intensities with a physical unit.

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
    Non-zero voxels are right where the background was removed, the foreground where it is noise.
    """

    over_foreground: bool = False

    def normalisation(self, statistics: Statistics) -> Normalisation:
        """Mean and standard deviation."""
        mean, std = statistics.mean, statistics.std
        if self.over_foreground:
            mean, std = statistics.foreground_mean, statistics.foreground_std
        # A mask has no deviation but what rounding leaves.
        std = max(std, (statistics.maximum - statistics.minimum) * _LEAST_DEVIATION)
        return Normalisation(mean, std, clips=False)


@dataclass(frozen=True)
class PercentileRange:
    """The scan's own range between two percentiles, clipped and scaled to [0, 1].

    As MONAI's `ScaleIntensityRangePercentiles(low, high, 0, 1, clip=True)` on the whole scan.
    """

    low: float = 0.5
    high: float = 99.5

    def normalisation(self, statistics: Statistics) -> Normalisation:
        """From percentile to percentile."""
        low, high = statistics.percentile(self.low), statistics.percentile(self.high)
        if not distinguishable(low, high):
            # A map that is empty nearly everywhere has no range between its percentiles.
            low, high = statistics.minimum, statistics.maximum
        return Normalisation(low, high - low, clips=True)


@dataclass(frozen=True)
class UptakeRatio:
    """Uptake as multiples of the body's mean, from 0 to `high`, clipped and scaled to [0, 1].

    For PET and SPECT. The standardised uptake value (SUV) is such a ratio, by the injected dose and the
    weight, which image files do not tell.
    """

    high: float = 10.0

    def normalisation(self, statistics: Statistics) -> Normalisation:
        """From 0 to a multiple of the body's mean."""
        # Maps of differences may be below zero nearly everywhere.
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
    """Read a rule.

    `window:LOW:HIGH` in acquired units, `percentiles:LOW:HIGH`, `zscore` over non-zero voxels,
    `zscore:foreground`, or `suv:HIGH` in multiples of the body's mean.

    Raises:
        ValueError: where it is none of these, or its bounds cannot be used.
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
        raise ValueError(f"{text!r}: percentiles are those of {', '.join(f'{p:g}' for p in PERCENTILES)}")
    return PercentileRange(low, high)


def _checked_scaling(text: str) -> str:
    parse_scaling(text)
    return text


# For settings: a rule as it was written, and rules by modality label, which go before `SCALINGS`.
ScalingText = Annotated[str, AfterValidator(_checked_scaling)]
ScalingRules = dict[Label, ScalingText]


def scaling(modality: str, rules: Mapping[str, str] | None = None) -> Scaling:
    """The rule for a modality label; a label in neither `rules` nor `SCALINGS` is scaled as MR is."""
    if rules and modality in rules:
        return parse_scaling(rules[modality])
    return SCALINGS.get(modality, ZScore())


def normalise(
    crop: np.ndarray, modality: str, statistics: Statistics, rules: Mapping[str, str] | None = None
) -> np.ndarray:
    """Scale intensities in acquired units, of any real type, for the network; float32, in a new array.

    Padding becomes background first: air in CT, 0 elsewhere.
    """
    if statistics.padding is not None:
        crop = np.where(crop <= statistics.padding, np.float32(background(modality)), crop)
    shift, scale, clips = scaling(modality, rules).normalisation(statistics)
    scaled = np.subtract(crop, shift, dtype=np.float32)
    with np.errstate(over="ignore"):  # where it is clipped just below
        scaled /= np.float32(scale)
    if clips:
        return np.clip(scaled, 0, 1, out=scaled)
    scaled[crop == 0] = 0
    return scaled


def denormalise(
    crop: np.ndarray, modality: str, statistics: Statistics, rules: Mapping[str, str] | None = None
) -> np.ndarray:
    """Turn what `normalise` made back into acquired units, as far as it was kept; float32, in a new array.

    What was clipped stays at the bounds. Where zeros stayed zeros, an intensity equal to the mean becomes 0.
    """
    shift, scale, clips = scaling(modality, rules).normalisation(statistics)
    acquired = np.multiply(crop, scale, dtype=np.float32)
    acquired += np.float32(shift)
    if not clips:
        acquired[crop == 0] = 0
    return acquired
