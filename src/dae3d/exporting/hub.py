"""A folder of weights as the Hugging Face Hub has them: weights, configuration and model card."""

import copy
import json
from pathlib import Path
from typing import Any

from dae3d.errors import Dae3dError
from dae3d.exporting.card import card, front_matter, modalities_of, validation_figures
from dae3d.exporting.exported import Exported, learned
from dae3d.exporting.sharing import shareable
from dae3d.files import refuse_other_folder, whole_folder
from dae3d.models.hub import CONFIG, MODEL
from dae3d.models.weights import save_weights
from dae3d.version import __version__

CARD = "README.md"
FILES = (MODEL, CONFIG, CARD)
LIBRARY = "dae3d"
_KIND = "hub"


def write_hub_folder(
    network: Any, out: Path, license_name: str | None, name_data_sets: bool = True
) -> Exported:
    """A folder with `model.safetensors`, `config.json` and `README.md`, as a whole.

    Args:
        network: as returned by `load`.
        out: folder.
        license_name: for the model card.
        name_data_sets: as for `shareable`.

    Raises:
        Dae3dError: if `out` has other files, or cannot be written.
    """
    refuse_other(out, network.weights)
    with whole_folder(out, _KIND) as folder:
        return write_hub_files(network, folder, "hf://ORG/NAME", license_name, name_data_sets)


def refuse_other(out: Path, weights: Path) -> None:
    """Raise Dae3dError if `out` is not a folder that `write_hub_folder` may replace."""
    refuse_other_folder(out, _KIND, "folder of weights", FILES.__contains__)
    refuse_own_source(out, weights)


def refuse_own_source(out: Path, weights: Path) -> None:
    """Raise Dae3dError if the exported weights are in the folder that would be replaced."""
    if out.resolve() in weights.resolve().parents:
        raise Dae3dError(f"out: {out} is the folder of the weights themselves; choose another path")


def write_hub_files(
    network: Any, folder: Path, source: str, license_name: str | None, name_data_sets: bool = True
) -> Exported:
    """Write these files into an existing folder; `source` is where others will find it."""
    published = published_network(network, name_data_sets)
    figures = validation_figures(network.weights, network.info)
    state = learned(network)
    save_weights(folder / MODEL, state, network.architecture, published.info)
    (folder / CONFIG).write_text(json.dumps(_config(published), indent=2) + "\n")
    text = front_matter(published, license_name) + "\n" + card(published, source, license_name, figures)
    (folder / CARD).write_text(text)
    names = dict.fromkeys(row["dataset"] for row in published.info.get("data", ()))
    notes = [f"Data sets named in the folder: {', '.join(names)}."] if names else []
    if license_name is None:
        notes.append("No licence is named: give --license, or write it into README.md.")
    return Exported(state, {}, notes)


def published_network(network: Any, name_data_sets: bool) -> Any:
    """The same network with the metadata that is published."""
    published = copy.copy(network)
    published.info = shareable(network.info, name_data_sets)
    return published


def _config(network: Any) -> dict[str, Any]:
    config = {
        "library_name": LIBRARY,
        "dae3d_version": __version__,
        "task": network.info.get("task", "pretrain"),
        "architecture": network.architecture.header(),
        "modalities": modalities_of(network.info),
    }
    optional = {name: network.info.get(name) for name in ("spacing", "recipe", "preparation")}
    return config | {name: value for name, value in optional.items() if value}
