"""Probe results on the page of a pre-training run: the section on `check`, the curves of `--probe-every`."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from dae3d.probing.metrics import Check, levels_among
from dae3d.reporting.bars import BarChart, bar_chart
from dae3d.reporting.curves import Chart, chart
from dae3d.reporting.run_folder import Run

_COSINES = {"within": "same modality", "between": "different modalities", "scan": "same scan"}


@dataclass(frozen=True)
class CheckSection:
    """The contents of `check.json` for the page."""

    check: Check
    heading: str
    charts: list[BarChart]
    facts: dict[str, str]


def section(run: Run) -> CheckSection | None:
    """The section on a check; None if there is no check or its file cannot be read."""
    try:
        check = Check.model_validate_json((run.folder / "check.json").read_text())
    except (OSError, ValidationError, UnicodeDecodeError):
        return None
    weights = f"{check.weights} weights" if check.weights else "weights"
    step = "" if check.step is None else f", step {check.step}"
    charts = [_shares(check), _ranks(check), _dice(check)]
    return CheckSection(check, weights + step, [c for c in charts if c is not None], _facts(check))


def probe_charts(run: Run) -> list[Chart | None]:
    """Curves of `--probe-every`."""

    def of(title: str, metric: str, names: dict[str, str]) -> Chart | None:
        series = {label: run.metrics.get(f"probe/{metric}/{name}") for name, label in names.items()}
        return chart(title, series, smooth=False)

    found = levels_among(name.rpartition("/")[2] for name in run.metrics if name.startswith("probe/"))
    levels = {name: f"level {_number(name)}" for name in found}
    return [
        of(
            "L1 increase with a level swapped, %",
            "share",
            {**levels, "all": "all levels", "image": "image skip"},
        ),
        of("Effective rank", "rank", levels),
        of("Mean cosine of pooled features", "cosine", _COSINES),
        chart("Nearest crop of the same modality", {"share": run.metrics.get("probe/nearest")}, smooth=False),
        of("Voxel probe, Dice", "dice", {**levels, "all": "all levels"}),
    ]


def _number(name: str) -> str:
    """ "level3" -> "3"; other names stay."""
    return name.removeprefix("level")


def _shares(check: Check) -> BarChart | None:
    shares = check.figures.share
    # A decoder that ends at half resolution has no skip from the image.
    others = [name for name in ("all", "image") if name == "all" or name in shares]
    names = [*check.figures.levels, *others]
    values = [shares.get(name) for name in names]
    return bar_chart(
        "L1 increase with a level swapped, %", list(map(_number, names)), {"share": values}, "z.1f"
    )


def _ranks(check: Check) -> BarChart | None:
    figures = check.figures
    groups = [f"{_number(name)} ({figures.channels.get(name, '?')})" for name in figures.levels]
    return bar_chart(
        "Effective rank by level (number of channels)",
        groups,
        {"rank": [figures.rank.get(name) for name in figures.levels]},
        ".1f",
    )


def _dice(check: Check) -> BarChart | None:
    names = [*check.figures.levels, "all"]

    def of(dice: dict[str, float]) -> Sequence[float | None]:
        return [dice.get(name) for name in names]

    series = {"pre-trained": of(check.figures.dice), "random weights": of(check.random)}
    return bar_chart("Voxel probe, Dice", list(map(_number, names)), series, ".2f")


def _facts(check: Check) -> dict[str, str]:
    figures, cosine = check.figures, check.figures.cosine
    facts = {f"mean cosine of two crops, {words}": cosine.get(name) for name, words in _COSINES.items()}
    found = {name: f"{value:.3f}" for name, value in facts.items() if value is not None}
    if figures.nearest is not None and figures.chance is not None:
        found["nearest crop of another scan has the same modality"] = (
            f"{100 * figures.nearest:.0f} % of {figures.queries} crops (chance {100 * figures.chance:.0f} %)"
        )
    if check.labelled:
        found["voxel probe"] = (
            f"{check.labelled.task}: fitted on {len(check.labelled.fitted)} cases, tested on "
            f"{check.labelled.tested}"
        )
    return found
