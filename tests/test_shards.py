"""`prepare` as a job array: shards in any order, at once, again, and beside whole runs."""

import csv
import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dae3d.commands.prepare import prepare
from dae3d.commands.store_check import store_check
from dae3d.errors import Dae3dError, SettingsError
from dae3d.scans.manifest import Manifest
from dae3d.store.shards import PARTS, Shard
from dae3d.store.store import Store
from dae3d.store.writer import shard_writer
from scan_files import WATCHED, described, phantom, undescribed, write_manifest, write_nifti, written
from waiting import until

pytestmark = pytest.mark.slow

RUN = (
    "import dae3d, sys\n"
    "dae3d.prepare(manifest=sys.argv[1], out=sys.argv[2], shard=sys.argv[3], workers=1, report=False)"
)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Seven scans, not in the order of their names, of which one cannot be used."""
    order = (3, 0, 6, 2, 5, 1)
    paths = [write_nifti(tmp_path / "data" / f"{i}" / "ct.nii", phantom((20, 21, 22), i)) for i in order]
    scans = [described(path) for path in paths]
    bad = undescribed(write_nifti(tmp_path / "data" / "4" / "flat.nii", np.zeros((8, 8, 8), np.uint8)))
    return write_manifest(tmp_path / "manifest.jsonl", [*scans[:4], bad, *scans[4:]])


def run(manifest: Path, out: Path, shard: str | None = None, **settings) -> Store:
    return prepare(manifest=manifest, out=out, shard=shard, workers=1, report=False, **settings)


def contents(store: Store) -> list:
    return [scan.model_copy(update={"stored_stamp": None}) for scan in store.scans]


def names(store: Store) -> list[str]:
    return [scan.path.parent.name for scan in store.scans]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shards_in_any_order_make_the_store_of_a_whole_run(manifest, tmp_path, order):
    whole, out = run(manifest, tmp_path / "whole"), tmp_path / "shards"
    for number in order[:-1]:
        # Of the manifest's order 3 0 6 2 4 5 1, where 4 cannot be used, each takes every third.
        expected = {0: ["1", "2", "3"], 1: ["0"], 2: ["5", "6"]}[number]
        assert names(run(manifest, out, f"{number}/3")) == expected
        assert not (out / "index.jsonl").exists()
    store = run(manifest, out, f"{order[-1]}/3")
    assert contents(store) == contents(whole) == contents(Store(out))
    assert names(store) == ["0", "1", "2", "3", "5", "6"]
    assert (out / "rejected.csv").read_bytes() == (tmp_path / "whole" / "rejected.csv").read_bytes()
    with (out / "rejected.csv").open(newline="") as file:
        assert [row["reason"] for row in csv.DictReader(file)] == ["constant: every voxel is 0"]
    for number in range(6):
        box = (0, 0, 0), store.scans[number].shape
        np.testing.assert_array_equal(store.read(number, *box), whole.read(number, *box))
    header, merged = ((folder / "index.jsonl").read_text().splitlines()[0] for folder in (out, whole.path))
    assert header == merged


def test_it_is_said_which_shards_are_missing(manifest, tmp_path, caplog):
    caplog.set_level("INFO", "dae3d")
    out = tmp_path / "store"
    run(manifest, out, "1/4")
    assert "the index is waiting for shards 0, 2, 3 of 4" in caplog.text
    run(manifest, out, "3/4")
    with pytest.raises(Dae3dError, match=r"not complete yet: waiting for shards 0, 2 of 4"):
        Store(out)


def test_shards_without_scans_do_not_stand_in_the_way(manifest, tmp_path):
    stores = [run(manifest, tmp_path / "store", f"{number}/9") for number in range(9)]
    assert names(stores[8]) == ["0", "1", "2", "3", "5", "6"]
    assert names(stores[7]) == []


def test_nothing_usable_in_any_shard_is_an_error(tmp_path):
    scans = [
        undescribed(write_nifti(tmp_path / f"{i}" / "flat.nii", np.zeros((8, 8, 8), np.uint8)))
        for i in (0, 1)
    ]
    manifest = write_manifest(tmp_path / "manifest.jsonl", scans)
    run(manifest, tmp_path / "store", "0/2")
    with pytest.raises(Dae3dError, match="none of the 2 scans is usable"):
        run(manifest, tmp_path / "store", "1/2")


def test_a_shard_again_does_what_has_changed_and_renews_the_index(manifest, tmp_path):
    out = tmp_path / "store"
    for number in (0, 1):
        run(manifest, out, f"{number}/2")
    before = written(out)
    changed = Store(out).scans[0]  # source 0 is the second of the manifest
    write_nifti(changed.path, phantom((20, 21, 30), 9))
    run(manifest, out, "0/2")
    assert written(out) == before
    store = run(manifest, out, "1/2")
    assert [name for name, when in written(out).items() if when != before[name]] == [changed.file]
    assert [scan.shape for scan in store.scans] == [(20, 21, 30)] + 5 * [(20, 21, 22)]


def test_a_whole_run_takes_over_and_its_store_is_not_mixed_with_older_parts(manifest, tmp_path):
    out = tmp_path / "store"
    run(manifest, out, "0/2")
    before = written(out)
    assert len(run(manifest, out).scans) == 6
    assert {name: written(out)[name] for name in before} == before
    assert not (out / PARTS).exists()
    run(manifest, out, spacing=(2, 2, 2), again=True)
    with pytest.raises(Dae3dError, match=r"was prepared with spacing 2 2 2 .* --again"):
        run(manifest, out, "1/2")
    run(manifest, out, "1/2", again=True)
    assert not (out / PARTS / "index-0-of-2.jsonl").exists()
    # The index of the whole run lists files that the shards are replacing.
    with pytest.raises(Dae3dError, match="waiting for shard 0 of 2"):
        Store(out)
    assert {scan.preparation.spacing for scan in run(manifest, out, "0/2", again=True).scans} == {None}


def test_an_unfinished_array_of_the_same_settings_leaves_the_index_and_is_not_repaired(manifest, tmp_path):
    out = tmp_path / "store"
    run(manifest, out)
    before = (out / "index.jsonl").read_bytes()
    run(manifest, out, "0/3")
    run(manifest, out, "2/3")
    assert (out / "index.jsonl").read_bytes() == before
    with pytest.raises(Dae3dError, match="waiting for shard 1 of 3"):
        store_check(store=out, repair=True, workers=1)
    assert sorted(path.name for path in (out / PARTS).glob("index*")) == [
        "index-0-of-3.jsonl",
        "index-2-of-3.jsonl",
    ]


def test_what_a_shard_left_may_be_damaged(manifest, tmp_path):
    out = tmp_path / "store"
    run(manifest, out, "0/2")
    for damage in (Path.unlink, lambda path: path.write_bytes(b"path,reason\n\xff\n")):
        damage(out / PARTS / "rejected-0-of-2.csv")
        with pytest.raises(Dae3dError, match=r"rejected-0-of-2.csv: cannot be read .* run its shard again"):
            run(manifest, out, "1/2")
        assert len(run(manifest, out, "0/2").scans) == 6


def test_parts_of_other_settings_manifests_or_numbers_are_not_put_together(manifest, tmp_path):
    out = tmp_path / "store"
    run(manifest, out, "0/2", spacing=(2, 2, 2))
    assert len(run(manifest, out, "1/2").scans) == 3
    scans = list(Manifest.load(manifest).scans)
    write_manifest(manifest, scans[:6])
    assert len(run(manifest, out, "0/2").scans) == 2
    run(manifest, out, "1/3")
    assert [path.name for path in (out / PARTS).glob("index*")] == ["index-1-of-3.jsonl"]
    with pytest.raises(Dae3dError, match="shards 0, 2 of 3"):
        Store(out)


def test_shards_at_once(manifest, tmp_path):
    out = tmp_path / "store"
    runs = [subprocess.Popen([sys.executable, "-c", RUN, manifest, out, f"{i}/2"]) for i in (0, 1)]
    assert [process.wait() for process in runs] == [0, 0]
    assert names(Store(out)) == ["0", "1", "2", "3", "5", "6"]
    assert sorted(path.name for path in out.iterdir()) == [
        ".dae3d-store",
        ".lock",
        "dae3d-parts",
        "index.jsonl",
        "rejected.csv",
        "scans",
    ]


def test_who_may_write_at_once(manifest, tmp_path):
    out = tmp_path / "store"
    with shard_writer(out, "scans", Shard(0, 3)):
        run(manifest, out, "1/3")
        with pytest.raises(Dae3dError, match="another run of dae3d is writing"):
            run(manifest, out, "0/3")
        with pytest.raises(Dae3dError, match="another run of dae3d is writing"):
            run(manifest, out)


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_shard_is_not_taken_for_done(tmp_path, kind):
    noise = np.random.default_rng(0).integers(-1000, 1000, (96, 96, 96), dtype=np.int16)
    paths = [write_nifti(tmp_path / "data" / f"{i:02}.nii", np.roll(noise, i)) for i in range(24)]
    manifest = write_manifest(tmp_path / "manifest.jsonl", [described(path) for path in paths])
    out = tmp_path / "store"
    run(manifest, out, "1/2")
    process = subprocess.Popen(
        [*WATCHED, sys.executable, "-c", RUN, manifest, out, "0/2"],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until(lambda: len(list((out / "scans").iterdir())) >= 14)
    os.killpg(process.pid, kind)
    process.wait()
    before = written(out)
    assert 14 <= len(before) < 24
    run(manifest, out, "1/2")
    with pytest.raises(Dae3dError, match="waiting for shard 0 of 2"):
        Store(out)
    store = run(manifest, out, "0/2")
    assert len(store.scans) == 24
    assert {name: written(out)[name] for name in before} == before
    assert not list(out.glob(".dae3d-partial*"))


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "a/b", "0/0", "1/2/3"])
def test_a_shard_is_i_of_n(manifest, tmp_path, text):
    with pytest.raises(SettingsError, match="shard: must be i/n with i from 0 to n - 1"):
        run(manifest, tmp_path / "store", text)
    assert not (tmp_path / "store").exists()


def test_a_disk_without_locks_is_told_of_and_used(manifest, tmp_path, monkeypatch, caplog):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for number in (0, 1):
        store = run(manifest, tmp_path / "store", f"{number}/2")
    assert len(store.scans) == 6
    assert "does not support locking (Function not implemented)" in caplog.text
