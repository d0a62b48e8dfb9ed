"""The command `export`: write weights in our layout, or in that of another program."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from rich.console import Console
from rich.markup import escape

from dae3d.errors import Dae3dError
from dae3d.exporting.exported import Exported, learned
from dae3d.exporting.nnunet import write_for_plans, write_nnssl, write_trainer
from dae3d.exporting.swin import write_monai, write_reference
from dae3d.models.contents import MONAI_MERGING, MonaiMerging
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


class ExportSettings(Settings):
    """Settings of `export`."""

    weights: Path = Field(description="run folder (its best weights), or file of weights")
    format: Literal["safetensors", "monai", "reference", "nnssl", "nnunet", "nnunet-trainer"] = Field(
        "safetensors",
        description="safetensors: our format; monai: a state dict of monai.networks.nets.SwinUNETR; "
        "reference: the layout of the published checkpoints; nnssl: for nnUNetv2_train_pretrained and nnssl; "
        "nnunet: for nnUNetv2_train -pretrained_weights, with --plans; nnunet-trainer: a folder with a "
        "trainer for nnU-Net and these weights, for every backbone",
    )
    plans: Path | None = Field(None, description="of format nnunet: plans file of the data set")
    configuration: str = Field("3d_fullres", description="of format nnunet: configuration in the plans")
    channels: int | None = Field(
        None, ge=1, description="of format nnunet: channels of the data set (default: as in the weights)"
    )
    monai_merging: MonaiMerging | None = Field(None, description=MONAI_MERGING)
    out: Path = Field(
        description="output file: .safetensors, or .pt or .pth for the other formats; a folder for "
        "nnunet-trainer"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ExportSettings":
        allowed = SUFFIXES.get(self.format)
        if allowed and self.out.suffix not in allowed:
            raise ValueError(f"out: must end in {' or '.join(allowed)}, not {self.out.name!r}")
        if self.format == "nnunet" and self.plans is None:
            raise ValueError("plans: needed for format nnunet, such as nnUNetResEncUNetMPlans.json")
        if self.format != "nnunet" and (self.plans is not None or self.channels is not None):
            raise ValueError(f"{'plans' if self.plans else 'channels'}: only for format nnunet")
        return self


@command
def export(settings: ExportSettings) -> Path:
    """Write weights in another layout, and print what is lost.

    Returns:
        The file, or the folder.

    Raises:
        Dae3dError: if the weights cannot be read, the layout does not support their network, or `out` exists
            and is not a weight file written by dae3d.
    """
    network: Any = load(settings.weights, monai_merging=settings.monai_merging)
    if settings.format in SUFFIXES:
        _refuse_other_file(settings.out, network.weights)
    elif settings.out.exists() and not settings.out.is_dir():
        raise Dae3dError(f"out: {settings.out} is a file; name a folder")
    write: dict[str, Callable[[Any, Path], Exported]] = {
        "safetensors": _write_safetensors,
        "monai": write_monai,
        "reference": write_reference,
        "nnssl": write_nnssl,
        "nnunet": lambda network, out: write_for_plans(
            network, out, settings.plans or Path(), settings.configuration, settings.channels
        ),
        "nnunet-trainer": write_trainer,
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
