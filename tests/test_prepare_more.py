"""A store that is prepared from one manifest, and then from another."""

import shutil
from pathlib import Path

import pytest

from dae3d.commands.prepare import prepare
from dae3d.commands.store_check import store_check
from dae3d.errors import Dae3dError
from dae3d.scans.manifest import Scan
from dae3d.store.store import Store
from scan_files import described, phantom, write_manifest, write_nifti, written

pytestmark = pytest.mark.slow


class Two:
    """Manifests of three and of two scans of as many subjects, and an empty folder for their store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "store"
        self.scans = {place: self._scans(place) for place in ("a", "b", "c", "x", "y")}
        self.first = self.manifest("first", "abc")
        self.second = self.manifest("second", "xy")

    def _scans(self, place: str) -> Scan:
        path = write_nifti(self.folder / "data" / place / "ct.nii", phantom((20, 21, 22), ord(place)))
        return described(path, subject=f"subject {place}")

    def manifest(self, name: str, places: str, **changes: object) -> Path:
        scans = [self.scans[place].model_copy(update=changes) for place in places]
        return write_manifest(self.folder / f"{name}.jsonl", scans)

    def prepare(self, manifest: Path, **settings: object) -> list[str]:
        return listed(prepare(manifest=manifest, out=self.store, workers=1, report=False, **settings))


def listed(store: Store) -> list[str]:
    return [scan.path.parent.name for scan in store.scans]


@pytest.fixture
def two(tmp_path: Path) -> Two:
    return Two(tmp_path)


def rows(capsys) -> dict[str, str]:
    """What the table on the screen says."""
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line[:1] == "│"]
    return {name: value for name, value in cells if name}


def test_a_second_manifest_adds_to_the_store(two, capsys):
    two.prepare(two.first)
    before = written(two.store)
    assert "listed before" not in rows(capsys)
    assert two.prepare(two.second) == ["a", "b", "c", "x", "y"]
    assert {name: written(two.store)[name] for name in before} == before
    said = rows(capsys)
    assert (said["prepared now"], said["already there"]) == ("2", "3")
    assert (said["listed before"], said["added"]) == ("3", "2")
    assert said["kept"].startswith("3, which the manifest does not list")
    # The first one again takes nothing away, and neither does a check that deletes what is not listed.
    assert two.prepare(two.first) == ["a", "b", "c", "x", "y"]
    assert rows(capsys)["added"] == "0"
    store_check(store=two.store, prune=True, workers=1)
    assert len(written(two.store)) == 5


def test_only_lists_what_the_manifest_lists_and_prune_then_deletes_the_rest(two, capsys):
    two.prepare(two.first)
    two.prepare(two.second)
    capsys.readouterr()
    assert two.prepare(two.manifest("fewer", "ax"), only=True) == ["a", "x"]
    assert rows(capsys)["removed"] == "3, which the manifest does not list"
    store_check(store=two.store, prune=True, workers=1)
    assert len(written(two.store)) == 2


def test_other_labels_of_the_same_scans_are_taken_and_told_of(two, capsys):
    two.prepare(two.first)
    before = written(two.store)
    capsys.readouterr()
    two.prepare(two.manifest("relabelled", "ab", modality="cbct"))
    assert rows(capsys)["relabelled"].startswith("2: modality, subject or split")
    assert [scan.modality for scan in Store(two.store).scans] == ["cbct", "cbct", "ct"]
    assert written(two.store) == before


@pytest.mark.parametrize("shard", [None, "0/2"])
def test_a_subject_on_both_sides_of_the_split_is_refused(two, shard):
    two.prepare(two.first)
    index = (two.store / "index.jsonl").read_bytes()
    follow_up = two.manifest("follow-up", "x", subject="subject b", split="val")
    told = r"subject subject b is in training there, but in validation in .*follow-up.jsonl"
    with pytest.raises(Dae3dError, match=told):
        two.prepare(follow_up, shard=shard)
    assert (two.store / "index.jsonl").read_bytes() == index
    assert len(written(two.store)) == 3
    # The same subject on the same side is no harm; nor is one whose scans are all in this manifest.
    two.prepare(two.manifest("same side", "x", subject="subject b"))
    two.prepare(two.manifest("moved over", "bx", subject="subject b", split="val"))
    assert two.prepare(follow_up, only=True) == ["x"]


def test_a_source_that_was_moved_is_not_there_twice(two, capsys):
    two.prepare(two.first)
    (two.folder / "data" / "b").rename(two.folder / "data" / "moved")
    scans = [two.scans["a"], described(two.folder / "data" / "moved" / "ct.nii", subject="subject b")]
    capsys.readouterr()
    assert two.prepare(write_manifest(two.folder / "again.jsonl", scans)) == ["a", "c", "moved"]
    assert rows(capsys)["moved"] == "1, which the manifest lists under other paths"


def test_a_copy_under_another_path_is_told_of(two, caplog):
    two.prepare(two.first)
    shutil.copytree(two.folder / "data" / "b", two.folder / "data" / "copy")
    copy = described(two.folder / "data" / "copy" / "ct.nii", subject="subject b")
    assert two.prepare(write_manifest(two.folder / "copy.jsonl", [copy])) == ["a", "b", "c", "copy"]
    assert "1 scans are stored twice, from different paths, and drawn twice as often, such as" in caplog.text
    assert "data/b/ct.nii" in caplog.text


def test_a_job_array_adds_to_the_store(two, capsys):
    two.prepare(two.first)
    assert two.prepare(two.second, shard="0/2") == ["x"]
    assert listed(Store(two.store)) == ["a", "b", "c"]
    capsys.readouterr()
    assert two.prepare(two.second, shard="1/2") == ["a", "b", "c", "x", "y"]
    assert rows(capsys)["added"] == "2"
    assert two.prepare(two.second, shard="1/2") == ["a", "b", "c", "x", "y"]
    assert two.prepare(two.second, shard="0/2", only=True) == ["x", "y"]


def test_an_interrupted_run_keeps_the_scans_of_other_manifests(two, in_this_process, monkeypatch):
    from dae3d.store.convert import convert

    two.prepare(two.first)
    done: list[Scan] = []

    def interrupted(scan, **settings):
        if done:
            raise KeyboardInterrupt
        done.append(scan)
        return convert(scan, **settings)

    monkeypatch.setattr("dae3d.commands.prepare.convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        two.prepare(two.second)
    assert listed(Store(two.store)) == ["a", "b", "c", "x"]


def test_scans_that_cannot_be_used_leave_the_store_as_it_is(two):
    two.prepare(two.first)
    two.scans["x"].path.write_bytes(b"")
    with pytest.raises(Dae3dError, match="none of the 1 scans is usable"):
        two.prepare(two.manifest("empty", "x"))
    assert listed(Store(two.store)) == ["a", "b", "c"]


def test_a_damaged_index_loses_no_other_scans_without_a_word(two, caplog):
    two.prepare(two.first)
    index = two.store / "index.jsonl"
    content = index.read_bytes()
    lines = content.splitlines(keepends=True)
    index.write_bytes(b"".join([*lines[:2], lines[2].replace(b'"shape"', b'"shame"'), *lines[3:]]))
    assert two.prepare(two.second) == ["a", "c", "x", "y"]
    assert "1 stored files are neither in it nor in" in caplog.text
    caplog.clear()
    index.write_bytes(content[5:])
    assert two.prepare(two.second) == ["a", "b", "c", "x", "y"]
    index.write_bytes(content[5:])
    assert two.prepare(two.second, crop_foreground=True) == ["x", "y"]
    assert "3 stored files are neither in it nor in" in caplog.text
    caplog.clear()
    index.unlink()
    assert two.prepare(two.second) == ["x", "y"]
    assert "3 stored files are neither in it nor in" in caplog.text
    assert two.prepare(two.first) == ["a", "b", "c", "x", "y"]


def test_scans_of_another_manifest_cannot_stay_beside_others_that_are_prepared_again(two):
    two.prepare(two.first)
    two.prepare(two.second)
    index = (two.store / "index.jsonl").read_bytes()
    with pytest.raises(Dae3dError, match=r"lists 3 scans that .*second.jsonl does not.*add --only"):
        two.prepare(two.second, crop_foreground=True, again=True)
    assert (two.store / "index.jsonl").read_bytes() == index
    assert two.prepare(two.second, crop_foreground=True, again=True, only=True) == ["x", "y"]
    assert two.prepare(two.first, crop_foreground=True) == ["a", "b", "c", "x", "y"]
    assert all(scan.preparation.crop_foreground for scan in Store(two.store).scans)
