"""The conclusions drawn from the metrics of a probe, as sentences."""

from collections.abc import Sequence

from dae3d.probing.levels import ALL, IMAGE
from dae3d.probing.metrics import ProbeMetrics
from dae3d.words import listing

CARRIES = 10.0  # percent increase of L1; from here on a level is used
NOTHING_BELOW = 1.0  # percent increase of L1; below it a level is unused
COLLAPSED_ABOVE = 0.98  # mean cosine of all pairs
APART_FROM = 0.05  # minimum mean cosine within modalities minus that between modalities
BETTER_BY = 0.02  # minimum gain in Dice over random weights

UNKNOWN = "The use of the encoder levels was not measured: this needs crops of two scans and finite weights."
WELL = "No problems found: the decoder uses the encoder levels, and no features have collapsed."


def verdict(
    figures: ProbeMetrics, random: dict[str, float], contrastive_weight: float
) -> tuple[bool, tuple[str, ...]]:
    """Whether no problems were found, and the conclusions, most serious first.

    Args:
        figures: metrics of the trained network.
        random: Dice of the voxel probe with random weights.
        contrastive_weight: of the run; if 0, the pooled features are not judged.
    """
    said = [
        *_idle(figures),
        *_collapsed(figures, contrastive_weight),
        *_no_better_than_random(figures, random),
    ]
    missing = [] if figures.share else [UNKNOWN]
    well = [WELL] if not said and not missing else []
    return not said, (*missing, *said, *well, *_passed_by(figures), *_little(figures), *_single(figures))


def _spatial_levels(figures: ProbeMetrics) -> list[str]:
    """Levels with more than one token per crop, as far as known."""
    crops = sum(figures.crops.values())
    return [name for name in figures.levels if figures.tokens.get(name, crops + 1) > crops]


def _unused(figures: ProbeMetrics) -> tuple[list[str], list[str]]:
    """Levels that the decoder does not use: those before one that it uses, and those after all of these."""
    levels = _spatial_levels(figures)
    used = [figures.share.get(name, CARRIES) >= NOTHING_BELOW for name in levels]
    last = max((place for place, uses in enumerate(used) if uses), default=-1)
    unused = [(place, name) for place, name in enumerate(levels) if not used[place]]
    before, after = ([name for place, name in unused if (place > last) is late] for late in (False, True))
    return before, after


def _passed_by(figures: ProbeMetrics) -> list[str]:
    before, _ = _unused(figures)
    return [_not_used(before, "trains {} only through later levels")] if before else []


def _idle(figures: ProbeMetrics) -> list[str]:
    _, idle = _unused(figures)
    if not idle:
        return []
    said = _not_used(idle, "does not train {}")
    if IMAGE in figures.share and figures.share[IMAGE] > figures.share.get(ALL, 0.0):
        said += " The decoder relies more on the skip connection from the image than on all levels together."
    return [said]


def _not_used(levels: Sequence[str], effect: str) -> str:
    are, them = ("are", "them") if len(levels) > 1 else ("is", "it")
    return (
        f"{_levels(levels)} {are} not used by the decoder, so the reconstruction loss {effect.format(them)}."
    )


def _single(figures: ProbeMetrics) -> list[str]:
    """Levels with a single token per crop."""
    single = [name for name in figures.levels if name not in _spatial_levels(figures)]
    if not single:
        return []
    has, it = ("have", "them") if len(single) > 1 else ("has", "it")
    return [
        f"{_levels(single)} {has} a single token per crop of this size, which the instance norm of the "
        f"decoder sets to zero. Larger crops would train {it}."
    ]


def _little(figures: ProbeMetrics) -> list[str]:
    told = _spatial_levels(figures)
    weak = [name for name in told if NOTHING_BELOW <= figures.share.get(name, CARRIES) < CARRIES]
    if not weak:
        return []
    are = "are" if len(weak) > 1 else "is"
    return [f"{_levels(weak)} {are} used little: {NOTHING_BELOW:g} to {CARRIES:g} % of the L1."]


def _collapsed(figures: ProbeMetrics, contrastive_weight: float) -> list[str]:
    if contrastive_weight <= 0:
        return []
    cosine = figures.cosine
    any_two = cosine.get("any", 0.0)
    if any_two > COLLAPSED_ABOVE:
        return [
            f"Contrastive features have collapsed: the mean cosine of all pairs of crops is {any_two:.3f}."
        ]
    if not cosine.keys() >= {"within", "between"}:
        return []
    apart = cosine["within"] - cosine["between"]
    if apart < APART_FROM:
        return [
            "Contrastive features have collapsed: the mean cosine within a modality is "
            f"{cosine['within']:.3f}, that between modalities {cosine['between']:.3f}."
        ]
    return []


def _no_better_than_random(figures: ProbeMetrics, random: dict[str, float]) -> list[str]:
    # A level with a single token per crop cannot distinguish voxels.
    told = _spatial_levels(figures)
    both = [name for name in told if name in random and name in figures.dice]
    poor = [name for name in both if figures.dice[name] < random[name] + BETTER_BY]
    if not poor:
        return []
    are = "are" if len(poor) > 1 else "is"
    return [f"{_levels(poor)} {are} no better than random weights in the voxel probe."]


def _levels(names: Sequence[str]) -> str:
    """["level3", "level4"] -> "Levels 3 and 4"."""
    numbers = [name.removeprefix("level") for name in names]
    return f"Level{'s' if len(numbers) > 1 else ''} {listing(numbers)}"
