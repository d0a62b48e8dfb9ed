"""The base class of all networks, and the metadata of weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from torch import nn

from dae3d.models.load_report import LoadReport
from dae3d.scans.sides import Axis

Task = Literal["pretrain", "segmentation", "encoder"]


class WeightsInfo(TypedDict, total=False):
    """Metadata of a weights file apart from the architecture, as plain JSON; every entry is optional.

    Attributes:
        task: what the network was trained for: "pretrain", "segmentation" or "encoder".
        step: of the training.
        best_validation: step and loss of the run's best validation.
        settings: of the run.
        versions: of the packages.
        data: numbers of scans, by data set and modality.
        trained_on: fingerprints of the training data, by stage (`provenance.py`).
        axes: order of the token axes.
        monai_merging: order of octants, if the user gave it.
        modalities: labels of pre-training, by number.
        preparation: of the scans of pre-training, as `store.Preparation`.
        spacing: median voxel size of those scans in mm.
        recipe: preparation of the cases of fine-tuning, as `CaseRecipe`.
        flip_axes: axes along which crops were flipped.
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

    Attributes set by `load`:
        info: metadata of its weights file.
        weights: path of that file.
        load_report: what was loaded from it.
    """

    info: WeightsInfo
    weights: Path
    load_report: LoadReport
