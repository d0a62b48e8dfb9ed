"""The table of backbones. To add one, write its `Architecture` in a file of its own, and add it here."""

from typing import Any

from dae3d.errors import Dae3dError
from dae3d.models.architecture import Architecture
from dae3d.models.swin_unetr import SwinArchitecture

BACKBONES: dict[str, type[Architecture]] = {each.backbone: each for each in (SwinArchitecture,)}
_FIRST = SwinArchitecture.backbone  # of files that do not name theirs


def architecture_of_header(fields: dict[str, Any]) -> Architecture:
    """The architecture of a weights file, from the fields in its header.

    Raises:
        Dae3dError: if this version does not have its backbone.
        TypeError: if a field is unknown.
    """
    name = fields.get("backbone", _FIRST)
    if name not in BACKBONES:
        raise Dae3dError(f"backbone {name!r} is not one of this version: {', '.join(BACKBONES)}")
    values = {field: _as_tuple(value) for field, value in fields.items() if field != "backbone"}
    return BACKBONES[name](**values)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
