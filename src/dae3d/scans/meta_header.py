"""MetaImage headers: voxel sizes, units, orientation, data files, and whether the voxels are complete.

ITK reports whatever it cannot parse as "no such file", and does not notice if decompression fails.
Format: https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from nibabel.orientations import aff2axcodes

from dae3d.errors import ScanError
from dae3d.scans.compressed import check_deflated
from dae3d.scans.itk_header import ItkHeader, Placing, floats, numbered, text_lines
from dae3d.scans.lengths import units_as_mm

_FIELD = re.compile(r"\s*([^=:]*?)\s*[=:]\s*(.*?)\s*$")
_DATA = "ElementDataFile"
_NO_FIELD = ""  # the name of a line without a field, which ITK joins to the next
_MATRICES = ("TransformMatrix", "Rotation", "Orientation")
_SAME = 0.01  # relative, of sizes
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "I": "S", "S": "I"}
# Bytes of a value on disk.
_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
_TYPE = re.compile(rf"MET_U?({'|'.join(_BYTES)})(?:_ARRAY)?")


class MetaHeader(ItkHeader):
    """The text of a MetaImage header. Field names are as written, because case matters."""

    image_io = "MetaImageIO"

    @classmethod
    def read(cls, path: Path) -> "MetaHeader":
        """Read the header of a MetaImage file.

        Raises:
            OSError: if it cannot be opened.
        """
        fields: dict[str, str] = {}
        more: list[str] = []
        end = 0
        for line, place in text_lines(path):
            end = place
            if _DATA in fields:
                more.append(line)
            elif match := _FIELD.match(line):
                fields[match[1]] = match[2]
                if match[1] == _DATA and not match[2].startswith("LIST"):
                    break
            elif line.strip() and not line.startswith(("#", "//")):
                fields[_NO_FIELD] = line
        return cls(path, fields, more, end)

    def _names(self) -> Iterable[str]:
        value = self.fields.get(_DATA, "")
        words = value.split()
        if not words or value.lower() == "local":
            return []
        if words[0] == "LIST":
            return [line.strip() for line in self.more if line.strip()]
        if len(words) == 4 and "%" in words[0]:
            return numbered(words[0], floats(words[1:]))
        return [value]

    def placing(self, affine: np.ndarray) -> Placing:
        """See `ItkHeader.placing`; with remarks on missing or contradictory sizes and orientations."""
        (mm,), converted = units_as_mm([self.fields.get("DistanceUnits", "")])
        remarks = [*self._on_size(), *self._on_orientation(affine), converted]
        return Placing((mm, mm, mm), "; ".join(filter(None, remarks)))

    def _on_size(self) -> Iterator[str]:
        spacing, size = self._numbers("ElementSpacing"), self._numbers("ElementSize")
        if not (spacing or size):
            yield "no voxel size: read as 1 mm"
        elif spacing and size and not np.allclose(np.abs(spacing), np.abs(size), rtol=_SAME):
            yield "ElementSpacing and ElementSize disagree: ElementSpacing is used"

    def _on_orientation(self, affine: np.ndarray) -> Iterator[str]:
        axes = "".join(axis or "?" for axis in aff2axcodes(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine))
        letters = self.fields.get("AnatomicalOrientation", "").upper()
        told = len(letters) == 3 and set(letters) <= set(_OPPOSITE)
        # Some writers give the direction that axes point to, ITK the one they come from.
        agrees = letters in (axes, "".join(_OPPOSITE.get(axis, "?") for axis in axes))
        matrix = next((self._numbers(name) for name in _MATRICES if name in self.fields), None)
        if matrix is None:
            if not told:
                yield "no orientation (no TransformMatrix): read as LPS"
            elif not agrees:
                yield f"AnatomicalOrientation ({letters}) is ignored without TransformMatrix: read as LPS"
            return
        if told and not agrees:
            yield f"AnatomicalOrientation ({letters}) and TransformMatrix ({axes}) disagree: that is used"
        lengths = np.linalg.norm(np.reshape(matrix, (self._dimensions, -1)), axis=1)
        if not np.allclose(lengths, 1, rtol=_SAME):
            shown = " x ".join(f"{length:.4g}" for length in lengths)
            yield f"TransformMatrix is not a rotation ({shown}): it scales the voxel size"

    def check(self, whole: bool) -> None:
        """See `ItkHeader.check`. If decompression fails, ITK returns uninitialised memory."""
        lacking = [name for name in ("NDims", "DimSize", "ElementType", _DATA) if name not in self.fields]
        if lacking:
            raise ScanError(f"unreadable: its header has no {lacking[0]}; is it cut short?")
        if _NO_FIELD in self.fields:
            raise ScanError("unreadable: its header is damaged: it has a line that is not a field")
        if self._number("NDims", 0) != self._dimensions:
            raise ScanError(f"unreadable: DimSize has {self._dimensions} numbers, but NDims is different")
        counts = dict.fromkeys(("ElementSpacing", "ElementSize", "Offset"), self._dimensions)
        for name, count in (counts | dict.fromkeys(_MATRICES, self._dimensions**2)).items():
            if name in self.fields and len(self._numbers(name)) != count:
                raise ScanError(f"unreadable: {name} has {len(self._numbers(name))} of {count} numbers")
        super().check(whole)
        compressed = self._is("CompressedData")
        packed = int(self._number("CompressedDataSize", 0))
        if compressed and not self.data_files() and packed <= 0:
            raise ScanError("unreadable: CompressedData without CompressedDataSize")
        if not whole:
            return
        if compressed:
            # ITK does not read compressed voxels from several files.
            path, start = self._parts()[0]
            check_deflated(path, start, packed, self._bytes)
        elif not self._is("BinaryData", default=True):
            text = b"".join(path.read_bytes()[start:] for path, start in self._parts())
            there = len(text.split())
            if there < self._values:
                raise ScanError(f"unreadable: truncated: {there} of {self._values} values of voxels")
            if not text[-1:].isspace():
                raise ScanError("unreadable: ASCII voxels without a blank or line end after the last one")

    def _parts(self) -> list[tuple[Path, int]]:
        """The voxel files, and the byte where the voxels begin in each."""
        skipped = max(0, int(self._number("HeaderSize", 0)))
        return [(path, skipped) for path in self.data_files()] or [(self.path, self.end)]

    @property
    def _dimensions(self) -> int:
        return len(self._numbers("DimSize"))

    @property
    def _values(self) -> int:
        return int(math.prod(self._numbers("DimSize")) * self._number("ElementNumberOfChannels", 1))

    @property
    def _bytes(self) -> int:
        """The bytes of the voxels, 0 if their type is unknown."""
        match = _TYPE.fullmatch(self.fields.get("ElementType", ""))
        return self._values * _BYTES[match[1]] if match else 0

    def _is(self, name: str, default: bool = False) -> bool:
        return self.fields[name][:1] in ("T", "t", "1") if name in self.fields else default

    def _number(self, name: str, default: float) -> float:
        return (self._numbers(name) or [default])[0]

    def _numbers(self, name: str) -> list[float]:
        return floats(self.fields.get(name, "").split())
