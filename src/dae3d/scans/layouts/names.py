"""Layouts of public data sets by their file names."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dae3d.scans.manifest import LeftOut
from dae3d.scans.modality import label_in_list
from dae3d.scans.readers import suffix
from dae3d.scans.sources import Candidate, files_in

NIFTI = r"\.nii(\.gz)?$"


class FileKind(NamedTuple):
    """Files of one kind, by a regular expression that is searched for in their path.

    Its group `subject` is the scan's subject, its optional group `modality` the modality in the file name.
    Files that are not scans have a `reason` instead.
    """

    pattern: str
    modality: str | None = None
    reason: str | None = None


# By the names in LAYOUTS. The names `images/img_<n>` and `Image_LIDC/<patient>_<n>` are those that the
# published lists give to converted series; the releases themselves are DICOM.
KINDS: dict[str, Sequence[FileKind]] = {
    "luna16": (
        FileKind(r"/seg-lungs-LUNA16/", reason="lung segmentation of LUNA16"),
        FileKind(r"/subset_?\d/(?P<subject>1\.3\.6\.1\.4\.1\.14519\.[\d.]+\d)\.(mhd|mha|nii|nii\.gz)$", "ct"),
    ),
    "covid19": (
        FileKind(r"/volume-covid19-A-\d{4}\w*_(seg|mask)" + NIFTI, reason="segmentation"),
        FileKind(r"/volume-covid19-(?P<subject>A-\d{4})(_day\d+|_\d+|_ct)*" + NIFTI, "ct"),
    ),
    "brats21": (
        FileKind(r"/BraTS2021_\d{5}_seg" + NIFTI, reason="tumour segmentation"),
        FileKind(r"/(?P<subject>BraTS2021_\d{5})_(?P<modality>t1ce|t1|t2|flair)" + NIFTI),
    ),
    "btcv": (
        FileKind(r"/label\d{4}(_avg)?" + NIFTI, reason="organ segmentation"),
        FileKind(r"/(img|imagesTr|imagesTs)/(?P<subject>img\d{4})" + NIFTI, "ct"),
    ),
    "feta": (
        FileKind(r"/sub-\w+_rec-\w+_dseg" + NIFTI, reason="tissue segmentation"),
        FileKind(r"/(?P<subject>sub-[A-Za-z0-9]+)_rec-[A-Za-z0-9]+_T2w" + NIFTI, "t2"),
    ),
    "hnscc": (FileKind(r"/images/(?P<subject>img_\d+)" + NIFTI, "ct"),),
    "ct-colonography": (FileKind(r"/images/(?P<subject>img_\d+)" + NIFTI, "ct"),),
    "lidc-idri": (FileKind(r"/(?P<subject>LIDC-IDRI-\d{4})_\d+" + NIFTI, "ct"),),
}


def candidates_by_name(name: str, root: Path, dataset: str | None) -> Iterator[Candidate | LeftOut]:
    """The scans of the set `name` under `root`, and the files left out; `dataset` renames the set."""
    for file in files_in(root, set()):
        if isinstance(file, LeftOut):
            yield file
        elif suffix(file):
            yield _candidate(name, file, root, dataset or name)


def _candidate(name: str, file: Path, root: Path, dataset: str) -> Candidate | LeftOut:
    shown = file.relative_to(root).as_posix()
    # With the root's own name, so that a part of the set can be given (`subset3`).
    told = told_by_name(name, f"{root.name}/{shown}")
    if isinstance(told, str):
        return LeftOut(path=file, reason=told)
    modality, subject = told
    return Candidate(file, shown, root, dataset, file, modality=modality, subject=subject)


def told_by_name(name: str, shown: str) -> tuple[str, str] | str:
    """The modality and subject of the scan of set `name` at the path `shown`, or why it is left out."""
    for kind in KINDS[name]:
        match = re.search(kind.pattern, f"/{shown}")
        if match and kind.reason:
            return kind.reason
        if match:
            return label_in_list(kind.modality or match["modality"]), f"{name}/{match['subject']}"
    return f"not a scan of {name}, by its name"
