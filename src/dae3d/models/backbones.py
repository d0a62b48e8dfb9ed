"""The table of backbones.

To add one, write its `Architecture` and its settings in a folder of its own, add the former to `BACKBONES`,
and let `NetworkSettings` inherit the latter.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field

from dae3d.errors import Dae3dError
from dae3d.models.architecture import Architecture
from dae3d.models.resenc import ResEncArchitecture, ResEncSettings
from dae3d.models.swin_unetr import SwinArchitecture, SwinSettings
from dae3d.settings import Group, Settings
from dae3d.store.boxes import Triple

BACKBONES: dict[str, type[Architecture]] = {
    each.backbone: each for each in (SwinArchitecture, ResEncArchitecture)
}
FIRST = SwinArchitecture.backbone  # of files that do not name theirs
CHOICE = "; ".join(f"{name}, {kind.title}" for name, kind in BACKBONES.items())
NETWORK = Group("network")


def known_backbone(name: str) -> str:
    """Raise ValueError if there is no backbone of this name."""
    if name not in BACKBONES:
        raise ValueError(f"must be one of {', '.join(BACKBONES)}")
    return name


class _Choice(Settings):
    backbone: Annotated[Annotated[str, AfterValidator(known_backbone)] | None, NETWORK] = Field(
        None, description=f"network: {CHOICE} (default: as in --init, else {FIRST})"
    )


class NetworkSettings(ResEncSettings, SwinSettings, _Choice):
    """The choice of backbone and the settings of all; None stands for that of --init or the default."""

    @property
    def architecture_class(self) -> type[Architecture]:
        """Of the chosen backbone."""
        return BACKBONES[self.backbone or FIRST]

    def architecture_of(
        self, roi: Triple, spacing: Sequence[float] = (1.0, 1.0, 1.0), **values: Any
    ) -> Architecture:
        """The architecture with these settings; arguments as for `Architecture.of`."""
        return self.architecture_class.of(self, roi, spacing, **values)

    def sizes(self, kind: type[Architecture] | None = None) -> dict[str, Any]:
        """The choice of backbone and its own settings, or those of the backbone `kind`."""
        names = (kind or self.architecture_class).settings.model_fields
        return {"backbone": self.backbone, **{name: getattr(self, name) for name in names}}

    @property
    def complete(self) -> bool:
        """Whether no size of the network is missing."""
        names = ("backbone", *_fields(self.architecture_class))
        return None not in [getattr(self, name) for name in names]

    @property
    def needs_spacing(self) -> bool:
        """Whether sizes are missing that depend on the voxel size."""
        return self.architecture_class.needs_spacing and not self.complete

    def check_others(self, kind: type[Architecture]) -> None:
        """Raise ValueError if a setting of another backbone than `kind` was given."""
        own = kind.settings.model_fields
        for other in BACKBONES.values():
            for name in other.settings.model_fields:
                if name not in own and getattr(self, name) is not None:
                    raise ValueError(
                        f"{name}: is a setting of backbone {other.backbone}, but the network is "
                        f"{kind.backbone}"
                    )

    @staticmethod
    def without_others(values: dict[str, Any], chosen: set[str]) -> dict[str, Any]:
        """Values without those of other backbones than the one in them, unless they were chosen."""
        kind = BACKBONES.get(str(values.get("backbone")))
        if kind is None:
            return values
        others = {name for each in BACKBONES.values() for name in each.settings.model_fields}
        others -= kind.settings.model_fields.keys() | chosen
        return {name: value for name, value in values.items() if name not in others}

    def with_sizes_of(self, architecture: Architecture) -> Self:
        """The settings with the backbone of an architecture and its sizes."""
        values = asdict(architecture)
        own = {name: values[name] for name in _fields(type(architecture))}
        return self.model_copy(update={"backbone": architecture.backbone, **own})


def _fields(kind: type[Architecture]) -> list[str]:
    """The fields of an architecture that can be chosen."""
    return [name for name in kind.own() if name in kind.settings.model_fields]


def architecture_of_header(fields: dict[str, Any]) -> Architecture:
    """The architecture of a weights file, from the fields in its header.

    Raises:
        Dae3dError: if this version does not have its backbone.
        TypeError: if a field is unknown.
    """
    name = fields.get("backbone", FIRST)
    if name not in BACKBONES:
        raise Dae3dError(f"backbone {name!r} is not one of this version: {', '.join(BACKBONES)}")
    values = {field: _as_tuple(value) for field, value in fields.items() if field != "backbone"}
    return BACKBONES[name](**values)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
