"""The lists of scans published with the reference implementation, which name files but no modalities.

They are recognised by their file names, which give the data set. Modality and subject then follow from the
names of the scans, see `names`.
"""

import re
from pathlib import Path

from dae3d.scans.layouts.names import told_by_name
from dae3d.scans.readers import SUFFIXES, scan_stem

# The lists at github.com/Project-MONAI/research-contributions, and the names of their sets' layouts.
PUBLISHED = {
    "dataset_LUNA16_0.json": "luna16",
    "dataset_TCIAcovid19_0.json": "covid19",
    "dataset_HNSCC_0.json": "hnscc",
    "dataset_TCIAcolon_v2_0.json": "ct-colonography",
    "dataset_LIDC_0.json": "lidc-idri",
    "brats21_pre.json": "brats21",
}

_SUBSET = re.compile(r"subset_(\d)")


def told_by_published(name: str, scan: str) -> tuple[str | None, str | None]:
    """The modality and subject of a `scan` named in a list of the set `name`, if known."""
    told = told_by_name(name, scan)
    return (None, None) if isinstance(told, str) else told


def published_file(listed: Path) -> Path:
    """The file that a list means by `listed`: itself, or the same scan in the data set's release.

    That may have another suffix (`.mhd` for `.nii.gz`), and LUNA16's folder `subset_0` is called `subset0`.
    """
    folders = [listed.parent]
    if subset := _SUBSET.fullmatch(listed.parent.name):
        folders.append(listed.parent.with_name(f"subset{subset[1]}"))
    suffixes = (listed.name[len(scan_stem(listed)) :], *SUFFIXES)
    places = (folder / f"{scan_stem(listed)}{suffix}" for folder in folders for suffix in suffixes)
    return next((place for place in places if place.exists()), listed)
