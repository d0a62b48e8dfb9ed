"""Stores that were damaged on purpose: what `store check` finds, and what is left after a repair."""

import os
import shutil
from pathlib import Path

import blosc2
import numpy as np
import pytest

import dae3d
from dae3d.cli import main
from dae3d.commands.prepare import prepare
from dae3d.errors import Dae3dError
from dae3d.store.scan import file_name
from dae3d.store.store import Store
from dae3d.store.writer import locked
from scan_files import described, phantom, write_manifest, write_nifti, written

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder with a manifest of four scans of two subjects, and their store."""
    folder = tmp_path_factory.mktemp("check")
    paths = [write_nifti(folder / "data" / f"{i}" / "ct.nii", phantom((70, 41, 32), i)) for i in range(4)]
    manifest = write_manifest(folder / "manifest.jsonl", [described(path) for path in paths])
    prepare(manifest=manifest, out=folder / "store", workers=1, report=False)
    return folder


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared / "store", tmp_path / "store")
    return tmp_path / "store"


def file(store: Path, number: int) -> Path:
    return store / "scans" / Store(store).scans[number].file


def again(prepared: Path, store: Path) -> Store:
    return prepare(manifest=prepared / "manifest.jsonl", out=store, workers=1, report=False)


def shown(capsys, *words: object) -> tuple[int, str, str]:
    status = main(["store", "check", *map(str, words), "--workers", "1"])
    out, err = capsys.readouterr()
    return status, " ".join(out.split()), err


def test_a_whole_store_is_left_as_it_is(store, capsys):
    before = {path: path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}
    for repair in ((), ("--repair",)):
        status, out, _ = shown(capsys, store, *repair)
        assert (status, "│ intact │ 4" in out, "│ wrong │ 0" in out) == (0, True, True)
    assert {path: path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()} == before


def test_it_is_a_function_too_and_runs_in_processes(store):
    assert len(dae3d.store_check(store=store, workers=2).scans) == 4
    file(store, 0).unlink()
    with pytest.raises(Dae3dError, match=r"damaged; repair it with `dae3d store check .* --repair`"):
        dae3d.store_check(store=store, workers=2)


def flip_a_bit(path: Path) -> None:
    """In the compressed voxels, where Blosc2 does not notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def fill_with_zeros(path: Path) -> None:
    """As some file systems do to files that were written before a power failure."""
    path.write_bytes(bytes(path.stat().st_size))


def change_a_voxel(path: Path) -> None:
    blosc2.open(str(path), mode="a")[3, 3, 3] = 7


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, fill_with_zeros, change_a_voxel, Path.unlink])
def test_damage_is_found_and_made_good(prepared, store, capsys, damage):
    bad = file(store, 2)
    sound = {name: when for name, when in written(store).items() if name != bad.name}
    whole = Store(store).read(2, (0, 0, 0), (70, 41, 32))
    damage(bad)
    status, out, err = shown(capsys, store)
    assert (status, "│ intact │ 3" in out, "│ wrong │ 1" in out) == (1, True, True)
    assert ("missing" if damage is Path.unlink else "damaged") in out
    assert "--repair" in err
    assert len(Store(store).scans) == 4
    assert shown(capsys, store, "--repair")[0] == 0
    assert [scan.path.parent.name for scan in Store(store).scans] == ["0", "1", "3"]
    assert written(store) == sound
    mended = again(prepared, store)
    assert {name: when for name, when in written(store).items() if name != bad.name} == sound
    np.testing.assert_array_equal(mended.read(2, (0, 0, 0), (70, 41, 32)), whole)
    assert shown(capsys, store)[0] == 0


@pytest.mark.parametrize("where", [0.0, 0.3, 0.97])
def test_any_flipped_bit_that_changes_a_voxel_is_found(store, where):
    """Law, of some bits: the voxels are still as they were written, or it is said that they are not."""
    path = file(store, 1)
    content, voxels = path.read_bytes(), Store(store).read(1, (0, 0, 0), (70, 41, 32))
    random = np.random.default_rng(0)
    for _ in range(8):
        place = int((where + 0.03 * random.random()) * len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
        try:
            found = dae3d.store_check(store=store, workers=1).read(1, (0, 0, 0), (70, 41, 32))
        except Dae3dError:
            continue
        np.testing.assert_array_equal(found, voxels)


@pytest.mark.parametrize("lost", [True, False])
def test_an_index_is_made_anew_of_the_files(prepared, store, capsys, lost):
    before = [scan.model_copy() for scan in Store(store).scans]
    index = store / "index.jsonl"
    if lost:
        index.unlink()
    else:
        os.truncate(index, index.stat().st_size - 100)
    flip_a_bit(store / "scans" / before[0].file)
    status, out, _ = shown(capsys, store)
    assert status == 1
    assert "missing" in out if lost else "damaged" in out
    assert shown(capsys, store, "--repair")[0] == 0
    assert list(Store(store).scans) == before[1:]
    assert [scan.source for scan in again(prepared, store).scans] == [scan.source for scan in before]


def test_files_of_scans_that_left_the_manifest_are_kept_and_not_listed(prepared, store, tmp_path, capsys):
    scans = [scan.source for scan in Store(store).scans]
    other = write_manifest(tmp_path / "fewer.jsonl", scans[:3])
    prepare(manifest=other, out=store, workers=1, only=True, report=False)
    (store / ".dae3d-partial").mkdir()
    (store / ".dae3d-partial" / "half.b2nd").touch()
    (store / ".dae3d-0123abcd.index.jsonl").touch()
    for repair in ((), ("--repair",)):
        status, out, _ = shown(capsys, store, *repair)
        assert status == 0
        assert "1 intact files, kept" in out
        assert ".dae3d-0123abcd.index.jsonl, .dae3d-partial" in out
    assert len(Store(store).scans) == 3
    assert len(written(store)) == 4
    names = [".dae3d-store", ".lock", "index.jsonl", "rejected.csv", "scans"]
    assert sorted(path.name for path in store.iterdir()) == names
    # A damaged one would be taken up as it is when its scan comes back.
    flip_a_bit(store / "scans" / file_name(scans[3]))
    assert shown(capsys, store)[0] == 1
    assert shown(capsys, store, "--repair")[0] == 0
    assert len(written(store)) == 3
    assert len(again(prepared, store).scans) == 4


def test_a_file_that_is_not_the_one_listed_leaves_the_index_and_stays(prepared, store, tmp_path, capsys):
    """As when a run that prepared it again was killed before it wrote the index."""
    other = prepare(
        manifest=prepared / "manifest.jsonl",
        out=tmp_path / "other",
        workers=1,
        report=False,
        spacing=(2, 2, 2),
    )
    changed = file(store, 1)
    shutil.copy(other.path / "scans" / changed.name, changed)
    status, out, _ = shown(capsys, store)
    assert status == 1
    assert "not as in the index: preparation" in out
    shown(capsys, store, "--repair")
    assert len(Store(store).scans) == 3
    assert len(written(store)) == 4
    assert {scan.shape for scan in again(prepared, store).scans} == {(70, 41, 32)}


def test_labels_that_only_the_index_has_are_no_damage(store, tmp_path, capsys):
    scans = [scan.source.model_copy(update={"split": "val"}) for scan in Store(store).scans]
    manifest = write_manifest(tmp_path / "relabelled.jsonl", scans)
    prepare(manifest=manifest, out=store, workers=1, report=False)
    assert shown(capsys, store)[0] == 0
    file(store, 0).unlink()
    shown(capsys, store, "--repair")
    assert [scan.split for scan in Store(store).scans] == ["val"] * 3


def test_shards_that_are_missing_are_not_papered_over(prepared, tmp_path, capsys):
    out = tmp_path / "shards"
    prepare(manifest=prepared / "manifest.jsonl", out=out, shard="1/2", workers=1, report=False)
    status, _, err = shown(capsys, out, "--repair")
    assert status == 1
    assert "waiting for shard 0 of 2" in err
    prepare(manifest=prepared / "manifest.jsonl", out=out, shard="0/2", workers=1, report=False)
    assert shown(capsys, out)[0] == 0


def test_where_there_is_no_store_none_is_made(tmp_path, capsys):
    status, _, err = shown(capsys, tmp_path / "nowhere", "--repair")
    assert (status, "not a store" in err) == (1, True)
    assert not (tmp_path / "nowhere").exists()


def test_a_store_that_is_being_written_is_left_alone(store, capsys):
    with locked(store / ".lock"):
        for repair in ((), ("--repair",)):
            status, _, err = shown(capsys, store, *repair)
            assert (status, "another run of dae3d is writing" in err) == (1, True)


def test_one_word_of_the_command_alone_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["store", "mend"])
    assert exit_.value.code == 2
    assert "store check" in capsys.readouterr().err
