"""Whether cases are held out of what the weights were trained on, as far as the weights say it."""

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

# Beside predictions: what the weights that made them say of their training.
FILE = "weights.json"


@dataclass(frozen=True)
class HeldOut:
    """Which cases weights have met; those of several weights together, each case once in its gravest list.

    Attributes:
        cases: how many there are.
        trained: names of those trained on with their labels.
        chose: of those by which these weights were found to be the best of their run.
        pretrained: of those pre-trained on, without labels, and in neither list before.
        known: whether all weights say what they were fine-tuned on, and there are any.
        known_pretraining: whether they say of all earlier trainings too.
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
        """What makes the figures better than they will be on new cases, the gravest first."""
        of = f"of {plural(self.cases, 'case')}"
        found = []
        if self.trained:
            found.append(
                f"Trained on, with labels: {len(self.trained)} {of} ({some(self.trained)}). Expect less of "
                "new cases."
            )
        if self.chose:
            found.append(
                f"Used to choose these weights, as the best of their run: {len(self.chose)} {of} "
                f"({some(self.chose)}). Expect less of new cases; the run's last weights, "
                "weights/last.safetensors, were not chosen."
            )
        if self.pretrained:
            found.append(
                f"Pre-trained on, without labels: {len(self.pretrained)} {of} ({some(self.pretrained)})."
            )
        return found

    @property
    def note(self) -> str:
        """What is known where there is no warning, and what is not."""
        if not self.known:
            return (
                "It is not known whether the weights have met these cases: nothing here says what they were "
                "trained on."
            )
        if self.warnings:
            return "" if self.known_pretraining else "What was pre-trained on is not known."
        if not self.known_pretraining:
            return (
                "None of the cases was fine-tuned on, or chose the weights; what was pre-trained on is not "
                "known."
            )
        return "None of the cases was trained on, or chose the weights, by the content of their image files."


def held_out(cases: Sequence[TaskCase], weights: Sequence["WeightsInfo"]) -> HeldOut:
    """Which cases weights have met, by the content of their image files.

    Args:
        cases: with images that are there.
        weights: what each file of weights says of its training.

    Raises:
        ScanError: where an image cannot be read.
    """
    if not weights:
        return HeldOut(len(cases))
    # Imports PyTorch, which comparing other people's predictions does not need.
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
    """Write down, beside predictions, what the weights that make them say of their training.

    Raises:
        Dae3dError: where another file has that name, or it cannot be written.
    """
    from dae3d.models.provenance import entry_of

    path = folder / FILE
    if path.exists() and not read_weights_beside(folder):
        raise Dae3dError(f"out: {path} is there, and `predict` did not write it; take another folder")
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
    """What `write_weights` wrote; nothing where there is no such file, or it is another."""
    try:
        found = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return []
    if not isinstance(found, list):
        return []
    return found if all(isinstance(info, dict) and "trained_on" in info for info in found) else []
