"""Whose scan a file is by its path alone, so that no subject is on both sides of a split.

Where neither the user nor a list says it, the subject is read from the path, in this order:

1. BIDS: the first `sub-<label>` of the path within the folder given; the same subject all over that folder.
2. Otherwise the file's path without its suffix, where every folder name and the file name lose one trailing
   sequence name (`_t1`, `-FLAIR`, `.ct`, or the whole of it). The scans of `BraTS_01/BraTS_01_t1.nii.gz`,
   `patient07/T1POST.nii.gz` or `IXI-T1/IXI002-T1.nii.gz` thus join those of their sister sequences, while
   `case1` in two folders of other names stays two subjects. nnU-Net's channel numbers `_0000` to `_0009`
   count as sequence names where the file of channel `_0000` is there.

Both begin with the name of the folder given, not with where it lies, so that moving a data set moves
nobody to the other side. Names may make one of two subjects, which does no harm to a split. Where they
make two of one, as of visits named outside BIDS (`patient03_study2`), `grouping` brings them together by all
the names of a data set.
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

    Of the `roots` (absolute folders) the outermost that holds the scan counts.
    """
    bids = subject_by_bids(path, roots)
    if bids is not None:
        return bids
    root, folders, stem = _place(path, roots)
    case = _without_channel(path, stem) or _without_sequence(stem)
    parts = [*map(_without_sequence, (root.name, *folders)), case]
    return "/".join(filter(None, parts)) or "/".join([root.name, *folders, stem])


def subject_by_bids(path: Path, roots: Collection[Path]) -> str | None:
    """The subject of the scan at `path` (absolute), where its name or a folder's is one of BIDS."""
    root, folders, stem = _place(path, roots)
    bids = next((match[1] for part in (*folders, stem) if (match := _BIDS_SUBJECT.fullmatch(part))), None)
    if bids is None:
        return None
    home = root.parts[: root.parts.index(bids)] if bids in root.parts else root.parts
    return "/".join([*home[-1:], bids])


def _place(path: Path, roots: Collection[Path]) -> tuple[Path, tuple[str, ...], str]:
    """The folder given that a file is in, the folders from there, and the file's name without suffix."""
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
