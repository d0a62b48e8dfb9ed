"""Files of feature vectors: an .npz file, a .parquet file, or a folder of .npy files."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dae3d.errors import Dae3dError
from dae3d.files import (
    inside,
    reading,
    refuse_other_file,
    refuse_other_folder,
    whole_file,
    whole_folder,
)

_TABLE = "table of `embed`"
_COLUMNS = ["scan", "modality", "features"]
_KIND = "embeddings"


@dataclass(frozen=True)
class Embeddings:
    """The result of `embed`: a row of `features` (N, F) float32 for each of `scans`.

    `left_out` has the reason for each scan that could not be used.
    """

    features: np.ndarray
    scans: list[str]
    modalities: list[str]
    left_out: dict[str, str]


@dataclass(frozen=True)
class Format:
    """How embeddings are written.

    Attributes:
        refuse_other: raises Dae3dError if a path exists that was not written in this format, or if this
            format cannot be written here.
        write: writes embeddings to a path, as a whole; also takes the name of each scan's file.
    """

    refuse_other: Callable[[Path], None]
    write: Callable[[Embeddings, Path, Sequence[str]], None]


def _refuse_other_npz(path: Path) -> None:
    # A zip archive, with the name of the first array after 30 bytes.
    refuse_other_file(path, _TABLE, rb"PK\x03\x04.{26}features\.npy")


def _write_npz(embeddings: Embeddings, path: Path, names: Sequence[str]) -> None:
    scans, modalities = np.array(embeddings.scans), np.array(embeddings.modalities)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, features=embeddings.features, scans=scans, modalities=modalities)


def _refuse_other_parquet(path: Path) -> None:
    _pyarrow()
    refuse_other_file(path, _TABLE, rb"PAR1")
    if path.exists():
        with reading(path):
            found = importlib.import_module("pyarrow.parquet").read_schema(path).names
        if found != _COLUMNS:
            raise Dae3dError(
                f"out: {path} exists and is not a {_TABLE}; choose another path, or move it away"
            )


def _write_parquet(embeddings: Embeddings, path: Path, names: Sequence[str]) -> None:
    arrow = _pyarrow()
    features = embeddings.features
    lists = arrow.FixedSizeListArray.from_arrays(features.ravel(), features.shape[1])
    columns = embeddings.scans, embeddings.modalities, lists
    table = arrow.table(dict(zip(_COLUMNS, columns, strict=True)))
    with whole_file(path) as temporary:
        importlib.import_module("pyarrow.parquet").write_table(table, temporary)


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise Dae3dError(
            "out: .parquet needs pyarrow; install it with `pip install 'dae3d[parquet]'`, or write .npz"
        ) from None


def _refuse_other_npy(path: Path) -> None:
    what = "folder of embeddings"
    refuse_other_folder(path, _KIND, what, lambda name: name.endswith(".npy") and "/" not in name)


def _write_npy(embeddings: Embeddings, path: Path, names: Sequence[str]) -> None:
    with whole_folder(path, _KIND) as folder:
        for name, vector in zip(names, embeddings.features, strict=True):
            np.save(inside(folder, f"{name}.npy"), vector)


FORMATS = {
    "npz": Format(_refuse_other_npz, _write_npz),
    "parquet": Format(_refuse_other_parquet, _write_parquet),
    "npy": Format(_refuse_other_npy, _write_npy),
}
