"""Input images for pre-trained weights, with their modality labels."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dae3d.errors import Dae3dError
from dae3d.scans.given import Image, images_at, say_found
from dae3d.scans.modality import label_by_bids, label_by_rules, parse_rule
from dae3d.scans.modality_conflicts import conflict, strange
from dae3d.scans.readers import scan_stem

log = logging.getLogger(__name__)

_UNKNOWN = "of unknown modality (set --modality LABEL or --rule 'GLOB=LABEL')"


class GivenImage(NamedTuple):
    """An image, its name as given (its path if a folder was given), and its modality label."""

    name: str
    image: Image
    modality: str


def given_images(
    scans: Iterable[str | Path], rules: Sequence[str], modality: str | None, volume: int | None
) -> list[GivenImage]:
    """The images named by a user, without duplicates, with modality labels; a folder stands for all its
    images.

    Args:
        scans: files, DICOM series and folders.
        rules: `GLOB=LABEL`.
        modality: label of the images that no rule matches.
        volume: index of the volume in 4-D files and DICOM time series, from 0.

    Raises:
        Dae3dError: if the modality of a single file is unknown, or a folder has no image of a known modality.
    """
    found: dict[Image, GivenImage] = {}
    for scan in map(str, scans):
        here = images_at(Path(scan), volume)
        one = not Path(scan).is_dir()
        left_out = list(here.left_out)
        names = [scan] if one else [str(image.path) for image in here.images]
        labelled = []
        for name, image in zip(names, here.images, strict=True):
            label = modality_of(image.path, rules, modality, image.header)
            if label is None and one:
                raise Dae3dError(
                    f"{image.path}: unknown modality; set --modality LABEL or --rule 'GLOB=LABEL'"
                )
            if label is None:
                left_out.append(image.left_out(_UNKNOWN))
            else:
                shared = names.count(name) > 1
                labelled.append(GivenImage(f"{name}#{image.series}" if shared else name, image, label))
        if not one:
            say_found(Path(scan), len(labelled), left_out)
        for item in labelled:
            found.setdefault(item.image, item)
    for item in found.values():
        _say_contradiction(item)
    return list(found.values())


def modality_of(
    path: Path, rules: Sequence[str], modality: str | None, header: str | None = None
) -> str | None:
    """The label of an image by a rule, `modality`, its DICOM header or its BIDS name, in this order."""
    return (
        label_by_rules([parse_rule(rule) for rule in rules], path.name, path.parent.name)
        or modality
        or header
        or label_by_bids(scan_stem(path))
    )


def unseen(items: Iterable[GivenImage], known: Sequence[str]) -> str | None:
    """A sentence about images of modalities that the weights were not trained on; None if there are none.

    Args:
        items: images with their labels.
        known: labels of the training data of the weights; empty if unknown.
    """
    names: dict[str, list[str]] = {}
    for item in items:
        if known and strange(item.modality, known):
            names.setdefault(item.modality, []).append(item.name)
    if not names:
        return None
    told = ", ".join(
        f"{label} ({some[0]}{f' and {len(some) - 1} more' if len(some) > 1 else ''})"
        for label, some in names.items()
    )
    return f"modality: the weights were trained on {', '.join(known)}, but not on {told}"


def _say_contradiction(item: GivenImage) -> None:
    told = item.image.told
    if told and conflict(told.label, item.modality):
        log.warning("%s: used as %s, but %s by %s", item.image.path, item.modality, told.label, told.source)
