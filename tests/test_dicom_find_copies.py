"""Slices and files that are there twice, and those that only seem to be."""

import shutil

import pydicom
import pytest

from dae3d.scans.manifest import LeftOut
from dicom_files import edit, evenly, pixels_of, write_enhanced, write_series
from dicom_found import find, one_series, reasons

pytestmark = pytest.mark.slow


def test_copies_are_left_out(tmp_path):
    write_series(tmp_path / "a", evenly(10))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found, left_out = find(tmp_path)
    assert [one.folder for one in found] == [tmp_path / "a"]
    assert left_out == [LeftOut(path=tmp_path / "b", reason="duplicate slice", files=10)]


def test_copies_under_new_identifiers_are_left_out(tmp_path):
    uids = one_series()
    write_series(tmp_path / "a", evenly(10), **uids)
    write_series(tmp_path / "b", evenly(4), **uids)
    found, left_out = find(tmp_path)
    assert [(one.folder, len(one.files)) for one in found] == [(tmp_path / "a", 10)]
    assert left_out == [LeftOut(path=tmp_path / "b", reason="duplicate slice", files=4)]


def test_other_pixels_at_the_same_place_are_not_guessed_about(tmp_path):
    uids = one_series()
    write_series(tmp_path / "a", evenly(10), **uids)
    write_series(tmp_path / "b", evenly(10), pixels=lambda n: pixels_of(n + 100), **uids)
    found, left_out = find(tmp_path)
    assert (found, reasons(left_out)) == ([], {"same position twice with different content": 20})


def test_copy_of_an_enhanced_file(tmp_path):
    shutil.copy(write_enhanced(tmp_path / "e", evenly(9)), tmp_path / "f")
    found, left_out = find(tmp_path)
    assert [one.files for one in found] == [("e",)]
    assert left_out == [LeftOut(path=tmp_path / "f", reason="duplicate slice")]


@pytest.mark.parametrize("uid", ["1.2.3", None])
def test_slices_that_an_anonymiser_gave_no_identifiers_of_their_own(tmp_path, uid):
    files = write_series(tmp_path, evenly(8))
    for path in files:
        edit(path, SOPInstanceUID=uid)
    found, left_out = find(tmp_path)
    assert ([len(one.files) for one in found], left_out) == ([8], [])


def test_folders_are_series_where_an_anonymiser_left_one_identifier_for_all(tmp_path):
    same = dict.fromkeys(("SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID"), "1.2")
    for name, start in (("a", -100), ("b", -75)):
        write_series(tmp_path / name, evenly(10, start=start), each=lambda number: same)
    found, left_out = find(tmp_path)
    assert not left_out
    assert [(one.folder.name, len(one.files)) for one in found] == [("a", 10), ("b", 10)]


def test_other_pixels_under_the_same_identifier_are_no_copies(tmp_path):
    uids = one_series()
    for name, seed in (("a", 0), ("b", 100), ("c", 100)):
        write_series(
            tmp_path / name,
            evenly(10),
            each=lambda number: {"SOPInstanceUID": f"1.2.{number}"},
            pixels=lambda number, seed=seed: pixels_of(number + seed),
            **uids,
        )
    found, left_out = find(tmp_path)
    assert [one.folder.name for one in found] == ["a", "b"]
    assert left_out == [LeftOut(path=tmp_path / "c", reason="duplicate slice", files=10)]


def test_enhanced_files_under_the_same_identifier(tmp_path):
    """The second has other pixels, the third lies elsewhere, the fourth is a copy."""
    uids = one_series() | {"SOPInstanceUID": "1.2.3"}
    first = write_enhanced(tmp_path / "a", evenly(9), "CT")
    edit(first, **uids)
    header = pydicom.dcmread(first)
    header.PixelData = header.PixelData[::-1]
    header.save_as(tmp_path / "b")
    edit(write_enhanced(tmp_path / "c", evenly(9, start=-98.75), "CT"), **uids)
    shutil.copy(first, tmp_path / "d")
    found, left_out = find(tmp_path)
    assert [(one.files, one.header.shape[2]) for one in found] == [(("a",), 9), (("b",), 9), (("c",), 9)]
    assert len({one.series for one in found}) == 3
    assert left_out == [LeftOut(path=tmp_path / "d", reason="duplicate slice")]
