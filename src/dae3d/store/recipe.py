"""What is done to a labelled case before the network sees it; written into the weights, for predicting."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dae3d.scans.modality import Label
from dae3d.scans.padding import HOUNSFIELD
from dae3d.scans.task import parse_labels
from dae3d.store.intensity import ScalingRules

Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Spacing = tuple[Millimetres, Millimetres, Millimetres]


class CaseGeometry(BaseModel):
    """The part of a recipe that stored files depend on; with another one, a case is prepared again.

    `hounsfield` says of each channel whether it is in Hounsfield units, by which padding is told, and with it
    statistics and foreground; files that were made before that was on record have nothing there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    spacing: Spacing | None
    crop_foreground: bool
    label_values: tuple[int, ...]
    hounsfield: tuple[bool, ...] = ()


class CaseRecipe(BaseModel):
    """How a case's channels and label become what the network works on.

    `modalities` has one label a channel. `labels` maps the values in label files to the names of the classes;
    0 is the background, and a class's index is the rank of its value. `spacing` is in mm along right,
    anterior and superior (none: as acquired). `crop_foreground` cuts away what lies beyond 10 mm of the
    foreground of all channels. `intensity` has scaling rules by modality that go before the usual ones.
    `roi` is the side of the network's crop in voxels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    modalities: Annotated[tuple[Label, ...], Field(min_length=1)]
    labels: dict[int, str]
    spacing: Spacing | None = None
    crop_foreground: bool = False
    intensity: ScalingRules = {}
    roi: int = Field(96, ge=1)

    @field_validator("labels")
    @classmethod
    def _classes(cls, labels: dict[int, str]) -> dict[int, str]:
        return parse_labels(labels)

    @property
    def label_values(self) -> tuple[int, ...]:
        """The value in label files of each class, ascending: a class's index is its place here."""
        return tuple(self.labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, the background first."""
        return tuple(self.labels.values())

    @property
    def geometry(self) -> CaseGeometry:
        """The part that stored files depend on."""
        return CaseGeometry(
            spacing=self.spacing,
            crop_foreground=self.crop_foreground,
            label_values=self.label_values,
            hounsfield=tuple(modality in HOUNSFIELD for modality in self.modalities),
        )
