"""GE's epi_pepolar, whose backward volumes are stored with their rows in reverse."""

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dae3d.scans.dicom.volume import read_series
from dicom_files import evenly, pixels_of, write_series
from dicom_found import find, one_series, reasons
from second_opinion import by_dcm2niix, canonical

pytestmark = pytest.mark.slow


def write_pepolar(folder, mode, volumes, syntax=ExplicitVRLittleEndian, sequence="research/ABCD/epi_pepolar"):
    """Volumes that show the same head, the backward ones of which are stored upside down."""
    uids = one_series()
    files = []
    for volume in volumes:
        of_volume = write_series(
            folder,
            evenly(9),
            "MR",
            name=f"{volume}-{{}}.dcm",
            pixels=lambda number, volume=volume: pixels_of(number + 20 * (volume or 0)),
            **uids,
            Manufacturer="GE MEDICAL SYSTEMS",
            ScanningSequence="EP",
            TemporalPositionIdentifier=volume,
        )
        for path in of_volume:
            header = pydicom.dcmread(path)
            block = header.private_block(0x0019, "GEMS_ACQU_01", create=True)
            block.add_new(0x9C, "LO", sequence)
            block.add_new(0xB3, "DS", str(float(mode)))
            header.file_meta.TransferSyntaxUID = syntax
            header.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=True)
        files += of_volume
    return files


@pytest.mark.parametrize(("mode", "reversed_volumes"), [(0, []), (1, [1, 2, 3, 4]), (2, [1, 3]), (3, [2, 4])])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_rows_are_put_right(tmp_path, mode, reversed_volumes, syntax):
    """Modes and volumes as the readme of the real files (dcm_qa_polar) has them."""
    write_pepolar(tmp_path, mode, (1, 2, 3, 4), syntax)
    found, left_out = find(tmp_path)
    assert ([one.volume for one in found], left_out) == ([0, 1, 2, 3], [])
    for one in found:
        volume = one.volume + 1
        stored = np.stack([pixels_of(number + 20 * volume) for number in range(9)])
        turned = stored[:, ::-1] if volume in reversed_volumes else stored
        assert np.array_equal(read_series([one.folder / name for name in one.files]).array, turned.T)
        assert bool(one.header.remark) is (volume in reversed_volumes)


def test_rows_agree_with_dcm2niix(tmp_path):
    files = write_pepolar(tmp_path / "series", 1, (1,))
    theirs = nibabel.as_closest_canonical(by_dcm2niix(files, tmp_path / "out"))
    assert np.array_equal(canonical(read_series(files)).get_fdata(), theirs.get_fdata())


def test_volumes_without_a_number_are_left_out(tmp_path):
    write_pepolar(tmp_path, 2, (None,))
    assert list(reasons(find(tmp_path)[1])) == [
        "rows may be reversed: no TemporalPositionIdentifier to tell which volumes GE's epi_pepolar stores "
        "upside down"
    ]


def test_other_sequences_stay_as_they_are(tmp_path):
    files = write_pepolar(tmp_path, 1, (1,), sequence="epi2")
    assert np.array_equal(read_series(files).array, np.stack([pixels_of(n + 20) for n in range(9)]).T)
