"""Check whether test cases were used to train the weights, as far as the weights record it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dae3d.errors import Dae3dError, ScanError
from dae3d.files import write_text
from dae3d.scans.task import TaskCase
from dae3d.store.source import contents_of
from dae3d.words import plural, some

if TYPE_CHECKING:
    from dae3d.models.network import WeightsInfo

# Next to predictions: the training information of the weights that made them.
FILE = "weights.json"


@dataclass(frozen=True)
class HeldOut:
    """Cases that any of the weights have seen, each in the first list that applies.

    Attributes:
        cases: number of cases.
        trained: names of cases used for training with labels.
        chose: names of validation cases by which the weights were selected as the best of their run.
        pretrained: names of other cases used for pre-training, without labels.
        known: whether there are weights, and all record their fine-tuning data.
        known_pretraining: whether they also record the data of all earlier training stages.
    """

    cases: int
    trained: tuple[str, ...] = ()
    chose: tuple[str, ...] = ()
    pretrained: tuple[str, ...] = ()
    known: bool = False
    known_pretraining: bool = False

    def json(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return {
            "known": self.known,
            "trained_on": list(self.trained),
            "chose_the_weights": list(self.chose),
            "pretrained_on": list(self.pretrained),
        }

    @property
    def warnings(self) -> list[str]:
        """Reasons why results on new cases will be worse, most serious first."""
        of = f"of {plural(self.cases, 'case')}"
        found = []
        if self.trained:
            found.append(
                f"Used for training, with labels: {len(self.trained)} {of} ({some(self.trained)}). Expect "
                "worse results on new cases."
            )
        if self.chose:
            found.append(
                f"Used for validation, to select these weights as the best of their run: {len(self.chose)} "
                f"{of} ({some(self.chose)}). Expect worse results on new cases; the last weights of the run, "
                "weights/last.safetensors, were not selected this way."
            )
        if self.pretrained:
            found.append(
                f"Used for pre-training, without labels: {len(self.pretrained)} {of} "
                f"({some(self.pretrained)})."
            )
        return found

    @property
    def note(self) -> str:
        """What is known if there is no warning, and what is unknown."""
        if not self.known:
            return (
                "It is unknown whether the weights were trained on these cases: their training data is not "
                "recorded."
            )
        if self.warnings:
            return "" if self.known_pretraining else "The pre-training data is unknown."
        if not self.known_pretraining:
            return (
                "None of the cases was used for fine-tuning or for selecting the weights; the pre-training "
                "data is unknown."
            )
        return "None of the cases was used for training or for selecting the weights, by image file content."


def held_out(cases: Sequence[TaskCase], weights: Sequence["WeightsInfo"]) -> HeldOut:
    """Find cases that the weights have seen, by the content of their image files.

    Args:
        cases: cases with existing images.
        weights: training information of each weight file.

    Raises:
        ScanError: if an image cannot be read.
    """
    if not weights:
        return HeldOut(len(cases))
    # Imports PyTorch, which is not needed to evaluate predictions of other tools.
    from dae3d.models.provenance import seen, trained_on

    stages = [trained_on(info) for info in weights]
    all_stages = [stage for own in stages for stage in own]
    known = all(stage.known for stage in all_stages if stage.task == "segmentation")
    if not any(stage.known for stage in all_stages):
        return HeldOut(len(cases))
    contents = {case.name: _contents(case) for case in cases}
    trained: set[str] = set()
    chose: set[str] = set()
    pretrained: set[str] = set()
    for info in weights:
        is_best = info.get("step") == (info.get("best_validation") or {}).get("step")
        for found in seen(info, contents):
            if found.task == "segmentation" and found.side == "training":
                trained.add(found.case)
            elif found.task == "segmentation" and is_best:
                chose.add(found.case)
            elif found.task != "segmentation" and found.side == "training":
                pretrained.add(found.case)

    def in_order(names: set[str]) -> tuple[str, ...]:
        return tuple(case.name for case in cases if case.name in names)

    return HeldOut(
        cases=len(cases),
        trained=in_order(trained),
        chose=in_order(chose - trained),
        pretrained=in_order(pretrained - trained - chose),
        known=known,
        known_pretraining=known and all(stage.known for stage in all_stages),
    )


def _contents(case: TaskCase) -> list[str]:
    try:
        return contents_of(case.images)
    except OSError as error:
        raise ScanError(f"{case.name}: {error.filename}: unreadable: {error.strerror}") from None


def write_weights(folder: Path, weights: Sequence["WeightsInfo"]) -> None:
    """Write the training information of the weights next to their predictions.

    Raises:
        Dae3dError: if another file has that name, or it cannot be written.
    """
    from dae3d.models.provenance import entry_of

    path = folder / FILE
    if path.exists() and not read_weights_beside(folder):
        raise Dae3dError(f"out: {path} exists and was not written by `predict`; choose another folder")
    kept = [
        {
            "step": info.get("step"),
            "best_validation": info.get("best_validation"),
            "trained_on": entry_of(info),
        }
        for info in weights
    ]
    write_text(path, json.dumps(kept) + "\n")


def read_weights_beside(folder: Path) -> list["WeightsInfo"]:
    """Read what `write_weights` wrote; empty if there is no such file."""
    try:
        found = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return []
    if not isinstance(found, list):
        return []
    return found if all(isinstance(info, dict) and "trained_on" in info for info in found) else []
