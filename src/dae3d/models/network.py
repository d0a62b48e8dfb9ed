"""What all networks have in common, and what weights say of themselves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from torch import nn

from dae3d.models.load_report import LoadReport
from dae3d.scans.sides import Axis

Task = Literal["pretrain", "segmentation", "encoder"]


class WeightsInfo(TypedDict, total=False):
    """What a file of weights says, beside the architecture, as plain JSON; none of it need be there.

    Attributes:
        task: what the network was trained for: "pretrain", "segmentation" or "encoder".
        step: of the training.
        best_validation: step and loss of the run's best validation.
        settings: of the run.
        versions: of the packages.
        data: the run's scans in numbers, by data set and modality.
        trained_on: fingerprints of what it was trained on, by stage (`provenance.py`).
        axes: order of the token axes.
        monai_merging: order of octants, where the user named it.
        modalities: labels, by number, of pre-training.
        preparation: of the scans of pre-training, as `store.Preparation`.
        spacing: their median voxel size in mm.
        recipe: of the cases of fine-tuning, as `CaseRecipe`.
        flip_axes: axes that crops were flipped along.
    """

    task: Task
    step: int
    best_validation: dict[str, Any] | None
    settings: dict[str, Any]
    versions: dict[str, str]
    data: list[dict[str, Any]]
    trained_on: list[dict[str, Any]]
    axes: str | None
    monai_merging: str
    modalities: list[str]
    preparation: dict[str, Any]
    spacing: list[float]
    recipe: dict[str, Any]
    flip_axes: Sequence[Axis]


class Network(nn.Module):
    """A network for one task.

    Attributes of one that `load` made:
        info: what the file of its weights says of them.
        weights: that file.
        load_report: what of the file was taken.
    """

    info: WeightsInfo
    weights: Path
    load_report: LoadReport
