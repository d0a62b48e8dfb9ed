"""Scans named by a user: files, one volume of a 4-D file, DICOM series, and folders of these."""

import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from dae3d.errors import Dae3dError, ScanError
from dae3d.scans.ahead import in_threads
from dae3d.scans.dicom.finder import find_series
from dae3d.scans.dicom.header import is_dicom
from dae3d.scans.dicom.identity import load_salt
from dae3d.scans.dicom.volume import read_series
from dae3d.scans.header_cache import read_facts
from dae3d.scans.index_tables import short
from dae3d.scans.manifest import LeftOut
from dae3d.scans.modality import LIST_NAMES, label_by_bids
from dae3d.scans.modality_conflicts import conflict
from dae3d.scans.readers import Volume, read_volume, scan_stem, suffix, volume_count
from dae3d.scans.sources import absolute, files_in
from dae3d.scans.subjects import sequence_at_end

log = logging.getLogger(__name__)

# Descriptions of settings.
SCANS_GIVEN = (
    "scan files, and folders of scans or of DICOM series; the channels of one scan joined by commas, in the "
    "order in which the weights were trained (errors name it): t1.nii.gz,flair.nii.gz"
)
VOLUME_GIVEN = (
    "which volume of 4-D files (time series) to take, counted from 0 (default: such files are refused)"
)

LABEL_MAP = "label map by its name"
_LABEL_MAP = re.compile(
    r"(?:.*[_.-])?(?:d?seg|probseg|segmentations?|(?:deface)?mask|msk|labels?|roi|gt|aseg|aparc|probabilities)",
    re.IGNORECASE,
)
_THREADS = 8
_SHOWN = 20  # lines of a message


class Told(NamedTuple):
    """A modality label and where it comes from, such as "its BIDS name"; `certain` if that is reliable."""

    label: str
    source: str
    certain: bool


@dataclass(frozen=True)
class Image:
    """One image, which may be a channel of a scan.

    Attributes:
        path: its file; of a DICOM series of several files, the folder that they lie in or below.
        volume: which one of a 4-D file, from 0.
        files: the files to read: the file itself, or a series' files in slice order.
        series: digest that distinguishes a DICOM series from others in its folder; "" for other files.
        study: digest of a DICOM series' study.
        header: modality label from the DICOM header.
    """

    path: Path
    files: tuple[Path, ...]
    volume: int | None = None
    series: str = ""
    study: str = ""
    header: str | None = None

    @classmethod
    def of(cls, path: Path, volume: int | None = None) -> "Image":
        """The image in a file that is not DICOM."""
        return cls(path, (path,), volume)

    @cached_property
    def told(self) -> Told | None:
        """Its modality by header or name, if they give it."""
        if self.series:
            return Told(self.header, "its DICOM header", certain=True) if self.header else None
        stem = scan_stem(self.path)
        by_bids = label_by_bids(stem)
        if by_bids is not None:
            return Told(by_bids, "its BIDS name", certain=True)
        word = sequence_at_end(stem)
        if word is None:
            return None
        return Told(LIST_NAMES.get(word.lower(), word.lower()), "its name", certain=False)

    def left_out(self, reason: str) -> LeftOut:
        """The entry that says it is left out."""
        return LeftOut(path=self.path, reason=reason, files=len(self.files))

    def read(self) -> Volume:
        """Its voxels.

        Raises:
            ScanError: if they cannot be read, or it is 4-D and no volume is chosen.
        """
        if self.series:
            return read_series(self.files)
        if self.volume is None:
            count = volume_count(self.path)
            if count > 1:
                raise ScanError(
                    f"4-D: {count} volumes; --volume N takes one, counted from 0; channels must be "
                    "separate files"
                )
        return read_volume(self.path, self.volume)


@dataclass(frozen=True)
class FoundImages:
    """The images in a folder, and the files left out."""

    images: list[Image]
    left_out: list[LeftOut]


def images_at(
    path: Path, volume: int | None, ignored: Callable[[Path], bool] = lambda _: False
) -> FoundImages:
    """The image at a path, or the images in a folder.

    Args:
        path: a file, which need not exist before it is read; a DICOM file; or a folder.
        volume: which one of a 4-D file or DICOM time series, from 0.
        ignored: whether a file of a folder is ignored.

    Raises:
        Dae3dError: if a folder has no image, or a DICOM file is not one.
    """
    path = absolute(path)
    if path.is_dir():
        found = _in_folder(path, volume, ignored)
    elif suffix(path) is None and is_dicom(path) and path.exists():
        found = _series([path], volume)
    else:
        found = FoundImages([Image.of(path, volume)], [])
    if not found.images:
        raise Dae3dError(f"{path}: no usable scan: {_reasons(found.left_out) or 'no scan files'}")
    return found


def say_found(folder: Path, count: int, left_out: Sequence[LeftOut]) -> None:
    """Log how many scans a folder has, and what was left out and why.

    Raises:
        Dae3dError: if it has none.
    """
    if not count:
        raise Dae3dError(f"{folder}: no usable scan; left out: {_reasons(left_out)}")
    log.info("scans in %s: %d", folder, count)
    if left_out:
        log.warning("%s: left out: %s", folder, _reasons(left_out))


def _reasons(left_out: Iterable[LeftOut]) -> str:
    """How many files are left out for each reason, with an example."""
    kinds: dict[str, list[LeftOut]] = {}
    for item in left_out:
        kinds.setdefault(item.reason, []).append(item)
    return "; ".join(
        f"{reason}, {sum(item.files for item in items)} (such as {short(items[0].path)})"
        for reason, items in sorted(kinds.items(), key=lambda pair: -len(pair[1]))
    )


def _in_folder(folder: Path, volume: int | None, ignored: Callable[[Path], bool]) -> FoundImages:
    """All images under a folder: files by suffix, and DICOM series whatever their file names."""
    images: list[Image] = []
    left_out: list[LeftOut] = []
    others: list[Path] = []
    scans: list[Path] = []
    for path in files_in(folder, set()):
        if isinstance(path, LeftOut):
            left_out.append(path)
        elif ignored(path):
            continue
        elif suffix(path) and _LABEL_MAP.fullmatch(scan_stem(path)):
            left_out.append(LeftOut(path=path, reason=LABEL_MAP))
        else:
            (scans if suffix(path) else others).append(path)
    for path, facts in in_threads(read_facts, scans, _THREADS):
        if facts.dicom:
            others.append(path)
        elif facts.voxels is None or (facts.volumes > 1 and volume is None):
            advice = " (--volume N takes one volume, counted from 0)" if facts.volumes > 1 else ""
            left_out.append(LeftOut(path=path, reason=f"{facts.reason}{advice}"))
        else:
            images.append(Image.of(path, volume if facts.volumes > 1 else None))
    dicom = [path for path, yes in in_threads(is_dicom, others, _THREADS) if yes]
    series = _series(dicom, volume) if dicom else FoundImages([], [])
    return FoundImages(images + series.images, left_out + series.left_out)


def _series(files: Sequence[Path], volume: int | None) -> FoundImages:
    """The DICOM series in the files."""
    found = FoundImages([], [])
    for series in find_series(files, load_salt(None), _THREADS):
        if isinstance(series, LeftOut):
            found.left_out.append(series)
        elif series.volumes > 1 and series.volume != volume:
            reason = f"of {series.volumes} volumes in a series (--volume N takes one, counted from 0)"
            found.left_out.append(LeftOut(path=series.folder, reason=reason, files=len(series.files)))
        else:
            paths = tuple(series.folder / name for name in series.files)
            home = paths[0] if len(paths) == 1 else series.folder
            found.images.append(Image(home, paths, None, series.series, series.study, series.modality))
    return found


def contradictions(images: Iterable[Image], modalities: Iterable[str]) -> Iterator[tuple[Image, str, bool]]:
    """The images whose header or name gives another modality than the one expected.

    Yields:
        The image; a message; and whether it certainly comes from another kind of scanner.
    """
    for image, modality in zip(images, modalities, strict=True):
        told = image.told
        found = conflict(told.label, modality) if told else None
        if told and found:
            sentence = f"{image.path}: {told.label} by {told.source}, but {modality} is expected"
            yield image, sentence, found == "machine" and told.certain


def listed(lines: Sequence[str]) -> str:
    """Lines of a message, the first 20 of many."""
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n  ".join([*lines[:_SHOWN], *more])


def image_names(images: Sequence[Image]) -> list[Path]:
    """A path to name each image's results after; series that share a folder get their digest appended."""
    paths = Counter(image.path for image in images)
    return [
        image.path.with_name(f"{image.path.name}_{image.series[:8]}")
        if image.series and paths[image.path] > 1
        else image.path
        for image in images
    ]


def numbered_names(paths: Sequence[Path]) -> list[str]:
    """A name for the results of each scan: its stem, numbered if not unique."""
    stems = [scan_stem(path) for path in paths]
    names: list[str] = []
    for stem in stems:
        numbered = (f"{stem}-{number}" for number in itertools.count(1))
        once = stems.count(stem) == 1
        names.append(stem if once else next(n for n in numbered if n not in stems and n not in names))
    return names
