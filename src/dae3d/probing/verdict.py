"""A probe's figures in words."""

from collections.abc import Sequence

from dae3d.probing.levels import ALL, IMAGE, LEVELS
from dae3d.probing.metrics import ProbeMetrics
from dae3d.words import listing

CARRIES = 10.0  # percent: from here on a level carries something
NOTHING_BELOW = 1.0  # percent
COLLAPSED_ABOVE = 0.98  # mean cosine of any two
APART_FROM = 0.05  # mean cosine within a modality minus that between modalities
BETTER_BY = 0.02  # Dice

UNKNOWN = "What the levels carry was not measured: it takes crops of two scans, and weights that are finite."
WELL = "All is well: the levels carry something for the repair, and nothing has collapsed."


def verdict(
    figures: ProbeMetrics, random: dict[str, float], contrastive_weight: float
) -> tuple[bool, tuple[str, ...]]:
    """Whether all is well, and what there is to say, the gravest first.

    Args:
        figures: of the trained network.
        random: Dice of the voxel probe with random weights.
        contrastive_weight: of the run; 0 asks nothing of the pooled features.
    """
    said = [
        *_idle(figures),
        *_collapsed(figures, contrastive_weight),
        *_no_better_than_random(figures, random),
    ]
    missing = [] if figures.share else [UNKNOWN]
    well = [WELL] if not said and not missing else []
    return not said, (*missing, *said, *well, *_little(figures), *_single(figures))


def _spatial_levels(figures: ProbeMetrics) -> list[str]:
    """Levels of more than one token a crop, as far as is known."""
    crops = sum(figures.crops.values())
    return [name for name in LEVELS if figures.tokens.get(name, crops + 1) > crops]


def _idle(figures: ProbeMetrics) -> list[str]:
    idle = [name for name in _spatial_levels(figures) if figures.share.get(name, CARRIES) < NOTHING_BELOW]
    if not idle:
        return []
    they, them = ("they are", "them") if len(idle) > 1 else ("it is", "it")
    carry = "carry" if len(idle) > 1 else "carries"
    said = (
        f"{_levels(idle)} {carry} nothing: {they} not being trained by the repair, which does without {them}."
    )
    if figures.share.get(IMAGE, 0.0) > figures.share.get(ALL, 0.0):
        said += " The decoder repairs out of the image's own skip more than out of all levels together."
    return [said]


def _single(figures: ProbeMetrics) -> list[str]:
    """Which levels are one token a crop."""
    single = [name for name in LEVELS if name not in _spatial_levels(figures)]
    if not single:
        return []
    verb, it = ("are", "them") if len(single) > 1 else ("is", "it")
    return [
        f"{_levels(single)} {verb} one token with crops of this size, which the decoder's instance norm "
        f"sets to zero: larger crops would train {it}."
    ]


def _little(figures: ProbeMetrics) -> list[str]:
    told = _spatial_levels(figures)
    weak = [name for name in told if NOTHING_BELOW <= figures.share.get(name, CARRIES) < CARRIES]
    if not weak:
        return []
    carry = "carry" if len(weak) > 1 else "carries"
    return [f"{_levels(weak)} {carry} little: between {NOTHING_BELOW:g} and {CARRIES:g} % of the L1."]


def _collapsed(figures: ProbeMetrics, contrastive_weight: float) -> list[str]:
    if contrastive_weight <= 0:
        return []
    cosine = figures.cosine
    any_two = cosine.get("any", 0.0)
    if any_two > COLLAPSED_ABOVE:
        return [f"Contrastive features have collapsed: any two have a mean cosine of {any_two:.3f}."]
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
    # One token a crop tells no voxel of it from another.
    told = _spatial_levels(figures)
    both = [name for name in told if name in random and name in figures.dice]
    poor = [name for name in both if figures.dice[name] < random[name] + BETTER_BY]
    if not poor:
        return []
    probes = "probes are" if len(poor) > 1 else "probe is"
    return [f"{_levels(poor)} {probes} no better than random weights."]


def _levels(names: Sequence[str]) -> str:
    """["level3", "level4"] -> "Levels 3 and 4"."""
    numbers = [name.removeprefix("level") for name in names]
    return f"Level{'s' if len(numbers) > 1 else ''} {listing(numbers)}"
