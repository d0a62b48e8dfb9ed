"""BIDS: `sub-<label>/[ses-<label>/]<data type>/<name>_<suffix>`, see https://bids-specification.readthedocs.io."""

import re
from collections.abc import Iterator
from pathlib import Path

from dae3d.scans.manifest import LeftOut
from dae3d.scans.modality import label_by_bids
from dae3d.scans.readers import scan_stem, suffix
from dae3d.scans.sources import Candidate, files_in

# Data types whose images are not a single anatomical image.
_OTHER_TYPES = {"func": "functional series", "fmap": "field map", "perf": "perfusion series"}
_MASK = re.compile(r".*_(mask|defacemask|dseg|probseg|roi)")


def candidates_in_bids(root: Path, dataset: str | None) -> Iterator[Candidate | LeftOut]:
    """The anatomical, diffusion and PET images of the BIDS data set `root`, or of all those in `root`.

    Subjects are per data set. An image whose name does not give its contrast is left to the rules.
    """
    visited: set[str] = set()
    for home in _data_sets(root):
        for file in files_in(home, visited):
            if isinstance(file, LeftOut):
                yield file
            elif suffix(file):
                yield _candidate(file, home, root, dataset or home.name)


def _data_sets(root: Path) -> list[Path]:
    if _is_data_set(root):
        return [root]
    return [folder for folder in sorted(root.glob("*/")) if _is_data_set(folder)]


def _is_data_set(folder: Path) -> bool:
    return (folder / "dataset_description.json").is_file() or any(folder.glob("sub-*/"))


def _candidate(file: Path, home: Path, root: Path, dataset: str) -> Candidate | LeftOut:
    parts = file.relative_to(home).parts
    if not parts[0].startswith("sub-") or len(parts) < 2:
        return LeftOut(path=file, reason=f"not a raw BIDS image: in {parts[0] if parts[1:] else home.name}")
    if file.parent.name in _OTHER_TYPES:
        return LeftOut(path=file, reason=_OTHER_TYPES[file.parent.name])
    stem = scan_stem(file)
    if _MASK.fullmatch(stem):
        return LeftOut(path=file, reason="mask or segmentation")
    return Candidate(
        path=file,
        shown=file.relative_to(root).as_posix(),
        root=root,
        dataset=dataset,
        case=file,
        modality=label_by_bids(stem),
        subject=f"{home.name}/{parts[0]}",
    )
