"""The scans that pre-trained weights are to look at, one image each, and the label of each one's modality."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dae3d.errors import Dae3dError
from dae3d.scans.given import Image, images_at, say_found
from dae3d.scans.kinds import conflict, strange
from dae3d.scans.modality import label_by_bids, label_by_rules, parse_rule
from dae3d.scans.readers import scan_stem

log = logging.getLogger(__name__)

_UNKNOWN = "of unknown modality (--modality LABEL or --rule 'GLOB=LABEL' says it)"


class GivenImage(NamedTuple):
    """An image as it was named, or by its path where a folder was; and the label of its modality."""

    name: str
    image: Image
    modality: str


def given_images(
    scans: Iterable[str | Path], rules: Sequence[str], modality: str | None, volume: int | None
) -> list[GivenImage]:
    """The images that a user names, each once, with their labels; a folder stands for every image in it.

    Args:
        scans: files, DICOM series and folders.
        rules: `GLOB=LABEL`.
        modality: of the images that no rule names.
        volume: which one of 4-D files and of DICOM series in time, from 0.

    Raises:
        Dae3dError: where a single file's modality is not known, or a folder has nothing of a known one.
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
                    f"{image.path}: unknown modality; say it with --modality LABEL or --rule 'GLOB=LABEL'"
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
    """The label of an image: by a rule, `modality`, its DICOM header or its BIDS name, as `index` has it."""
    return (
        label_by_rules([parse_rule(rule) for rule in rules], path.name, path.parent.name)
        or modality
        or header
        or label_by_bids(scan_stem(path))
    )


def unseen(items: Iterable[GivenImage], known: Sequence[str]) -> str | None:
    """A sentence on the images of modalities that weights never saw; None where there are none.

    Args:
        items: images with their labels.
        known: labels of what the weights were trained on; nothing where they do not say it.
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
    return f"modality: the weights were trained on {', '.join(known)}, and never saw {told}"


def _say_contradiction(item: GivenImage) -> None:
    told = item.image.told
    if told and conflict(told.label, item.modality):
        log.warning("%s: taken as %s, but %s by %s", item.image.path, item.modality, told.label, told.source)
