"""A table of scan properties, used to find outliers and duplicates."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from dae3d.scans.manifest import Scan
from dae3d.store.statistics import PERCENTILES, Statistics

# `content` and `voxels` are the first 64 bits of digests; `levels` is -1 if unknown.
_ROW = np.dtype(
    [
        ("modality", np.int16),
        ("val", np.bool_),
        ("subject", np.uint64),
        ("content", np.uint64),
        ("voxels", np.uint64),
        ("shape", np.int32, 3),
        ("spacing", np.float32, 3),
        ("mean", np.float32),
        ("percentiles", np.float32, len(PERCENTILES)),
        ("levels", np.int32),
    ]
)


class Surveyed(BaseModel):
    """A scan whose voxels have been read.

    `scan` is the manifest entry with the digest of the content. `levels` is the number of distinct values in
    the mid-slices; None if they are not all integers, or if unknown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scan: Scan
    statistics: Statistics
    voxel_digest: str | None
    levels: int | None = None


@dataclass(frozen=True)
class Survey:
    """All scans: `rows` (n,) with the fields of `_ROW`, and the names of modalities by number."""

    rows: np.ndarray
    modalities: list[str]

    def of(self, modality: str) -> np.ndarray:
        """The indices of the scans of a modality."""
        return np.flatnonzero(self.rows["modality"] == self.modalities.index(modality))


def survey(scans: Iterable[Surveyed]) -> Survey:
    """Make the table in one pass, with about 100 bytes per scan."""
    codes: dict[str, int] = {}

    def row(one: Surveyed) -> tuple[Any, ...]:
        scan, statistics = one.scan, one.statistics
        content = _bits(scan.digest or hashlib.sha256(scan.name.encode(errors="surrogateescape")).hexdigest())
        return (
            codes.setdefault(scan.modality, len(codes)),
            scan.split == "val",
            _bits(hashlib.sha256(scan.subject.encode(errors="surrogateescape")).hexdigest()),
            content,
            _bits(one.voxel_digest) if one.voxel_digest else content,
            scan.shape,
            scan.spacing,
            statistics.mean,
            statistics.percentiles,
            -1 if one.levels is None else one.levels,
        )

    rows = np.fromiter(map(row, scans), _ROW)
    return Survey(rows, list(codes))


def _bits(digest: str) -> int:
    return int(digest[:16], 16)
