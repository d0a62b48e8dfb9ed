"""The subject of a scan by its path alone, so that no subject is in both splits.

If neither the user nor a list gives it, the subject is read from the path, in this order:

1. BIDS: the first `sub-<label>` of the path within the folder given; the same subject everywhere in it.
2. Otherwise the file's path without its suffix, and without one trailing sequence name (`_t1`, `-FLAIR`,
   `.ct`, or the whole name) in every folder name and the file name. The scans of
   `BraTS_01/BraTS_01_t1.nii.gz`, `patient07/T1POST.nii.gz` or `IXI-T1/IXI002-T1.nii.gz` thus have the subject
   of the other sequences, while `case1` in two differently named folders stays two subjects. nnU-Net's
   channel numbers `_0000` to `_0009` count as sequence names if the file of channel `_0000` exists.

Both begin with the name of the folder given, not its location, so that moving a data set does not change the
split. Names may make one of two subjects, which does no harm to a split. If they make two of one, as with
visits named outside BIDS (`patient03_study2`), `grouping` joins them by all the names of a data set.
"""

import re
from collections.abc import Collection
from pathlib import Path

from dae3d.scans.readers import scan_stem

SEQUENCES = "t1|t1w|t1n|t1c|t1ce|t1gd|t1post|t2|t2w|t2f|t2star|flair|pd|pdw|swi|dwi|adc|mr|mri|ct|cbct|pet"
_SEQUENCE_END = re.compile(rf"(?:(?P<rest>.+)[_.-])?(?P<sequence>{SEQUENCES})", re.IGNORECASE)
_CHANNEL_END = re.compile(r"(?P<rest>.+)_000[0-9]")
_BIDS_SUBJECT = re.compile(r"(sub-[^_]+)(?:_.*)?")


def subject_in_path(path: Path, roots: Collection[Path]) -> str:
    """The subject of the scan at `path` (absolute) by its place in the folders given.

    The outermost of the `roots` (absolute folders) that holds the scan is used.
    """
    bids = subject_by_bids(path, roots)
    if bids is not None:
        return bids
    root, folders, stem = _place(path, roots)
    case = _without_channel(path, stem) or _without_sequence(stem)
    parts = [*map(_without_sequence, (root.name, *folders)), case]
    return "/".join(filter(None, parts)) or "/".join([root.name, *folders, stem])


def subject_by_bids(path: Path, roots: Collection[Path]) -> str | None:
    """The subject of the scan at `path` (absolute), if its name or a folder's follows BIDS."""
    root, folders, stem = _place(path, roots)
    bids = next((match[1] for part in (*folders, stem) if (match := _BIDS_SUBJECT.fullmatch(part))), None)
    if bids is None:
        return None
    home = root.parts[: root.parts.index(bids)] if bids in root.parts else root.parts
    return "/".join([*home[-1:], bids])


def _place(path: Path, roots: Collection[Path]) -> tuple[Path, tuple[str, ...], str]:
    """The root that a file is in, the folders below it, and the file's name without suffix."""
    root = next((parent for parent in reversed(path.parents) if parent in roots), path.parent)
    return root, path.relative_to(root).parts[:-1], scan_stem(path)


def sequence_at_end(stem: str) -> str | None:
    """The sequence name that a file's stem ends with or is: "patient03_FLAIR" -> "FLAIR"."""
    match = _SEQUENCE_END.fullmatch(stem)
    return match["sequence"] if match else None


def _without_sequence(name: str) -> str:
    match = _SEQUENCE_END.fullmatch(name)
    return (match["rest"] or "") if match else name


def _without_channel(path: Path, stem: str) -> str | None:
    match = _CHANNEL_END.fullmatch(stem)
    if match is None:
        return None
    first_channel = path.with_name(f"{match['rest']}_0000{path.name[len(stem) :]}")
    return match["rest"] if first_channel.exists() else None
