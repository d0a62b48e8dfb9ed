"""Scans as a pre-trained network wants them: in the form of the store that it was trained on."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dae3d.errors import as_scan_error
from dae3d.scans.readers import Volume, read_volume
from dae3d.store.examine import AS_ACQUIRED, examine
from dae3d.store.scan import Preparation
from dae3d.store.statistics import Statistics


class Prepared(NamedTuple):
    """A scan as it would be in the store, with its statistics there; `acquired` is the affine as read."""

    acquired: np.ndarray
    volume: Volume
    statistics: Statistics


def preparation_of(network: Any) -> Preparation:
    """How scans were prepared for a pre-trained network; as acquired where its weights do not say it."""
    told = network.info.get("preparation")
    return Preparation(**told) if told else AS_ACQUIRED


def read_prepared(path: Path, preparation: Preparation, modality: str) -> Prepared:
    """Read a scan and bring it into the store's form.

    Raises:
        ScanError: where it cannot be read, or `prepare` would reject it.
    """
    volume = read_volume(path)
    with as_scan_error():
        return Prepared(volume.affine, *examine(volume, preparation, modality))
