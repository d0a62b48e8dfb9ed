"""Prepare scans for a pre-trained network in the same way as the store it was trained on."""

import logging
from typing import NamedTuple

import numpy as np

from dae3d.errors import as_scan_error
from dae3d.models.network import Network
from dae3d.scans.given import Image
from dae3d.scans.readers import Volume
from dae3d.store.ct_units import strange_values
from dae3d.store.examine import AS_ACQUIRED, examine
from dae3d.store.scan import Preparation
from dae3d.store.statistics import Statistics

log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """A scan as it would be in the store, with its statistics; `acquired` is the affine of the file."""

    acquired: np.ndarray
    volume: Volume
    statistics: Statistics


def preparation_of(network: Network) -> Preparation:
    """How scans were prepared for a pre-trained network; as acquired if its weights do not record it."""
    told = network.info.get("preparation")
    return Preparation(**told) if told else AS_ACQUIRED


def read_prepared(image: Image, preparation: Preparation, modality: str) -> Prepared:
    """Read a scan and prepare it as for the store; warns about values implausible for its modality.

    Raises:
        ScanError: if it cannot be read, or `prepare` would reject it.
    """
    volume = image.read()
    with as_scan_error():
        conformed, statistics = examine(volume, preparation, modality)
        said = strange_values(statistics, modality)
    if said:
        log.warning("%s: used as %s, but %s", image.path, modality, said)
    return Prepared(volume.affine, conformed, statistics)
