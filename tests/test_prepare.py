import csv
import gzip
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dae3d.commands.prepare import prepare
from dae3d.errors import Dae3dError, SettingsError
from dae3d.scans.manifest import Scan
from dae3d.store.scan import file_name, read_metadata
from dae3d.store.store import Store
from scan_files import described, phantom, undescribed, write_manifest, write_nifti, written

pytestmark = pytest.mark.slow


def some_scans(folder: Path, number: int, shape: tuple[int, int, int] = (30, 31, 32)) -> list[Scan]:
    paths = [write_nifti(folder / f"sub-{i:02}" / "ct.nii", phantom(shape, i)) for i in range(number)]
    return [described(path) for path in paths]


def rejected(store: Path) -> dict[str, str]:
    with (store / "rejected.csv").open(newline="") as file:
        return {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}


def whole(store: Store, number: int) -> np.ndarray:
    return store.read(number, (0, 0, 0), store.scans[number].shape)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_manifest(tmp_path / "manifest.json", some_scans(tmp_path / "data", 3))


def test_a_stored_file_says_all_there_is_to_know(tmp_path):
    affine = np.diag([-2.0, 1.0, 3.0, 1.0])
    path = write_nifti(tmp_path / "data" / "Müller 1.nii.gz", phantom((20, 30, 12)), affine, 0.5, -3)
    source = described(path, "cbct", "subject 1", "val")
    manifest = write_manifest(tmp_path / "manifest.json", [source])
    store = prepare(manifest=manifest, out=tmp_path / "store", workers=1)
    (scan,) = store.scans
    assert read_metadata(store.path / "scans" / scan.file) == scan
    digest = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert scan.source == source.model_copy(update={"digest": digest})
    assert (scan.modality, scan.subject, scan.split) == ("cbct", "subject 1", "val")
    assert scan.source_stamp.bytes == path.stat().st_size
    assert scan.source_stamp.mtime_ns == path.stat().st_mtime_ns
    assert (scan.shape, scan.spacing, scan.dtype) == ((20, 30, 12), (2.0, 1.0, 3.0), "int16")
    assert (scan.slope, scan.intercept) == (0.5, -3.0)
    assert scan.preparation.spacing is None
    assert scan.statistics.minimum == (phantom((20, 30, 12)).min() * 0.5) - 3
    np.testing.assert_array_equal(scan.affine, [[2, 0, 0, -38], [0, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    assert scan.file.startswith("data-m-ller-1-")
    assert scan.file.isascii()


def test_names_are_those_of_the_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = file_name(undescribed(tmp_path / "a" / "ct.nii.gz"))
    assert name == file_name(undescribed(Path("a/ct.nii.gz")))
    assert name != file_name(undescribed(tmp_path / "a" / "ct.nii"))
    assert len(file_name(undescribed(Path("x" * 200 + ".nii")))) < 255


def test_again_does_nothing(manifest, tmp_path, capsys):
    out = tmp_path / "store"
    prepare(manifest=manifest, out=out, workers=1)
    index, before = (out / "index.jsonl").read_bytes(), written(out)
    assert "prepared now" in capsys.readouterr().out
    prepare(manifest=manifest, out=out, workers=1)
    assert written(out) == before
    assert (out / "index.jsonl").read_bytes() == index
    # Without the index, the stored files say what they are.
    (out / "index.jsonl").unlink()
    prepare(manifest=manifest, out=out, workers=1)
    assert written(out) == before
    assert (out / "index.jsonl").read_bytes() == index


def test_only_a_changed_scan_is_done_again(manifest, tmp_path):
    out = tmp_path / "store"
    first = prepare(manifest=manifest, out=out, workers=1)
    before = written(out)
    write_nifti(first.scans[1].path, phantom((30, 31, 33), 9))
    store = prepare(manifest=manifest, out=out, workers=1)
    changed = [name for name, when in written(out).items() if when != before[name]]
    assert changed == [store.scans[1].file]
    np.testing.assert_array_equal(whole(store, 1), phantom((30, 31, 33), 9))


def test_a_touched_scan_is_kept(manifest, tmp_path):
    out = tmp_path / "store"
    store = prepare(manifest=manifest, out=out, workers=1)
    before = written(out)
    os.utime(store.scans[0].path, ns=(1, 12345))
    store = prepare(manifest=manifest, out=out, workers=1)
    assert written(out) == before
    assert store.scans[0].source_stamp.mtime_ns == 12345


def test_labels_change_without_writing_scans(tmp_path):
    out = tmp_path / "store"
    scans = some_scans(tmp_path / "data", 2)
    manifest = write_manifest(tmp_path / "manifest.json", scans)
    digest = prepare(manifest=manifest, out=out, workers=1).scans[1].source.digest
    before = written(out)
    relabelled = scans[1].model_copy(update={"modality": "cbct", "split": "val", "subject": "other"})
    write_manifest(manifest, [scans[0], relabelled])
    store = prepare(manifest=manifest, out=out, workers=1)
    assert written(out) == before
    assert store.scans[1].source == relabelled.model_copy(update={"digest": digest})


def test_other_settings_are_refused_or_do_all_scans_again(manifest, tmp_path):
    out = tmp_path / "store"
    prepare(manifest=manifest, out=out, workers=1)
    before, index = written(out), (out / "index.jsonl").read_bytes()
    told = "with spacing as acquired and crop_foreground off, not with spacing 2 2 2 and crop_foreground on"
    with pytest.raises(Dae3dError, match=f"{told}: choose another folder, or .* --again"):
        prepare(manifest=manifest, out=out, workers=1, spacing=(2, 2, 2), crop_foreground=True)
    assert (written(out), (out / "index.jsonl").read_bytes()) == (before, index)
    store = prepare(manifest=manifest, out=out, workers=1, spacing=(2, 2, 2), again=True)
    assert all(written(out)[name] != when for name, when in before.items())
    assert {scan.shape for scan in store.scans} == {(16, 16, 16)}
    store = prepare(manifest=manifest, out=out, workers=1, again=True)
    np.testing.assert_array_equal(whole(store, 2), phantom((30, 31, 32), 2))


def test_scans_that_left_the_manifest_leave_the_index_with_only(manifest, tmp_path):
    out = tmp_path / "store"
    scans = [scan.source for scan in prepare(manifest=manifest, out=out, workers=1).scans]
    before = written(out)
    write_manifest(manifest, scans[:1])
    assert len(prepare(manifest=manifest, out=out, workers=1).scans) == 3
    assert len(prepare(manifest=manifest, out=out, workers=1, only=True).scans) == 1
    write_manifest(manifest, scans)
    assert len(prepare(manifest=manifest, out=out, workers=1).scans) == 3
    assert written(out) == before


def test_voxels_beside_a_header_are_watched(tmp_path):
    """A detached MetaImage changes when its data file does, not only its header."""
    header = tmp_path / "data" / "scan.mhd"
    header.parent.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(phantom((20, 20, 20)).T), header)
    manifest = write_manifest(tmp_path / "manifest.json", [described(header)])
    store = prepare(manifest=manifest, out=tmp_path / "store", workers=1)
    data = header.with_suffix(".raw")
    assert store.scans[0].source_stamp.bytes == header.stat().st_size + data.stat().st_size
    data.write_bytes((phantom((20, 20, 20)) + 1).ravel("F").tobytes())
    store = prepare(manifest=manifest, out=tmp_path / "store", workers=1)
    # MetaImage's axes run to the left and posterior.
    np.testing.assert_array_equal(whole(store, 0), phantom((20, 20, 20))[::-1, ::-1] + 1)


def bad_scans(folder: Path) -> dict[Path, str]:
    """Files that cannot be prepared, and the reason each should get."""
    folder.mkdir()
    scan = phantom((12, 12, 12)).astype(np.float32)
    holes = scan.copy()
    holes[3, 4, :5] = np.nan
    reasons = {
        write_nifti(folder / "constant.nii", np.full((8, 8, 8), 7, np.int16)): "constant: every voxel is 7",
        write_nifti(folder / "nan.nii", holes): "not finite: 5 of 1728 voxels",
        write_nifti(folder / "4d.nii", np.zeros((4, 4, 4, 3), np.uint8)): "4-D",
        write_nifti(folder / "2d.nii", np.zeros((4, 4), np.uint8)): "2-D",
        folder / "missing.nii": "unreadable: No such file",
        folder / "pointer.nii.gz": "unreadable",
        folder / "truncated.nii.gz": "unreadable: EOFError",
        folder / "no-spacing.nii": "zero or non-finite spacing",
        folder / "empty.nii": "unreadable",
    }
    (folder / "pointer.nii.gz").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    complete = gzip.compress(write_nifti(folder / "whole.nii", scan).read_bytes())
    (folder / "truncated.nii.gz").write_bytes(complete[: len(complete) // 2])
    flat = bytearray((folder / "whole.nii").read_bytes())
    flat[312:328] = bytes(16)  # the third row of the sform
    (folder / "no-spacing.nii").write_bytes(flat)
    (folder / "empty.nii").touch()
    return reasons


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_scans_are_rejected_with_the_reason_and_the_rest_go_on(tmp_path, workers):
    reasons = bad_scans(tmp_path / "bad")
    good = some_scans(tmp_path / "data", 2)
    scans = [undescribed(path) for path in reasons]
    manifest = write_manifest(tmp_path / "manifest.json", [*scans[:4], *good, *scans[4:]])
    store = prepare(manifest=manifest, out=tmp_path / "store", workers=workers)
    assert [scan.path for scan in store.scans] == [scan.path for scan in good]
    found = rejected(tmp_path / "store")
    assert set(found) == {path.name for path in reasons}
    for path, reason in reasons.items():
        assert found[path.name].startswith(reason), path


def test_nothing_usable_is_an_error_with_the_reasons_written(tmp_path):
    scan = undescribed(write_nifti(tmp_path / "data" / "flat.nii", np.zeros((8, 8, 8), np.uint8)))
    manifest = write_manifest(tmp_path / "manifest.json", [scan])
    with pytest.raises(Dae3dError, match=r"none of the 1 scans.*rejected\.csv"):
        prepare(manifest=manifest, out=tmp_path / "store", workers=1)
    assert rejected(tmp_path / "store") == {"flat.nii": "constant: every voxel is 0"}


def test_two_workers_make_the_same_store_as_one(manifest, tmp_path):
    options = {"manifest": manifest, "crop_foreground": True}
    one = prepare(out=tmp_path / "one", workers=1, **options)
    two = prepare(out=tmp_path / "two", workers=2, **options)
    for number, (a, b) in enumerate(zip(one.scans, two.scans, strict=True)):
        assert a.model_copy(update={"stored_stamp": None}) == b.model_copy(update={"stored_stamp": None})
        np.testing.assert_array_equal(whole(one, number), whole(two, number))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"spacing": (1, 1)}, "spacing: must be three numbers in mm, or none"),
        ({"spacing": (1, 0, 1)}, "spacing: .*greater than 0"),
        ({"workers": 0}, "workers: .*greater than or equal to 1"),
    ],
)
def test_bad_settings_name_the_field(manifest, tmp_path, fields, message):
    with pytest.raises(SettingsError, match=message):
        prepare(manifest=manifest, out=tmp_path / "store", **fields)


def test_a_manifest_that_cannot_be_used_is_refused(manifest, tmp_path):
    scan = Store(prepare(manifest=manifest, out=tmp_path / "store", workers=1).path).scans[0].source
    with pytest.raises(Dae3dError, match="twice"):
        prepare(manifest=write_manifest(manifest, [scan, scan]), out=tmp_path / "other")
    with pytest.raises(Dae3dError, match="lists no scans"):
        prepare(manifest=write_manifest(manifest, []), out=tmp_path / "other")
    with pytest.raises(Dae3dError, match=r"cannot be created: .* is a file"):
        prepare(manifest=write_manifest(manifest, [scan]), out=manifest)


def test_a_page_shows_the_store_unless_it_is_not_wanted(manifest, tmp_path):
    prepare(manifest=manifest, out=tmp_path / "store", workers=1)
    page = (tmp_path / "store" / "data-report.html").read_text()
    assert "<svg" in page or "<img" in page
    prepare(manifest=manifest, out=tmp_path / "other", workers=1, report=False)
    assert not (tmp_path / "other" / "data-report.html").exists()


def test_a_damaged_index_or_stored_file_is_made_good(manifest, tmp_path):
    out = tmp_path / "store"
    prepare(manifest=manifest, out=out, workers=1, report=False)
    index, before = (out / "index.jsonl").read_bytes(), written(out)
    (out / "index.jsonl").write_bytes(index[:-200])
    prepare(manifest=manifest, out=out, workers=1, report=False)
    assert (out / "index.jsonl").read_bytes() == index
    assert written(out) == before
    damaged = next((out / "scans").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-50])
    prepare(manifest=manifest, out=out, workers=1, report=False)
    assert [name for name, when in written(out).items() if when != before[name]] == [damaged.name]


def test_the_index_is_ordered_by_the_name_of_the_source(tmp_path):
    scans = some_scans(tmp_path / "data", 4)
    manifest = write_manifest(tmp_path / "manifest.jsonl", [scans[i] for i in (2, 0, 3, 1)])
    store = prepare(manifest=manifest, out=tmp_path / "store", workers=2, report=False)
    assert [scan.path for scan in store.scans] == [scan.path for scan in scans]


def test_the_index_is_lines_of_json(manifest, tmp_path):
    store = prepare(manifest=manifest, out=tmp_path / "store", workers=1)
    lines = (tmp_path / "store" / "index.jsonl").read_text().splitlines()
    header, *scans = map(json.loads, lines)
    assert header["scans"] == len(scans) == 3
    assert [scan["file"] for scan in scans] == [scan.file for scan in store.scans]


def test_a_scan_that_is_now_called_ct_is_measured_as_one(tmp_path: Path) -> None:
    array = np.full((20, 20, 20), -2000, np.int16)
    array[2:18] = np.random.default_rng(0).integers(-1000, 1000, (16, 20, 20))
    path = write_nifti(tmp_path / "scan.nii", array)
    paddings = {}
    for label in ("mr", "ct", "cbct"):
        manifest = write_manifest(tmp_path / "manifest.jsonl", [described(path, label)])
        store = prepare(manifest=manifest, out=tmp_path / "store", workers=1, report=False)
        assert store.scans[0].modality == label
        paddings[label] = store.scans[0].statistics.padding
    # In HU everything from -1500 down is padding; elsewhere the lowest value, if it lies far from all others.
    assert paddings == {"mr": -2000, "ct": -1500, "cbct": -1500}
