"""Settings of `pseudo-label`."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from dae3d.cores import THREADS
from dae3d.inference.pseudo_labels import Rules
from dae3d.models.hub import WeightsSource
from dae3d.scans.channels import ScanText
from dae3d.scans.given import SCANS_GIVEN
from dae3d.scans.sides import AXES_SHOWN, Axis
from dae3d.settings import Positional, Settings


class PseudoLabelSettings(Settings):
    """Settings of `pseudo-label`."""

    scans: Annotated[list[ScanText], Positional()] = Field([], description=SCANS_GIVEN)
    weights: list[WeightsSource] = Field(
        min_length=1,
        description="fine-tuned runs (their best weights), weight files or hf://ORG/NAME[/FILE]; several, "
        "such as runs of other seeds, also show where they disagree",
    )
    task: Path = Field(description="list of labelled cases, as for `dae3d finetune`; it is extended")
    fold: int | None = Field(None, ge=0, description="fold of the list that is held out")
    out: Path = Field(description="output folder")
    data: Path | None = Field(
        None,
        description="instead of scans: a list or a manifest of unlabelled scans (default: the `test` cases "
        "of --task)",
    )
    ignore_below: float = Field(
        0.6,
        ge=0,
        le=1,
        description="voxels whose most probable class is less probable are ignored in training",
    )
    min_probability: float = Field(
        0.7,
        ge=0,
        le=1,
        description="leave out scans whose mean probability over the predicted classes is lower",
    )
    min_agreement: float = Field(
        0.8, ge=0, le=1, description="leave out scans with a lower mean Dice between the networks"
    )
    volume_factor: float = Field(
        1.5,
        ge=1,
        description="leave out scans in which the volume of a class is so many times smaller or larger than "
        "in any labelled case",
    )
    weight: float | None = Field(
        None,
        gt=0,
        description="how often training crops are drawn from a pseudo-labelled case, relative to a labelled "
        "one (default: all of them together as often as all labelled ones, at most 1)",
    )
    overlap: float = Field(0.5, ge=0, lt=1, description="overlap of neighbouring windows")
    mirror: bool = Field(False, description="average over mirror images, as `dae3d predict --mirror`")
    mirror_axes: list[Axis] | None = Field(
        None, min_length=1, description=f"with --mirror: mirror along these axes instead: {AXES_SHOWN}"
    )
    window_batch: int = Field(1, ge=1, description="windows per batch")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int | None = Field(None, ge=1, description=THREADS)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.scans and self.data is not None:
            raise ValueError("scans, data: give either scans or a list with --data")
        if self.mirror_axes and not self.mirror:
            raise ValueError("mirror_axes: requires --mirror")
        return self

    @property
    def rules(self) -> Rules:
        """What a pseudo-label must satisfy."""
        return Rules(self.min_probability, self.min_agreement, self.volume_factor)
