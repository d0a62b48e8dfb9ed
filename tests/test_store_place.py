"""A store's folder: what dae3d has not made is neither deleted nor written over."""

import json
from pathlib import Path

import blosc2
import numpy as np
import pytest

import dae3d
from dae3d.commands.prepare import prepare
from dae3d.errors import Dae3dError
from dae3d.store.cases import CaseStore, prepare_cases
from dae3d.store.place import MARK
from dae3d.store.store import Store
from made_cases import recipe, some_cases
from scan_files import described, phantom, write_manifest, write_nifti


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    paths = [write_nifti(folder / "data" / f"{i}" / "ct.nii", phantom((20, 21, 22), i)) for i in range(2)]
    return write_manifest(folder / "manifest.jsonl", [described(path) for path in paths])


def prepared(manifest: Path, out: Path, **settings: object) -> Store:
    return prepare(manifest=manifest, out=out, workers=1, report=False, **settings)


def written_by_others(folder: Path, *names: str) -> dict[Path, bytes]:
    files = {folder / name: f"mine: {name}".encode() for name in names}
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files


def untouched(files: dict[Path, bytes]) -> bool:
    return all(path.read_bytes() == content for path, content in files.items())


LIKE_OURS = ("partial/a.txt", "partial results.csv", "parts/index-0-of-2.jsonl", ".notes.tmp", "parts/.x.tmp")


@pytest.mark.parametrize("shard", [None, "0/1"])
def test_files_that_are_called_like_temporary_ones_stay(manifest, tmp_path, shard):
    files = written_by_others(tmp_path, *LIKE_OURS)
    assert len(prepared(manifest, tmp_path, shard=shard).scans) == 2
    dae3d.store_check(store=tmp_path, repair=True, prune=True, workers=1)
    assert untouched(files)


def test_files_beside_cases_stay(tmp_path):
    files = written_by_others(tmp_path / "store", *LIKE_OURS)
    prepare_cases(some_cases(tmp_path, 2), recipe(), tmp_path / "store", workers=1)
    assert untouched(files)


@pytest.mark.parametrize(
    "name", ["index.jsonl", "rejected.csv", "scans/ct.nii", "cases/1/ct.nii", "damaged/a", "cases.jsonl"]
)
def test_a_folder_with_what_a_store_would_write_to_is_refused(manifest, tmp_path, name):
    files = written_by_others(tmp_path / "mine", name, "notes.txt")
    told = f"mine: contains {name.split('/')[0]}, not made by dae3d; choose another folder"
    with pytest.raises(Dae3dError, match=told):
        prepared(manifest, tmp_path / "mine")
    with pytest.raises(Dae3dError, match=told):
        prepare_cases(some_cases(tmp_path, 1), recipe(), tmp_path / "mine", workers=1)
    assert sorted(path for path in (tmp_path / "mine").rglob("*") if path.is_file()) == sorted(files)
    assert untouched(files)


def test_a_check_that_repairs_or_prunes_leaves_other_arrays_alone(manifest, tmp_path):
    foreign = tmp_path / "other" / "scans"
    foreign.mkdir(parents=True)
    blosc2.asarray(np.zeros((8, 8, 8)), urlpath=str(foreign / "case_1.b2nd"), mode="w")
    (foreign / "case_2.b2nd").write_bytes(b"half")
    for action in ("repair", "prune"):
        with pytest.raises(Dae3dError):
            dae3d.store_check(store=tmp_path / "other", workers=1, **{action: True})
    assert sorted(path.name for path in foreign.iterdir()) == ["case_1.b2nd", "case_2.b2nd"]
    # Within a store too, only what is called as stored files are is its own.
    prepared(manifest, tmp_path / "store")
    for path in foreign.iterdir():
        (tmp_path / "store" / "scans" / path.name).write_bytes(path.read_bytes())
    dae3d.store_check(store=tmp_path / "store", repair=True, prune=True, workers=1)
    assert len(list((tmp_path / "store" / "scans").iterdir())) == 4


@pytest.mark.parametrize("left", ["index.jsonl", "scans", "rejected.csv"])
def test_a_store_without_a_mark_is_known_by_what_is_in_it(manifest, tmp_path, left):
    """As earlier versions made them, and however little of it is left."""
    out = tmp_path / "store"
    prepared(manifest, out)
    (out / MARK).unlink()
    if left != "index.jsonl":
        (out / "index.jsonl").write_bytes(b"")
    if left not in ("scans", "index.jsonl"):
        for path in (out / "scans").iterdir():
            path.unlink()
    assert len(prepared(manifest, out).scans) == 2
    assert (out / MARK).is_file()


def test_cases_without_a_mark_are_known_too(tmp_path):
    cases = some_cases(tmp_path, 2)
    out = tmp_path / "store"
    prepare_cases(cases, recipe(), out, workers=1)
    (out / MARK).unlink()
    before = {path: path.stat().st_mtime_ns for path in (out / "cases").rglob("*.b2nd")}
    prepare_cases(cases, recipe(), out, workers=1)
    assert {path: path.stat().st_mtime_ns for path in (out / "cases").rglob("*.b2nd")} == before


OUTSIDE = ["../../outside", "/tmp/outside", "..", "a/b", ""]


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_that_leads_out_of_the_store_is_refused(manifest, tmp_path, name):
    out = tmp_path / "store"
    prepared(manifest, out)
    index = out / "index.jsonl"
    header, first, *others = index.read_text().splitlines()
    changed = json.dumps(json.loads(first) | {"file": name})
    index.write_text("\n".join([header, changed, *others]) + "\n")
    told = r"index.jsonl: line 2 is damaged \(file: must be the name of a file or folder in the store"
    with pytest.raises(Dae3dError, match=told):
        Store(out).scans[0]
    with pytest.raises(Dae3dError, match="damaged; repair it"):
        dae3d.store_check(store=out, workers=1)


def test_a_stored_file_under_another_name_is_not_taken_for_the_one_it_names(manifest, tmp_path):
    out = tmp_path / "store"
    file = prepared(manifest, out).scans[0].file
    wrong = out / "scans" / f"copy-{'0' * 16}.b2nd"
    (out / "scans" / file).rename(wrong)
    (out / "index.jsonl").unlink()
    with pytest.raises(Dae3dError):
        dae3d.store_check(store=out, workers=1)
    assert [scan.file for scan in dae3d.store_check(store=out, repair=True, workers=1).scans] != [wrong.name]
    assert len(prepared(manifest, out).scans) == 2


@pytest.mark.parametrize("name", [*OUTSIDE, "another-case-0123456789abcdef"])
def test_a_case_that_says_it_lies_elsewhere_is_refused(tmp_path, name):
    cases = some_cases(tmp_path, 1)
    out = tmp_path / "a" / "store"
    folder = out / "cases" / prepare_cases(cases, recipe(), out, workers=1).cases[0].folder
    metadata = folder / "case.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"folder": name}))
    before = sorted(tmp_path.rglob("*"))
    for touched in (False, True):
        if touched:
            cases[0].images[0].touch()
        with pytest.raises(Dae3dError, match=rf"{folder.name}/case.json: folder: must be"):
            prepare_cases(cases, recipe(), out, workers=1)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_list_of_cases_that_leads_out_of_the_store_is_refused(tmp_path, name):
    out = tmp_path / "store"
    prepare_cases(some_cases(tmp_path, 1), recipe(), out, workers=1)
    header, case = (out / "cases.jsonl").read_text().splitlines()
    (out / "cases.jsonl").write_text(f"{header}\n{json.dumps(json.loads(case) | {'folder': name})}\n")
    with pytest.raises(Dae3dError, match=r"cases.jsonl: damaged \(folder: must be the name of a file or"):
        CaseStore(out)
