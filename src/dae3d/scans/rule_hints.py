"""Suggested rules for files without a modality, for the user to complete."""

import glob
from pathlib import Path

from dae3d.scans.modality import DESCRIPTION, LIST_NAMES
from dae3d.scans.readers import scan_stem
from dae3d.scans.sources import Candidate
from dae3d.scans.subjects import sequence_at_end


def rule_for_file(candidate: Candidate) -> str:
    """A rule that matches a file and similar ones; LABEL is for the user to fill in."""
    stem = scan_stem(candidate.path)
    ending = candidate.path.name[len(stem) :]
    sequence = sequence_at_end(stem)
    if sequence is None:
        return _rule_for_folder(candidate.shown.rpartition("/")[0], candidate.root)
    before = "" if stem == sequence else f"*{stem[-len(sequence) - 1]}"
    label = LIST_NAMES.get(sequence.lower(), sequence.lower())
    return f"{before}{sequence}{ending}={label}"


def rule_for_series(shown: str, root: Path, description: str) -> str:
    """A rule that matches a DICOM series by its description, else by its folder."""
    if description:
        # Line breaks and what commands a terminal: "?" is any character.
        shown_safely = "".join(c if c.isprintable() else "?" for c in glob.escape(description))
        return f"{DESCRIPTION}{shown_safely}=LABEL"
    return _rule_for_folder(shown.rstrip("/"), root)


def _rule_for_folder(inner: str, root: Path) -> str:
    return f"{'/'.join(filter(None, [root.name, glob.escape(inner)]))}/*=LABEL"
