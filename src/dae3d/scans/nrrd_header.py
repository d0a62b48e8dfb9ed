"""NRRD headers: directions, spacings, units and data files.

Format: https://teem.sourceforge.net/nrrd/format.html
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dae3d.errors import ScanError
from dae3d.scans.itk_header import ItkHeader, Placing, floats, numbered, text_lines
from dae3d.scans.lengths import units_as_mm

# Anatomical spaces, and the signs that their coordinates still need after ITK, which reads those with time as
# LPS.
_ITKS_OWN = (1.0, 1.0, 1.0)
_SPACES = {
    "left-posterior-superior": _ITKS_OWN,
    "right-anterior-superior": _ITKS_OWN,
    "left-anterior-superior": _ITKS_OWN,
    "left-posterior-superior-time": (1.0, 1.0, 1.0),
    "right-anterior-superior-time": (-1.0, -1.0, 1.0),
    "left-anterior-superior-time": (1.0, -1.0, 1.0),
}
_SPACES |= {"".join(word[0] for word in name.split("-")): signs for name, signs in _SPACES.items()}
# Kinds of axes that are not components of one voxel's value.
_DOMAIN = ("space", "domain", "time", "none", "???")
_VECTOR = re.compile(r"\(([^)]*)\)|none", re.IGNORECASE)
_QUOTED = re.compile(r'"([^"]*)"')


class NrrdHeader(ItkHeader):
    """The text of a NRRD header. Field names are in lower case, without blanks."""

    image_io = "NrrdImageIO"

    @classmethod
    def read(cls, path: Path) -> "NrrdHeader":
        """Read the header of a NRRD file.

        Raises:
            OSError: if it cannot be opened.
        """
        fields: dict[str, str] = {}
        more: list[str] = []
        end = 0
        for line, place in text_lines(path):
            end = place
            if fields.get("datafile", "").startswith("LIST"):
                more.append(line)
                continue
            if not line:
                break
            name, colon, value = line.partition(":")
            # "key:=value" is the user's own.
            if colon and not line.startswith("#") and not value.startswith("="):
                fields["".join(name.lower().split())] = value.strip()
        return cls(path, fields, more, end)

    def _names(self) -> Iterable[str]:
        value = self.fields.get("datafile", "")
        words = value.split()
        if words and words[0] == "LIST":
            return [line.strip() for line in self.more if line.strip()]
        if len(words) in (4, 5) and "%" in words[0]:
            return numbered(words[0], floats(words[1:4]))
        return [value] if value else []

    def placing(self, affine: np.ndarray) -> Placing:
        """See `ItkHeader.placing`. Voxel sizes are those of the directions, else the spacings, else 1 mm."""
        axes = self._axes()
        directions = [_vector(match) for match in _VECTOR.finditer(self.fields.get("spacedirections", ""))]
        spacings = floats(self.fields.get("spacings", "").split())
        sizes = [float(np.linalg.norm(vector)) for vector in directions] or spacings
        if sizes and not np.isfinite([sizes[axis] for axis in axes]).all():
            raise ScanError(f"zero or non-finite spacing: {tuple(sizes[axis] for axis in axes)}")
        space = self.fields.get("space", "").lower()
        if not sizes:
            remark = "no voxel size and no orientation: read as 1 mm, LPS"
        elif not directions:
            remark = "no orientation (no space directions): read as LPS"
        elif space not in _SPACES:
            remark = f"no anatomical orientation (space {space[:40] or 'without a name'}): read as LPS"
        else:
            remark = ""
        words = _QUOTED.findall(self.fields.get("spaceunits" if directions else "units", ""))
        # Without directions, world coordinates run along the axes.
        chosen = range(3) if directions else axes
        units, converted = units_as_mm([words[k] if k < len(words) else "" for k in chosen])
        x, y, z = (s * mm for s, mm in zip(_SPACES.get(space, _ITKS_OWN), units, strict=True))
        return Placing((x, y, z), "; ".join(filter(None, [remark, converted])))

    def _axes(self) -> list[int]:
        """The numbers of the three axes that ITK uses as spatial axes."""
        count = len(self.fields.get("sizes", "").split())
        kinds = self.fields.get("kinds", "").lower().split() or ["space"] * count
        return [axis for axis, kind in enumerate(kinds) if kind in _DOMAIN][:3]


def _vector(match: re.Match[str]) -> list[float]:
    """The direction of an axis; not finite if it has none."""
    return floats(match[1].split(",")) if match[1] else [float("nan")]
