"""The legs of a run: on which data it was trained and validated, from which step on."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

from dae3d.metrics import read_metrics

log = logging.getLogger(__name__)

Leg = dict[str, Any]

# Entries of `run.json` about the data, which a leg has too.
_DATA = ("data", "validation", "cases")


def legs_of(out: Path, about: Mapping[str, Any], resumed_at: int | None) -> list[Leg]:
    """The legs of a run that is about to continue; the last one has the current data.

    Args:
        out: run folder.
        about: description of the data for `run.json`.
        resumed_at: step of the checkpoint that the run is resumed from.
    """
    leg = {"from": resumed_at or 0, **{name: about[name] for name in _DATA if name in about}}
    path = out / "run.json"
    if resumed_at is None or not path.is_file():
        return [leg]
    record = json.loads(path.read_text())
    first = {"from": 0, **{name: record[name] for name in _DATA if name in record}}
    # Legs from this step on are about to be trained again.
    before = [old for old in record.get("legs", [first]) if old["from"] < max(resumed_at, 1)]
    if before and _same(before[-1], leg):
        return before
    return [*before, leg]


def baselines_due(out: Path, legs: Sequence[Leg]) -> bool:
    """Whether baselines were last measured on the validation crops of an earlier leg."""
    steps = [step for step, name, _ in read_metrics(out / "metrics.csv")[0] if name.startswith("baseline/")]
    return len(legs) > 1 and max(steps, default=-1) < legs[-1]["from"]


def _same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two legs have the same data, as far as both record it; paths do not matter."""
    for name in (old.keys() & new.keys()) - {"from", "store"}:
        one, other = old[name], new[name]
        same = _same(one, other) if isinstance(one, Mapping) and name != "cases" else one == other
        if not same:
            return False
    # `validation` has an entry for each modality: another set of modalities is another validation.
    return old.get("validation", {}).keys() == new.get("validation", {}).keys()


@rank_zero_only
def say_new_data(legs: Sequence[Leg], resumed_at: int | None) -> None:
    """Warn if a run resumed at this step begins a new leg there, and what that means for validation."""
    *before, leg = legs
    if not before or leg["from"] != resumed_at:
        return
    log.warning(
        "the data has changed at step %d: from here on %s. run.json records both, by leg",
        leg["from"],
        "; ".join(
            f"{row['modality']} of {row['dataset']}: {row['train']} for training, {row['val']} for validation"
            for row in leg["data"]["rows"]
        ),
    )
    trained = {case for old in before for case in old.get("cases", {}).get("training", [])}
    moved = sorted(trained.intersection(leg.get("cases", {}).get("validation", [])))
    if moved:
        log.warning(
            "%d validation cases were training cases earlier in this run: %s. Their Dice does not measure "
            "performance on new cases, but selects best.safetensors",
            len(moved),
            ", ".join(moved),
        )
