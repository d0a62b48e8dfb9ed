"""Sources that change, go missing or ask for too much while a store is made, and runs cut short."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dae3d.commands.prepare import prepare
from dae3d.errors import Dae3dError
from dae3d.scans.manifest import Manifest
from dae3d.store.convert import convert, described
from dae3d.store.examine import conform
from dae3d.store.store import Store
from scan_files import described as entry
from scan_files import phantom, write_manifest, write_nifti, written


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Four scans."""
    paths = [write_nifti(tmp_path / "data" / f"{i}" / "ct.nii", phantom((20, 21, 22), i)) for i in range(4)]
    return write_manifest(tmp_path / "manifest.jsonl", [entry(path) for path in paths])


def run(manifest: Path, out: Path, **settings) -> Store:
    return prepare(manifest=manifest, out=out, workers=1, report=False, **settings)


def names(store: Store) -> list[str]:
    return [scan.path.parent.name for scan in store.scans]


def rejected(store: Path) -> dict[str, str]:
    with (store / "rejected.csv").open(newline="") as file:
        return {Path(row["path"]).parent.name: row["reason"] for row in csv.DictReader(file)}


@pytest.mark.usefixtures("in_this_process")
def test_a_source_replaced_while_it_is_read_is_done_by_the_next_run(manifest, tmp_path, monkeypatch):
    changing = tmp_path / "data" / "2" / "ct.nii"

    def replaced_meanwhile(volume, preparation, modality):
        if volume.array[0, 0, 0] == phantom((20, 21, 22), 2)[0, 0, 0]:
            write_nifti(changing, phantom((20, 21, 22), 2) + 3)
        return conform(volume, preparation, modality)

    monkeypatch.setattr("dae3d.store.examine.conform", replaced_meanwhile)
    assert names(run(manifest, tmp_path / "store")) == ["0", "1", "3"]
    assert rejected(tmp_path / "store") == {"2": "changed while it was read; run the same command again"}
    monkeypatch.undo()
    store = run(manifest, tmp_path / "store")
    np.testing.assert_array_equal(store.read(2, (0, 0, 0), (20, 21, 22)), phantom((20, 21, 22), 2) + 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("spacing", (0.02, 0.02, 0.02)), ("orientation", "RAI")],
    ids=["spacing", "orientation"],
)
def test_a_scan_whose_header_was_understood_otherwise_is_prepared_again(manifest, tmp_path, field, value):
    """A store of an earlier version may have a scan at 20 mm whose 20 are micrometres."""
    scans = list(Manifest.load(manifest).scans)
    earlier = [scans[0].model_copy(update={field: value}), *scans[1:]]
    run(write_manifest(tmp_path / "earlier.jsonl", earlier), tmp_path / "store")
    before = written(tmp_path / "store")
    run(manifest, tmp_path / "store")
    after = written(tmp_path / "store")
    assert [after[name] == time for name, time in sorted(before.items())].count(False) == 1
    run(manifest, tmp_path / "store")
    assert written(tmp_path / "store") == after


def test_a_scan_that_resampling_would_blow_up_is_rejected(manifest, tmp_path):
    # 0.25 mm written as 250 (micrometres): 20 x 21 x 22 voxels become 5000 x 5250 x 5500 at 1 mm.
    write_nifti(tmp_path / "data" / "1" / "ct.nii", phantom((20, 21, 22), 1), np.diag([250, 250, 250, 1]))
    store = run(manifest, tmp_path / "store", spacing=(1, 1, 1))
    assert names(store) == ["0", "2", "3"]
    assert rejected(tmp_path / "store") == {
        "1": "resampled to 1 x 1 x 1 mm it would have 1.4e+11 voxels; is its voxel size of 250 x 250 x 250 "
        "mm really in mm?"
    }


@pytest.mark.parametrize("ask", [np.empty, torch.empty])
@pytest.mark.usefixtures("in_this_process")
def test_a_scan_that_needs_too_much_memory_does_not_end_the_run(manifest, tmp_path, monkeypatch, ask):
    def greedy(volume, preparation, modality):
        if volume.array[0, 0, 0] == phantom((20, 21, 22), 1)[0, 0, 0]:
            ask(2**46)  # more than there is on any machine
        return conform(volume, preparation, modality)

    monkeypatch.setattr("dae3d.store.examine.conform", greedy)
    assert names(run(manifest, tmp_path / "store")) == ["0", "2", "3"]
    assert rejected(tmp_path / "store")["1"].startswith("unreadable: not enough memory")


def test_missing_sources_are_kept_as_they_were_stored(manifest, tmp_path, caplog):
    out = tmp_path / "store"
    first = list(run(manifest, out).scans)
    before = written(out)
    shutil.rmtree(tmp_path / "data" / "1")
    (tmp_path / "data" / "3").rename(tmp_path / "data" / "away")
    scans = [scan.model_copy(update={"split": "val"}) for scan in Manifest.load(manifest).scans]
    write_manifest(manifest, scans)
    for lost in (False, True):
        if lost:
            (out / "index.jsonl").unlink()
        store = run(manifest, out)
        assert "2 source files are missing; the stored scans are kept" in caplog.text
        assert [scan.source.digest for scan in store.scans] == [scan.source.digest for scan in first]
        assert {scan.split for scan in store.scans} == {"val"}
        assert written(out) == before
        caplog.clear()
    # A preparation that the store does not have cannot be made of nothing, nor can a damaged file be kept.
    (out / "index.jsonl").unlink()
    damaged = out / "scans" / first[1].file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)
    assert names(run(manifest, out)) == ["0", "2", "3"]
    assert rejected(out) == {"1": "unreadable: No such file or directory"}
    assert names(run(manifest, out, crop_foreground=True, again=True)) == ["0", "2"]


@pytest.mark.usefixtures("in_this_process")
def test_an_interrupted_run_takes_nothing_out_of_the_index(manifest, tmp_path, monkeypatch):
    out = tmp_path / "store"
    run(manifest, out)
    index = (out / "index.jsonl").read_bytes()
    calls = []

    def interrupted(stored, scan, stamp):
        calls.append(scan)
        if len(calls) % 2 == 0:
            raise KeyboardInterrupt
        return described(stored, scan, stamp)

    monkeypatch.setattr("dae3d.store.wanted.described", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(manifest, out)
    assert (out / "index.jsonl").read_bytes() == index
    monkeypatch.undo()
    # All sources are to be looked at: one is done, the next is changed and not done, two are not come to.
    for number in range(4):
        os.utime(tmp_path / "data" / str(number) / "ct.nii", ns=(1, 12345))
    monkeypatch.setattr("dae3d.commands.prepare.convert", Interrupted(1))
    with pytest.raises(KeyboardInterrupt):
        run(manifest, out)
    assert names(Store(out)) == ["0", "1", "2", "3"]
    assert [scan.source_stamp.mtime_ns == 12345 for scan in Store(out).scans] == [True, False, False, False]


class Interrupted:
    """`convert`, interrupted after so many scans."""

    def __init__(self, scans: int) -> None:
        self.left = scans

    def __call__(self, *args, **settings):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return convert(*args, **settings)


def test_what_ended_a_run_is_not_hidden_by_what_it_then_cannot_write(manifest, tmp_path):
    """A limit on file size stands in for a full disk, a folder in its place for a table nobody can write."""
    noise = np.random.default_rng(0).integers(-1000, 1000, (96, 96, 96), dtype=np.int16)
    big = write_nifti(tmp_path / "data" / "big" / "ct.nii", noise)
    write_manifest(manifest, [*Manifest.load(manifest).scans, entry(big)])
    (tmp_path / "store" / "rejected.csv").mkdir(parents=True)
    limited = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, -1))\n"
        "from dae3d.cli import main\n"
        "raise SystemExit(main())\n"
    )
    command = [sys.executable, "-c", limited, "prepare", manifest, "--out", tmp_path / "store"]
    ended = subprocess.run([*command, "--workers", "1", "--no-report"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "big-ct" in ended.stderr.splitlines()[-1]
    assert "is the disk full?" in ended.stderr.splitlines()[-1]
    assert "rejected.csv: cannot be written" in ended.stderr
    assert names(Store(tmp_path / "store")) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("label", ["../../elsewhere", "/abroad", "t1/../..", "..", "a\\\\b", ""])
def test_a_modality_that_leads_out_of_a_folder_is_refused_with_its_line(manifest, tmp_path, label):
    """Pictures of a run lie in a folder by modality; a manifest may come from elsewhere."""
    lines = manifest.read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace('"modality":"ct"', f'"modality":"{label}"')
    assert f'"{label}"' in lines[2]
    manifest.write_text("".join(lines))
    with pytest.raises(Dae3dError, match=r"manifest.jsonl: line 3 .*\(modality: .* is not a modality label"):
        run(manifest, tmp_path / "store")
    assert not (tmp_path / "store" / "index.jsonl").exists()


def test_a_damaged_line_of_the_manifest_is_named(manifest, tmp_path):
    lines = manifest.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"', b"'", 1)
    manifest.write_bytes(b"".join(lines))
    with pytest.raises(Dae3dError, match=r"manifest.jsonl: line 3 is damaged .*; make the manifest again"):
        run(manifest, tmp_path / "store")
