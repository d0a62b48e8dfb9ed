"""Scans as a pre-trained network wants them: in the form of the store that it was trained on."""

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
    """A scan as it would be in the store, with its statistics there; `acquired` is the affine as read."""

    acquired: np.ndarray
    volume: Volume
    statistics: Statistics


def preparation_of(network: Network) -> Preparation:
    """How scans were prepared for a pre-trained network; as acquired where its weights do not say it."""
    told = network.info.get("preparation")
    return Preparation(**told) if told else AS_ACQUIRED


def read_prepared(image: Image, preparation: Preparation, modality: str) -> Prepared:
    """Read a scan and bring it into the store's form; values that its modality has not are said.

    Raises:
        ScanError: where it cannot be read, or `prepare` would reject it.
    """
    volume = image.read()
    with as_scan_error():
        conformed, statistics = examine(volume, preparation, modality)
        said = strange_values(statistics, modality)
    if said:
        log.warning("%s: taken as %s, but %s", image.path, modality, said)
    return Prepared(volume.affine, conformed, statistics)
