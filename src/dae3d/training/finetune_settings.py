"""Settings of fine-tuning. Defaults follow the published recipe for BTCV where it specifies them."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dae3d.models.backbones import NETWORK
from dae3d.scans.modality import Label
from dae3d.scans.sides import AXES, AXES_SHOWN, Axis
from dae3d.settings import Group
from dae3d.store.intensity import ScalingRules
from dae3d.store.recipe import Spacing
from dae3d.training.run_settings import DATA, OPTIMISATION, RECORD, TRANSFER, RunSettings
from dae3d.training.schedule import Duration, is_zero

PREPARATION = Group("preparation of the cases")
AUGMENTATION = Group("crops and augmentation")

Probability = Annotated[float, Field(ge=0, le=1)]


class FinetuneSettings(RunSettings):
    """All settings of a fine-tuning run."""

    configs: ClassVar[str] = "finetune"
    earlier: ClassVar[dict[str, Any]] = {
        **RunSettings.earlier,
        "flip_axes": list(AXES),
        "window_edges": "reference",
    }

    data: Path = Field(
        description='list of labelled cases in the format of the Medical Segmentation Decathlon ("training", '
        '"validation", "labels", "modality", "fold"); several images of a case are its channels'
    )
    max_steps: Duration = Field(10_000, description='number of optimiser steps, or of epochs as "300 epochs"')

    transfer: Annotated[Literal["both", "encoder", "decoder", "none"] | None, TRANSFER] = Field(
        None,
        description="half of --init to load; none: only its sizes (default: the encoder of pre-trained "
        "weights, both halves of segmentation weights)",
    )
    axes: Annotated[Literal["straight", "reference"] | None, TRANSFER] = Field(
        None, description="order of the token axes (default: as in --init)"
    )
    freeze: Annotated[Literal["none", "encoder"], TRANSFER] = Field(
        "none", description="half of the network that is not trained"
    )
    freeze_steps: Annotated[Duration, TRANSFER] = Field(
        0, description="steps (or epochs) after which it is trained too; 0: never"
    )

    label_fraction: Annotated[float | None, DATA] = Field(
        None, gt=0, le=1, description="share of the training cases to use, drawn by --seed"
    )
    train_cases: Annotated[int | None, DATA] = Field(
        None, ge=1, description="number of training cases to use, drawn by --seed"
    )
    fold: Annotated[int | None, DATA] = Field(
        None,
        ge=0,
        description="fold used for validation (default: the list's validation cases, else a fifth of the "
        "subjects)",
    )

    store: Annotated[Path | None, PREPARATION] = Field(
        None, description="folder of the prepared cases, can be shared by runs (default: OUT/store)"
    )
    modality: Annotated[list[Label] | None, PREPARATION] = Field(
        None, description="label of each channel (default: as in the list)"
    )
    spacing: Annotated[Spacing | None, PREPARATION] = Field(
        None, description="voxel size in mm to resample to (right, anterior, superior); none: as acquired"
    )
    crop_foreground: Annotated[bool, PREPARATION] = Field(
        False, description="crop to the foreground with a margin of 10 mm"
    )
    intensity: Annotated[ScalingRules, PREPARATION] = Field(
        {},
        description="scaling of a modality, if not the default: ct=window:-175:250, t1=zscore, "
        "t2=zscore:foreground, adc=percentiles:0.5:99.5, pet=suv:15",
    )

    prepare_workers: Annotated[int | None, PREPARATION] = Field(
        None, ge=1, description="processes, each with one case in memory (default: one per processor core)"
    )

    deep_supervision: Annotated[bool, NETWORK] = Field(
        False, description="add losses at lower resolutions, each with half the weight of the one before"
    )

    crops_per_case: Annotated[int, AUGMENTATION] = Field(
        4, ge=1, description="crops of every training case per epoch"
    )
    positive_share: Annotated[Probability, AUGMENTATION] = Field(
        0.5, description="share of crops centred on a labelled voxel, others on background"
    )
    crop_balance: Annotated[Literal["voxels", "classes"], AUGMENTATION] = Field(
        "voxels", description="draw that voxel from all labelled voxels, or draw its class first"
    )
    flip_prob: Annotated[Probability, AUGMENTATION] = Field(
        0.2, description="probability of a flip, for each of --flip-axes"
    )
    flip_axes: Annotated[list[Axis] | None, AUGMENTATION] = Field(
        None,
        min_length=1,
        description=f"axes along which crops are flipped: {AXES_SHOWN} (default: all three; if class names "
        "distinguish left from right, only those that keep the two: si, and ap with --rotate-prob 0)",
    )
    rotate_prob: Annotated[Probability, AUGMENTATION] = Field(
        0.2,
        description="probability of a rotation by 90, 180 or 270 degrees in the axial plane; by 180 degrees "
        "only, if the first two sides of --roi differ",
    )
    scale_intensity: Annotated[float, AUGMENTATION] = Field(
        0.1, ge=0, lt=1, description="intensities are multiplied by a factor of up to 1 plus or minus this"
    )
    scale_prob: Annotated[Probability, AUGMENTATION] = Field(0.1, description="probability of that")
    shift_intensity: Annotated[float, AUGMENTATION] = Field(
        0.1, ge=0, description="an offset of up to plus or minus this is added to intensities"
    )
    shift_prob: Annotated[Probability, AUGMENTATION] = Field(0.1, description="probability of that")

    lr: Annotated[float, OPTIMISATION] = Field(8e-4, gt=0, description="peak learning rate (AdamW)")
    min_lr: Annotated[float, OPTIMISATION] = Field(0.0, ge=0, description="learning rate at the end")
    warmup_lr: Annotated[float, OPTIMISATION] = Field(0.0, ge=0, description="learning rate at the start")
    weight_decay: Annotated[float, OPTIMISATION] = Field(
        1e-5, ge=0, description="weight decay of matrices and convolutions only"
    )
    layer_decay: Annotated[float, OPTIMISATION] = Field(
        1.0,
        gt=0,
        le=1,
        description="layer-wise learning rate decay: factor per stage, from the decoder back to the input",
    )
    val_cases: Annotated[int | None, RECORD] = Field(
        None, ge=1, description="validation cases to use, drawn by the seed (default: all)"
    )
    val_overlap: Annotated[float, RECORD] = Field(
        0.5, ge=0, lt=1, description="overlap of neighbouring windows in validation, as a share of a window"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.strategy == "fsdp":
            raise ValueError(
                "strategy: fsdp is not possible, because processes would wait for each other; use ddp"
            )
        if self.label_fraction is not None and self.train_cases is not None:
            raise ValueError("train_cases: cannot be combined with label_fraction; give one of them")
        if self.init is None and self.transfer in ("encoder", "decoder"):
            raise ValueError(f"transfer: {self.transfer} needs --init")
        if self.freeze == "encoder" and (self.init is None or self.transfer not in (None, "both", "encoder")):
            raise ValueError("freeze: an encoder with random weights must be trained; load one with --init")
        if not is_zero(self.freeze_steps) and self.freeze == "none":
            raise ValueError("freeze_steps: needs --freeze encoder")
        return self

    def kept(self) -> dict[str, Any]:
        """Values that decide the network, its parameters and which of them are trained, by setting."""
        return {
            **super().kept(),
            "axes": self.axes,
            "deep_supervision": self.deep_supervision,
            "freeze": self.freeze,
            "freeze_steps": is_zero(self.freeze_steps),
            "layer_decay": self.layer_decay == 1,  # whether stages have separate rates
        }
