"""The layouts of public data sets, by name: where the scans are, and what each file is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from dae3d.errors import Dae3dError
from dae3d.scans.layouts.bids import candidates_in_bids
from dae3d.scans.layouts.decathlon import candidates_in_decathlon
from dae3d.scans.layouts.names import candidates_by_name
from dae3d.scans.layouts.openmind import COLLECTION, TABLE, candidates_in_openmind
from dae3d.scans.manifest import LeftOut
from dae3d.scans.sources import Candidate

LayoutName = Literal[
    "hnscc",
    "luna16",
    "ct-colonography",
    "covid19",
    "lidc-idri",
    "brats21",
    "btcv",
    "feta",
    "decathlon",
    "nnunet",
    "bids",
    "openmind",
]

_LISTED = 12  # names in a folder that an error shows


@dataclass(frozen=True)
class Layout:
    """A public data set as it is released.

    `expected` is a sketch of its folders. `find` finds the scans under a root; a set without it is released
    as DICOM series, of which only those of `modality` belong to it.
    """

    title: str
    expected: str
    find: Callable[[Path, str | None], Iterator[Candidate | LeftOut]] | None = None
    modality: str | None = None

    @property
    def dicom(self) -> bool:
        """Whether the set is released as DICOM series, which the DICOM finder finds."""
        return self.find is None

    def candidates(self, root: Path, dataset: str | None) -> Iterator[Candidate | LeftOut]:
        """The scans under `root` (absolute), and what is left out; nothing for a set of DICOM series.

        `dataset` replaces the set's own name.

        Raises:
            Dae3dError: if none of its scans is found, with what was expected and what is there.
        """
        if self.find is None:
            return
        found = False
        for candidate in self.find(root, dataset):
            found = found or isinstance(candidate, Candidate)
            yield candidate
        if not found:
            raise self.mismatch(root)

    def refuses(self, label: str | None, scanner: str) -> str | None:
        """Why a DICOM series is left out, or None if it belongs here.

        `label` is its modality label, None if that is uncertain; then its header's Modality is used.
        """
        if self.modality is None or label == self.modality:
            return None
        if label is None and scanner == self.modality.upper():
            return None
        return f"{label or 'unknown modality'}: of {self.title}, only {self.modality} series are taken"

    def mismatch(self, root: Path) -> Dae3dError:
        """The error for a folder without any scan of the set."""
        return Dae3dError(
            f"{root}: no scan of {self.title} was found\nexpected:\n{_indented(self.expected)}\n"
            f"found:\n{_indented(_listing(root))}"
        )


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _listing(root: Path) -> str:
    try:
        entries = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        return f"unreadable: {error.strerror}"
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries)
    more = [f"and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return "\n".join([*names[:_LISTED], *more]) or "nothing"


def _named(name: str, title: str, expected: str) -> Layout:
    return Layout(title, expected, partial(candidates_by_name, name))


def _tcia(title: str, folder: str, patient: str) -> Layout:
    expected = f"""\
[manifest-.../]{folder}/
  {patient}/
    <study>/
      <series>/1-001.dcm 1-002.dcm ... (any names and nesting)"""
    return Layout(title, expected, modality="ct")


LAYOUTS: dict[LayoutName, Layout] = {
    "hnscc": _tcia("HNSCC", "HNSCC", "HNSCC-01-0001"),
    "luna16": _named(
        "luna16",
        "LUNA16",
        """\
subset0/ ... subset9/
  1.3.6.1.4.1.14519.<...>.mhd and .raw
seg-lungs-LUNA16/ (left out)""",
    ),
    "ct-colonography": _tcia("CT COLONOGRAPHY", "CT COLONOGRAPHY", "1.3.6.1.4.1.9328.50.4.0001"),
    "covid19": _named(
        "covid19",
        "CT Images in COVID-19",
        "volume-covid19-A-0000.nii.gz, volume-covid19-A-0700_day000.nii.gz, ... in any folder",
    ),
    "lidc-idri": _tcia("LIDC-IDRI", "LIDC-IDRI", "LIDC-IDRI-0001"),
    "brats21": _named(
        "brats21",
        "BraTS 2021",
        """\
BraTS2021_00000/
  BraTS2021_00000_t1.nii.gz, _t1ce, _t2, _flair
  BraTS2021_00000_seg.nii.gz (left out)""",
    ),
    "btcv": _named(
        "btcv",
        "BTCV (Beyond the Cranial Vault, abdomen)",
        """\
RawData/
  Training/img/img0001.nii.gz, Training/label/label0001.nii.gz (left out)
  Testing/img/img0061.nii.gz
or imagesTr/img0001.nii.gz, imagesTs/, labelsTr/""",
    ),
    "feta": _named(
        "feta",
        "FeTA",
        """\
sub-001/anat/
  sub-001_rec-mial_T2w.nii.gz (or rec-irtk)
  sub-001_rec-mial_dseg.nii.gz (left out)""",
    ),
    "decathlon": Layout(
        "the Medical Segmentation Decathlon",
        """\
Task01_BrainTumour/ (or inside it)
  dataset.json
  imagesTr/BRATS_001.nii.gz, imagesTs/, labelsTr/ (left out)""",
        candidates_in_decathlon,
    ),
    "nnunet": Layout(
        "a raw data set of nnU-Net",
        """\
Dataset005_Prostate/ (or inside it; Task05_Prostate/ of version 1)
  dataset.json
  imagesTr/prostate_00_0000.nii.gz, prostate_00_0001.nii.gz, ..., imagesTs/, labelsTr/ (left out)""",
        candidates_in_decathlon,
    ),
    "bids": Layout(
        "a BIDS data set",
        """\
dataset_description.json
sub-01/[ses-01/]anat/sub-01[_ses-01]_T1w.nii.gz
or folders of that kind""",
        candidates_in_bids,
    ),
    "openmind": Layout(
        "OpenMind",
        f"""\
{TABLE} or {COLLECTION}
OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz""",
        candidates_in_openmind,
    ),
}
