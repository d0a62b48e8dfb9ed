"""What files are written as, and what is not written over or deleted because dae3d has not made it."""

import errno
import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import dae3d
from conftest import smooth_volume
from dae3d.commands.demo import demo
from dae3d.commands.evaluate import evaluate
from dae3d.errors import Dae3dError
from dae3d.files import reserve, unfinished_files, unfinished_name, whole_file
from dae3d.journal import Journal
from fine_tuned import ct_scan, fine_tuned
from scan_files import write_nifti

pytestmark = pytest.mark.slow


@pytest.fixture
def umask() -> Iterator[int]:
    """The group may read, others may not."""
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def test_all_files_may_be_read_by_whom_the_umask_lets(
    tiny_task, tiny_settings, in_this_process, tmp_path, umask
):
    """From scans to a page, and weights in every layout. Worker processes have the mask they begin with."""
    write_nifti(tmp_path / "scans" / "a_t1.nii.gz", np.round(smooth_volume(0, (34, 34, 34)) * 500))
    write_nifti(tmp_path / "scans" / "b_t1.nii.gz", np.round(smooth_volume(1, (34, 34, 34)) * 500))
    dae3d.index(folders=[tmp_path / "scans"], modality="t1", out=tmp_path / "m.jsonl", check=True, workers=1)
    dae3d.prepare(manifest=tmp_path / "m.jsonl", out=tmp_path / "store", workers=1)
    short = tiny_settings | {"max_steps": 1, "val_every": 1, "save_every": 1, "batch_size": 2, "val_crops": 1}
    run = dae3d.pretrain(data=tmp_path / "store", out=tmp_path / "run", **short)
    for kind, suffix in (("safetensors", "safetensors"), ("reference", "pth")):
        dae3d.export(weights=run, out=tmp_path / f"exported.{suffix}", format=kind)
    scan = tmp_path / "scans" / "a_t1.nii.gz"
    dae3d.embed(scans=[scan], weights=run, modality="t1", out=tmp_path / "e.npz", device="cpu")
    dae3d.reconstruct(scans=[scan], weights=run, modality="t1", out=tmp_path / "r", device="cpu", overlap=0)
    dae3d.report(run=run)
    short = {name: value for name, value in short.items() if name != "val_crops"}
    fine = dae3d.finetune(data=tiny_task, out=tmp_path / "fine", prepare_workers=1, **short)
    dae3d.predict(scans=[scan], weights=[fine], out=tmp_path / "p", probabilities=True, device="cpu")
    entries = [path for path in tmp_path.rglob("*") if not path.is_symlink()]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in entries}
    files = {str(path): mode for path, mode in modes.items() if path.is_file()}
    assert len(files) > 30
    assert {name: oct(mode) for name, mode in files.items() if mode != 0o666 & ~umask} == {}
    assert {oct(mode) for path, mode in modes.items() if path.is_dir()} == {oct(0o777 & ~umask)}


@pytest.mark.parametrize("name", ["index.jsonl", "scan.nii.gz", "ü" * 126 + ".b", "x" * 251 + ".csv"])
def test_an_unfinished_file_has_a_mark_and_its_suffix(tmp_path, name):
    path = tmp_path / name
    with whole_file(path) as temporary:
        assert temporary.name.startswith(".dae3d-")
        assert temporary.suffix == path.suffix
        assert unfinished_files(tmp_path) == [temporary]
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_names_that_are_like_those_of_unfinished_files_are_others(tmp_path):
    for name in (".dae3d-store", ".dae3d-partial", ".dae3d-0123456.x", "dae3d-01234567.x", ".a.01234567.tmp"):
        (tmp_path / name).touch()
    assert unfinished_files(tmp_path) == []
    unfinished_name(tmp_path / "a").touch()
    assert len(unfinished_files(tmp_path)) == 1
    assert len(unfinished_files(tmp_path, "a", "b")) == 1
    assert unfinished_files(tmp_path, "b") == []


def test_reserved_room_is_there(tmp_path):
    """A sparse file would have no blocks, and end the process where it is written to on a full disk."""
    reserve(tmp_path / "a", 5_000_001)
    found = (tmp_path / "a").stat()
    assert found.st_size == 5_000_001
    assert found.st_blocks * 512 >= 5_000_001
    assert not (tmp_path / "a").read_bytes().strip(b"\0")


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["limit", "reserving", "writing"])
def test_probabilities_on_a_full_disk_are_one_error_and_leave_nothing(tmp_path, monkeypatch, where):
    """With 3 classes of 40 x 36 x 34 voxels, 4 bytes each, there are 588 kB to make room for."""
    weights = fine_tuned(tmp_path / "w.safetensors", seed=2)
    given = {"scans": [ct_scan(tmp_path / "p.nii.gz")], "weights": [weights], "device": "cpu"}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if where == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    elif where == "reserving":
        monkeypatch.setattr(os, "posix_fallocate", full)
    else:
        monkeypatch.setattr(nibabel.Nifti1Image, "to_filename", full)
    try:
        with pytest.raises(Dae3dError, match=r"out.*: cannot be written: (No space|File too)"):
            dae3d.predict(out=tmp_path / "out", probabilities=True, **given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.jsonl", "weights.json"]


def test_what_a_killed_prediction_left_is_removed(tmp_path):
    weights = fine_tuned(tmp_path / "w.safetensors", seed=2)
    (tmp_path / "out").mkdir()
    unfinished_name(tmp_path / "out" / "p_probabilities.nii.gz").write_bytes(bytes(1000))
    others = unfinished_name(tmp_path / "out" / "metrics.csv")
    others.touch()
    given = {"scans": [ct_scan(tmp_path / "p.nii.gz")], "weights": [weights], "device": "cpu"}
    dae3d.predict(out=tmp_path / "out", probabilities=True, **given)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [others.name, "p.nii.gz", "p_probabilities.nii.gz", "predictions.jsonl", "weights.json"]


@pytest.mark.parametrize("content", [b"mine", b"mine\n", b'{"mine": 1}\n{"x": 2}\nrest', b"\0\0\n"])
@pytest.mark.parametrize("again", [False, True])
def test_a_journal_does_not_overwrite_another_file(tmp_path, content, again):
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    with pytest.raises(Dae3dError, match=r"j.jsonl: exists and is not a file that dae3d would continue here"):
        Journal(path, {"weights": "abc"}, again=again)
    assert path.read_bytes() == content


def test_a_journal_whose_heading_a_crash_cut_short_starts_over(tmp_path):
    path = tmp_path / "j.jsonl"
    for cut in (b"", b'{"weigh'):
        path.write_bytes(cut)
        with Journal(path, {"weights": "abc"}) as journal:
            journal.add("a", [], 1)
        with Journal(path, {"weights": "abc"}) as journal:
            assert journal.find("a", []) == 1


def another_file(path: Path) -> Callable[[], bool]:
    """A user's own file; returns whether it is as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"<!doctype html>\n<title>mine</title>\n" if path.suffix == ".html" else b"a,b\n1,2\n"
    path.write_bytes(content)
    return lambda: path.read_bytes() == content


def test_a_page_is_written_over_a_page_and_nothing_else(tiny_run, tmp_path):
    page = dae3d.report(run=tiny_run, out=tmp_path / "page.html")
    assert dae3d.report(run=tiny_run, out=page) == page
    unchanged = another_file(tmp_path / "mine.html")
    with pytest.raises(Dae3dError, match=r"mine.html exists and is not a report of dae3d"):
        dae3d.report(run=tiny_run, out=tmp_path / "mine.html")
    assert unchanged()


def test_an_evaluation_writes_over_its_own_files_alone(tiny_task, tmp_path):
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for i in range(5, 8):
        label = nibabel.load(tiny_task.parent / f"sub-{i}_seg.nii.gz")
        label.to_filename(predictions / f"sub-{i}_T1w.nii.gz")
    given = {"data": tiny_task, "predictions": predictions, "out": tmp_path / "out", "workers": 1}
    evaluate(**given)
    evaluate(**given)
    for path in (tmp_path / "out" / name for name in ("metrics.csv", "metrics.json", "report.html")):
        before = path.read_bytes()
        unchanged = another_file(path)
        with pytest.raises(Dae3dError, match=rf"{path.name} exists and is not"):
            evaluate(**given)
        assert unchanged()
        path.write_bytes(before)


def test_reconstructions_write_over_no_other_table(tiny_run, tmp_path):
    scan = ct_scan(tmp_path / "p_ct.nii.gz", (32, 32, 32))
    given = {"scans": [scan], "weights": tiny_run, "modality": "ct", "device": "cpu", "overlap": 0}
    for out in (tmp_path / "out", tmp_path / "out"):
        dae3d.reconstruct(out=out, **given)
    for table in ((tiny_run / "metrics.csv").read_bytes(), b"a,b\n"):
        (tmp_path / "out" / "metrics.csv").write_bytes(table)
        with pytest.raises(Dae3dError, match=r"metrics.csv exists and is not a table of `reconstruct`"):
            dae3d.reconstruct(out=tmp_path / "out", **given)
        assert (tmp_path / "out" / "metrics.csv").read_bytes() == table


@pytest.mark.parametrize(("kind", "suffix"), [("safetensors", "safetensors"), ("reference", "pth")])
def test_weights_are_exported_over_exported_ones_alone(tiny_run, tmp_path, kind, suffix):
    out = tmp_path / f"w.{suffix}"
    for _ in range(2):
        dae3d.export(weights=tiny_run, out=out, format=kind)
    with pytest.raises(Dae3dError, match="is the file of the weights themselves"):
        dae3d.export(weights=out, out=out, format=kind)
    unchanged = another_file(out)
    with pytest.raises(Dae3dError, match="was not written by dae3d"):
        dae3d.export(weights=tiny_run, out=out, format=kind)
    assert unchanged()
    if kind == "reference":
        torch.save({"model": {"a": torch.zeros(2)}}, out)
        with pytest.raises(Dae3dError, match="was not written by dae3d"):
            dae3d.export(weights=tiny_run, out=out, format=kind)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_features_are_written_over_features_alone(tiny_run, tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    scan = ct_scan(tmp_path / "p_ct.nii.gz", (32, 32, 32))
    given = {"scans": [scan], "weights": tiny_run, "modality": "ct", "device": "cpu"}
    out = tmp_path / f"e.{suffix}"
    for _ in range(2):
        dae3d.embed(out=out, **given)
    unchanged = another_file(out)
    with pytest.raises(Dae3dError, match=rf"e.{suffix} exists and is not a table of `embed`"):
        dae3d.embed(out=out, **given)
    assert unchanged()


@pytest.mark.parametrize("name", ["settings.yaml", "run.json", "weights/best.safetensors"])
def test_a_run_begins_over_no_other_files(tiny_store, tiny_settings, tmp_path, name):
    unchanged = another_file(tmp_path / "out" / name)
    with pytest.raises(Dae3dError, match="name another"):
        dae3d.pretrain(data=tiny_store, out=tmp_path / "out", max_steps=1, **tiny_settings)
    assert unchanged()


def test_a_demo_takes_no_folder_with_a_store_of_ones_own(tmp_path):
    (tmp_path / "store").mkdir()
    with pytest.raises(Dae3dError, match="contains store, not made by `demo`; choose another folder"):
        demo(out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
