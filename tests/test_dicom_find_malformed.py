"""Headers that are malformed, incomplete, or claim more than the file holds."""

import shutil
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless

from dicom_files import edit, evenly, write_series
from dicom_found import find, reasons

pytestmark = pytest.mark.slow


def spoil(path: Path, content: bytes, put: bytes) -> None:
    """Put other bytes, as many, in the place of those that a file has once."""
    whole = path.read_bytes()
    assert whole.count(content) == 1
    assert len(put) == len(content)
    path.write_bytes(whole.replace(content, put))


# Group and element, value representation and length, as an explicit header in little-endian order has them.
THICKNESS = b"\x18\x00\x50\x00DS\x04\x00"
PIXEL_SPACING = b"\x28\x00\x30\x00DS\x08\x00"
ECHO_TIME = b"\x18\x00\x81\x00DS\x04\x00"
RESCALE_SLOPE = b"\x28\x00\x53\x10DS\x04\x00"
SOP_CLASS = b"\x08\x00\x16\x00UI"


def test_a_malformed_thickness_can_be_done_without(tmp_path):
    for path in write_series(tmp_path, evenly(8)):
        spoil(path, THICKNESS + b"2.5 ", THICKNESS + b"2,5 ")
    found, left_out = find(tmp_path)
    assert ([len(one.files) for one in found], left_out) == ([8], [])


def test_reasons_quote_nothing_of_a_malformed_header(tmp_path):
    for path in write_series(tmp_path / "spacing", evenly(8)):
        spoil(path, PIXEL_SPACING + b"0.8\\0.5 ", PIXEL_SPACING + b"Doe^Jane")
    write_series(tmp_path / "colours", evenly(8), PhotometricInterpretation="DOE JANE")
    write_series(tmp_path / "class", evenly(8), SOPClassUID="1.2.826.0.1.4711")
    assert {(one.reason, one.files) for one in find(tmp_path)[1]} == {
        ("unreadable: PixelSpacing: ValueError", 1),
        ("colour pictures: other", 8),
        ("not an image volume: not a standard SOP class", 8),
    }


def test_a_length_that_takes_in_other_tags(tmp_path):
    """Half a header becomes the SOP class, names and dates among it."""
    files = write_series(tmp_path, evenly(8))
    for path in files:
        content = path.read_bytes()
        at = content.index(SOP_CLASS) + len(SOP_CLASS)
        length = int.from_bytes(content[at : at + 2], "little") + 300
        path.write_bytes(content[:at] + length.to_bytes(2, "little") + content[at + 2 :])
    told = " ".join(reasons(find(tmp_path)[1]))
    assert told
    assert not any(word in told for word in ("Doe", "2020", "P-0815"))


def test_a_header_cut_short(tmp_path):
    (path,) = write_series(tmp_path, evenly(1))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"Doe^Jane") + 2])
    ((left_out,), _) = find(tmp_path)[::-1]
    assert left_out.reason.startswith(("truncated", "unreadable"))
    assert "-" not in left_out.reason


@pytest.mark.filterwarnings("ignore")
def test_nothing_of_pydicom_is_seen(tmp_path):
    for path in write_series(tmp_path, evenly(8), SpecificCharacterSet="ISO_IR 999"):
        spoil(path, b"P-0815", b"P-\xd608\x1b")
    code = (
        "import sys; from pathlib import Path; from dae3d.scans.dicom.finder import find_series; "
        "print(len(list(find_series(sorted(Path(sys.argv[1]).iterdir()), b'salt'))))"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("1\n", "")


def test_headers_that_lack_what_can_be_supplied(tmp_path):
    for path in write_series(tmp_path, evenly(8)):
        edit(path, PhotometricInterpretation=None, PixelRepresentation=None)
    ((found,), left_out) = find(tmp_path)
    assert (found.header.dtype, left_out) == ("uint16", [])


def test_headers_without_rows(tmp_path):
    for path in write_series(tmp_path, evenly(8)):
        edit(path, Rows=None)
    assert reasons(find(tmp_path)[1]) == {"no rows or columns in the header": 8}


def test_a_malformed_time_of_the_sequence_stops_nothing(tmp_path):
    for path in write_series(tmp_path / "bad", evenly(8), "MR"):
        spoil(path, ECHO_TIME + b"12.0", ECHO_TIME + b"12ms")
    write_series(tmp_path / "good", evenly(8))
    found, left_out = find(tmp_path)
    assert "good" in {one.folder.name for one in found}
    assert all(one.reason.startswith("unreadable") for one in left_out)


def test_a_copy_that_cannot_be_compared(tmp_path):
    write_series(tmp_path / "a", evenly(8))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in (tmp_path / "b").iterdir():
        spoil(path, RESCALE_SLOPE + b"1.0 ", RESCALE_SLOPE + b"1,0 ")
    found, left_out = find(tmp_path)
    # Taken for another image under the same identifiers; `prepare` finds that it cannot be read.
    assert [one.folder.name for one in found] == ["a", "b"]
    assert not left_out


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"NumberOfFrames": 10**9}, "too large: 240000000000 bytes of pixels, more than 4 GiB"),
        ({"Rows": 65535, "Columns": 65535}, "too large: 8589672450 bytes of pixels, more than 4 GiB"),
        ({"Rows": 30000, "Columns": 30000}, "truncated: "),
        ({"NumberOfFrames": 10**9, "Rows": 0}, "truncated: "),
        ({"NumberOfFrames": 10**9, "BitsAllocated": 0}, "truncated: "),
    ],
)
def test_more_pixels_than_can_be_in_the_file(tmp_path, tags, reason, syntax):
    """Refused by the header, before a list of a thousand million frames is made."""
    (path,) = write_series(tmp_path, evenly(1), "MR")
    header = pydicom.dcmread(path)
    for keyword, value in tags.items():
        setattr(header, keyword, value)
    header.file_meta.TransferSyntaxUID = syntax
    if syntax == JPEG2000Lossless:
        header.PixelData = encapsulate([bytes(500)])
        header["PixelData"].is_undefined_length = True
    header.save_as(path)
    tracemalloc.start()
    found, (left_out,) = find(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found
    assert left_out.reason.startswith(reason)
    assert peak < 10_000_000


@pytest.mark.parametrize("length_said", [True, False])
def test_sequences_in_sequences(tmp_path, length_said):
    """20,000 deep pydicom gives up, and GDCM kills the process; 20 deep there are real ones."""
    files = write_series(tmp_path, evenly(10), "MR")
    for number, path in enumerate(files):
        raw = path.read_bytes()
        place = raw.rindex(b"\xe0\x7f\x10\x00OW")
        path.write_bytes(raw[:place] + nested(20 if number else 20_000, length_said) + raw[place:])
    found, left_out = find(tmp_path)
    assert [len(one.files) for one in found] == [9]
    assert reasons(left_out) == {"unreadable: sequences nested more than a hundred deep": 1}


def nested(depth: int, length_said: bool) -> bytes:
    """A Content Sequence in a Content Sequence in ..., explicit VR."""
    if not length_said:
        start = b"\x40\x00\x30\xa7SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
        return start * depth + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" * depth
    parts, length = [], 0
    for _ in range(depth):
        parts.append(
            b"\x40\x00\x30\xa7SQ\0\0" + struct.pack("<I4sI", length + 8, b"\xfe\xff\x00\xe0", length)
        )
        length += 20
    return b"".join(reversed(parts))
