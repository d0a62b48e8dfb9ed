"""The command `export`: write weights in our layout, or in that of another program."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from rich.console import Console
from rich.markup import escape

from dae3d.errors import Dae3dError
from dae3d.exporting.bundle import write_bundle
from dae3d.exporting.exported import Exported, learned
from dae3d.exporting.hub import write_hub_folder
from dae3d.exporting.nnunet import write_for_plans, write_nnssl, write_trainer
from dae3d.exporting.swin import write_monai, write_reference
from dae3d.models.contents import MONAI_MERGING, MonaiMerging
from dae3d.models.hub import SOURCE_GIVEN, WeightsSource
from dae3d.models.loading import load
from dae3d.models.weights import is_ours, save_weights
from dae3d.settings import Settings, command

_PICKLED = (".pt", ".pth")
SUFFIXES = {
    "safetensors": (".safetensors",),
    "monai": _PICKLED,
    "reference": _PICKLED,
    "nnssl": _PICKLED,
    "nnunet": _PICKLED,
}
PUBLISHED = ("hub", "monai-bundle")
FOLDERS = ("nnunet-trainer", *PUBLISHED)
Format = Literal[
    "safetensors", "monai", "reference", "nnssl", "nnunet", "nnunet-trainer", "hub", "monai-bundle"
]
LICENSE_GIVEN = "licence of the weights, as the Hub names it, such as apache-2.0 or cc-by-4.0"
NAMES_GIVEN = "name the data sets of the training in the folder; else they are numbered"


class ExportSettings(Settings):
    """Settings of `export`."""

    weights: WeightsSource = Field(description=SOURCE_GIVEN)
    format: Format = Field(
        "safetensors",
        description="safetensors: our format; monai: a state dict of monai.networks.nets.SwinUNETR; "
        "reference: the layout of the published checkpoints; nnssl: for nnUNetv2_train_pretrained and nnssl; "
        "nnunet: for nnUNetv2_train -pretrained_weights, with --plans; nnunet-trainer: a folder with a "
        "trainer for nnU-Net and these weights, for every backbone; hub: a folder with a model card, as on "
        "the Hugging Face Hub; monai-bundle: a folder that MONAI runs, of fine-tuned weights",
    )
    plans: Path | None = Field(None, description="of format nnunet: plans file of the data set")
    configuration: str = Field("3d_fullres", description="of format nnunet: configuration in the plans")
    channels: int | None = Field(
        None, ge=1, description="of format nnunet: channels of the data set (default: as in the weights)"
    )
    license: str | None = Field(
        None, min_length=1, description=f"of formats hub and monai-bundle: {LICENSE_GIVEN} (default: unknown)"
    )
    name_data_sets: bool = Field(True, description=f"of formats hub and monai-bundle: {NAMES_GIVEN}")
    monai_merging: MonaiMerging | None = Field(None, description=MONAI_MERGING)
    out: Path = Field(
        description="output file: .safetensors, or .pt or .pth for other formats; a folder for "
        "nnunet-trainer, hub and monai-bundle"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ExportSettings":
        allowed = SUFFIXES.get(self.format)
        if allowed and self.out.suffix not in allowed:
            raise ValueError(f"out: must end in {' or '.join(allowed)}, not {self.out.name!r}")
        if not allowed and self.out.suffix in (".safetensors", *_PICKLED):
            raise ValueError(f"out: must be a folder for format {self.format}, not {self.out.name!r}")
        if self.format == "nnunet" and self.plans is None:
            raise ValueError("plans: needed for format nnunet, such as nnUNetResEncUNetMPlans.json")
        if self.format != "nnunet" and (self.plans is not None or self.channels is not None):
            raise ValueError(f"{'plans' if self.plans else 'channels'}: only for format nnunet")
        if self.format not in PUBLISHED and not (self.license is None and self.name_data_sets):
            given = "license" if self.license else "name_data_sets"
            raise ValueError(f"{given}: only for format {' or '.join(PUBLISHED)}")
        return self


@command
def export(settings: ExportSettings) -> Path:
    """Write weights in another layout, and print what is lost.

    Folders of hub and monai-bundle are for publishing: nothing in them names a file or folder of this
    machine, a scan or a patient.

    Returns:
        The file or folder.

    Raises:
        Dae3dError: if the weights cannot be read, the layout does not support their network, or `out` exists
            and was not written by dae3d in this format.
    """
    network: Any = load(settings.weights, monai_merging=settings.monai_merging)
    if settings.format not in FOLDERS:
        _refuse_other_file(settings.out, network.weights)
    write: dict[str, Callable[[Any, Path], Exported]] = {
        "safetensors": _write_safetensors,
        "monai": write_monai,
        "reference": write_reference,
        "nnssl": write_nnssl,
        "nnunet": lambda network, out: write_for_plans(
            network, out, settings.plans or Path(), settings.configuration, settings.channels
        ),
        "nnunet-trainer": write_trainer,
        "monai-bundle": lambda network, out: write_bundle(
            network, out, settings.license, settings.name_data_sets
        ),
        "hub": lambda network, out: write_hub_folder(network, out, settings.license, settings.name_data_sets),
    }
    exported = write[settings.format](network, settings.out)
    _show(exported, settings)
    return settings.out


def _refuse_other_file(out: Path, source: Path) -> None:
    """Refuse to overwrite the exported weights themselves, and files not written by dae3d."""
    if out.exists() and out.samefile(source):
        raise Dae3dError(f"out: {out} is the file of the weights themselves; choose another path")
    if os.path.lexists(out) and not is_ours(out):
        raise Dae3dError(
            f"out: {out} exists and was not written by dae3d; choose another path or move it away"
        )


def _write_safetensors(network: Any, out: Path) -> Exported:
    state = learned(network)
    save_weights(out, state, network.architecture, network.info)
    return Exported(state, {})


def _show(exported: Exported, settings: ExportSettings) -> None:
    console = Console(highlight=False)

    def say(line: str) -> None:
        console.print(escape(line), soft_wrap=True)

    say(f"{settings.out}: {len(exported.state)} tensors, format {settings.format}")
    for reason in sorted(set(exported.left_out.values())):
        names = [name for name, why in exported.left_out.items() if why == reason]
        say(f"left out ({reason}): {', '.join(names)}")
    for note in exported.notes:
        say(note)
