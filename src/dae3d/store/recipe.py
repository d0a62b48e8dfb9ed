"""The preprocessing of labelled cases; stored in the weights and repeated for prediction."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from dae3d.scans.modality import Label
from dae3d.scans.padding import HOUNSFIELD
from dae3d.scans.task_labels import parse_labels
from dae3d.store.boxes import Roi
from dae3d.store.intensity import ScalingRules

Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Spacing = tuple[Millimetres, Millimetres, Millimetres]


class CaseGeometry(BaseModel):
    """The part of a recipe that stored files depend on; if it changes, a case is prepared again.

    `hounsfield`: whether each channel is in Hounsfield units, on which padding, statistics and foreground
    depend; empty in files of early versions. `ignore`: value of voxels of unknown class in label files.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    spacing: Spacing | None
    crop_foreground: bool
    label_values: tuple[int, ...]
    hounsfield: tuple[bool, ...] = ()
    ignore: int | None = None

    @model_serializer(mode="wrap")
    def _without_default(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As in earlier versions if no voxels are ignored: names of stored cases are digests of it."""
        return {name: value for name, value in dumped(self).items() if (name, value) != ("ignore", None)}


class CaseRecipe(BaseModel):
    """How a case's channels and label are preprocessed for the network.

    `modalities` has one label per channel. `labels` maps the values in label files to class names; 0 is the
    background, and the index of a class is the rank of its value. `spacing` is in mm along the RAS axes
    (none: as acquired). `crop_foreground` crops to the foreground of all channels plus 10 mm. `intensity` has
    scaling rules by modality, which override the defaults. `roi` has the sides of the network's crops in
    voxels. `ignore` is the value of voxels of unknown class in label files, if any; predictions do not depend
    on it, and weights do not record it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    modalities: Annotated[tuple[Label, ...], Field(min_length=1)]
    labels: dict[int, str]
    spacing: Spacing | None = None
    crop_foreground: bool = False
    intensity: ScalingRules = {}
    roi: Roi = (96, 96, 96)
    ignore: int | None = None

    @field_validator("labels")
    @classmethod
    def _classes(cls, labels: dict[int, str]) -> dict[int, str]:
        return parse_labels(labels)

    @property
    def label_values(self) -> tuple[int, ...]:
        """The value of each class in label files, ascending: the index of a class is its position here."""
        return tuple(self.labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, background first."""
        return tuple(self.labels.values())

    @property
    def geometry(self) -> CaseGeometry:
        """The part of the recipe that stored files depend on."""
        return CaseGeometry(
            spacing=self.spacing,
            crop_foreground=self.crop_foreground,
            label_values=self.label_values,
            hounsfield=tuple(modality in HOUNSFIELD for modality in self.modalities),
            ignore=self.ignore,
        )
