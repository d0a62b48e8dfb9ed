"""The metadata of weights without anything about the machine or the scans of the training."""

from collections.abc import Mapping
from typing import Any

from dae3d.models.network import WeightsInfo
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.training.run_settings import RunSettings

# Settings that name files, or that only make sense with them.
_LEFT_OUT = {"out", "resume", "monai_merging"}
_SEPARATORS = ("/", "\\")


def shareable(info: WeightsInfo, name_data_sets: bool = True) -> WeightsInfo:
    """The metadata for a file that is published.

    Only entries known to be harmless are kept, because a file may have others: `WeightsInfo` without the
    settings that name files, and the numbers of scans by modality and data set. Fingerprints in `trained_on`
    are of the scans' content and stay: they tell nothing to someone who does not have the scan.

    Args:
        info: of the weights.
        name_data_sets: keep the names of data sets; else they are numbered. Names that look like paths are
            always numbered.
    """
    names = _data_set_names(info, name_data_sets)
    kept: dict[str, Any] = {
        name: value for name, value in info.items() if name in WeightsInfo.__annotations__ and name != "data"
    }
    if "settings" in info:
        kept["settings"] = _settings(info["settings"], names)
    if "data" in info:
        fields = ("modality", "train", "val", "voxels")
        kept["data"] = [
            {"dataset": names[row.get("dataset")], **{name: row[name] for name in fields if name in row}}
            for row in info["data"]
        ]
    found: Any = kept
    return found


def _data_set_names(info: WeightsInfo, name_data_sets: bool) -> dict[Any, str]:
    """What to call each data set."""
    theirs = list(dict.fromkeys(row.get("dataset") for row in info.get("data", ())))
    return {
        name: str(name) if name_data_sets and name and not _is_path(name) else f"data set {number}"
        for number, name in enumerate(theirs, 1)
    }


def _settings(settings: Mapping[str, Any], names: Mapping[Any, str]) -> dict[str, Any]:
    """The settings of a run that do not name files."""
    kinds: tuple[type[RunSettings], ...] = (PretrainSettings, FinetuneSettings)
    known = {name for kind in kinds for name in kind.model_fields}
    known -= {name for kind in kinds for name in kind.path_fields()} | _LEFT_OUT
    kept = {name: value for name, value in settings.items() if name in known and not _is_path(value)}
    if kept.get("datasets"):
        kept["datasets"] = [names.get(name, "another data set") for name in kept["datasets"]]
    return kept


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and any(separator in value for separator in _SEPARATORS)
