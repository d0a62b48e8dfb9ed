"""Sentences about the results of an evaluation: a summary, and the main errors."""

import math

from dae3d.evaluation.results import Mean, Results
from dae3d.words import listing, plural, some

_NAMED = 5  # classes named in a sentence with their cases


def summary(results: Results, task: str, split: str) -> str:
    """The overall result in two sentences."""
    count = plural(len(results.cases), "case")
    what = "Mean Dice" if len(results.classes) == 1 else f"Mean Dice of the {len(results.classes)} classes"
    dice, distance = results.mean["dice"], results.mean["hd95_mm"]
    return (
        f"{count} of “{task}” ({split}). {what}: {with_interval(dice, 3)}; "
        f"95th percentile of surface distances (HD95): {with_interval(distance, 1)} mm."
    )


def findings(results: Results) -> list[str]:
    """The main errors as sentences, most serious first."""
    return [
        *_wholly(results, "missed", "Missed completely"),
        *_wholly(results, "spurious", "Predicted, but not in the reference"),
        *_weakest_class(results),
        *_worst_cases(results),
        *_biased(results),
        *_furthest(results),
    ]


def with_interval(mean: Mean, digits: int, sign: str = "") -> str:
    """ "0.861 (0.842 to 0.879)"."""
    if math.isnan(mean.value):
        return "n/a"
    value = f"{mean.value:{sign}.{digits}f}"
    if math.isnan(mean.low):
        return value
    return f"{value} ({mean.low:{sign}.{digits}f} to {mean.high:{sign}.{digits}f})"


def _wholly(results: Results, kind: str, text: str) -> list[str]:
    """Cases with a class only in the reference, or only in the prediction; most frequent class first."""
    wanted, predicted = results.metric("reference_ml") > 0, results.metric("predicted_ml") > 0
    failed = wanted & ~predicted if kind == "missed" else predicted & ~wanted
    found = {
        name: [results.cases[n] for n in failed[:, i].nonzero()[0]] for i, name in enumerate(results.classes)
    }
    names = sorted((name for name in found if found[name]), key=lambda name: -len(found[name]))
    parts = []
    for name in names[:_NAMED]:
        of = f" of {results.summaries[name].present}" if kind == "missed" else ""
        parts.append(f"{name} in {len(found[name])}{of} ({some(found[name])})")
    if len(names) > _NAMED:
        parts.append(f"and {len(names) - _NAMED} other class{'es' if len(names) > _NAMED + 1 else ''}")
    return [f"{text}: {'; '.join(parts)}."] if parts else []


def _weakest_class(results: Results) -> list[str]:
    dice = {name: results.summaries[name].means["dice"] for name in results.classes}
    known = sorted((name for name in dice if dice[name].cases), key=lambda name: dice[name].value)
    if len(known) < 2:
        return []
    weakest, best = known[0], known[-1]
    return [
        f"Weakest class: {weakest}, mean Dice {with_interval(dice[weakest], 3)}; "
        f"best: {best}, {with_interval(dice[best], 3)}."
    ]


def _worst_cases(results: Results) -> list[str]:
    if len(results.ranked) < 2:
        return []
    shown = results.ranked[: min(3, len(results.ranked) - 1)]
    named = [f"{results.cases[i]} ({results.case_dice[i]:.3f})" for i in shown]
    best = results.ranked[-1]
    return [
        f"{'Worst case' if len(named) == 1 else 'Worst cases'}, by mean Dice: {listing(named)}; "
        f"best: {results.cases[best]} ({results.case_dice[best]:.3f})."
    ]


def _biased(results: Results) -> list[str]:
    """Classes whose mean volume error differs from 0, by its confidence interval."""
    means = {name: results.summaries[name].means["volume_error_percent"] for name in results.classes}
    small = [f"{name} ({m.value:+.0f} %)" for name, m in means.items() if m.high < 0]
    large = [f"{name} ({m.value:+.0f} %)" for name, m in means.items() if m.low > 0]
    parts = [f"too {size}: {some(names)}" for size, names in (("small", small), ("large", large)) if names]
    return [f"Systematic volume errors: {'; '.join(parts)}."] if parts else []


def _furthest(results: Results) -> list[str]:
    distances = results.metric("hd95_mm")[:, : len(results.classes)]
    found = [
        (float(distances[i, j]), case, name)
        for i, case in enumerate(results.cases)
        for j, name in enumerate(results.classes)
        if math.isfinite(distances[i, j])
    ]
    if not found:
        return []
    distance, case, name = max(found)
    of = f" of {name}" if len(results.classes) > 1 else ""
    return [f"Largest surface distance: {distance:.1f} mm (HD95){of} in {case}."]
