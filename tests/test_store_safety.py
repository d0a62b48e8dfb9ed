"""What `store check` must not destroy: files it cannot read, stores of other versions, exclusions, splits."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import blosc2
import numpy as np
import pytest

from dae3d.cli import main
from dae3d.commands.prepare import prepare
from dae3d.errors import Dae3dError
from dae3d.store.integrity import check_file
from dae3d.store.scan import CHECKSUM, METADATA, checksum
from dae3d.store.store import Store
from dae3d.store.writer import locked
from scan_files import described, phantom, without_privilege, write_manifest, write_nifti, written

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder with a manifest of four scans, and their store."""
    folder = tmp_path_factory.mktemp("safety")
    paths = [write_nifti(folder / "data" / f"{i}" / "ct.nii", phantom((40, 31, 32), i)) for i in range(4)]
    manifest = write_manifest(folder / "manifest.jsonl", [described(path) for path in paths])
    prepare(manifest=manifest, out=folder / "store", workers=1, report=False)
    return folder


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared / "store", tmp_path / "store")
    return tmp_path / "store"


def file(store: Path, number: int) -> Path:
    return store / "scans" / Store(store).scans[number].file


def names(store: Path) -> list[str]:
    return [scan.path.parent.name for scan in Store(store).scans]


def again(prepared: Path, store: Path) -> Store:
    return prepare(manifest=prepared / "manifest.jsonl", out=store, workers=1, report=False)


def shown(capsys, *words: object) -> tuple[int, str, str]:
    status = main(["store", "check", *map(str, words), "--workers", "1"])
    out, err = capsys.readouterr()
    return status, " ".join(out.split()), err


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_file_that_cannot_be_read_is_no_damaged_one(store):
    closed, bad = file(store, 1), file(store, 2)
    closed.chmod(0)
    flip_a_bit(bad)
    content = bad.read_bytes()
    command = [sys.executable, "-m", "dae3d.cli", "store", "check", store, "--workers", "1", "--repair"]
    run = subprocess.run(without_privilege(command), capture_output=True, text=True)
    closed.chmod(0o644)
    assert run.returncode == 1
    assert "cannot be read: Permission denied" in " ".join(run.stdout.split())
    assert "1 files cannot be read; they may be intact and are left as they are" in run.stderr
    assert "Traceback" not in run.stderr
    assert names(store) == ["0", "1", "3"]
    assert closed.is_file()
    assert (store / "damaged" / bad.name).read_bytes() == content
    assert not bad.exists()


def test_too_little_memory_is_no_damage(tmp_path):
    array = np.random.default_rng(0).integers(0, 1000, (130, 500, 500), dtype=np.int16)
    path = write_nifti(tmp_path / "ct.nii", array)
    manifest = write_manifest(tmp_path / "manifest.jsonl", [described(path, "mr")])
    store = prepare(manifest=manifest, out=tmp_path / "store", workers=1, report=False)
    entry = (store.scans[0].file, None)
    assert check_file(entry, store.path).state == "intact"
    limited = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from dae3d.store.integrity import check_file\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]) * 2**20,) * 2)\n"
        "print(check_file((sys.argv[1], None), Path(sys.argv[2])).state)\n"
    )
    for megabytes in (4, 80, 110):
        command = [sys.executable, "-c", limited, entry[0], store.path, str(megabytes)]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.stdout.strip() == "unreadable", (megabytes, run.stderr)


def test_a_store_of_another_version_is_left_as_it_is(store, capsys):
    index = store / "index.jsonl"
    header, *lines = index.read_text().splitlines()
    for change in ({"version": 2}, {"version": 0, "old": 1}, {"preparation": {"version": 3, "new": True}}):
        index.write_text("\n".join([json.dumps(json.loads(header) | change), *lines]) + "\n")
        before = {path: path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}
        for words in ((), ("--repair",), ("--prune",)):
            status, _, err = shown(capsys, store, *words)
            assert (status, "another version of dae3d; prepare it again" in err) == (1, True)
        assert {path: path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()} == before
        with pytest.raises(Dae3dError, match="made by another version of dae3d"):
            Store(store)


def test_files_of_another_version_are_no_damaged_ones(prepared, store, capsys):
    unknown, unsummed = file(store, 0), file(store, 3)
    stored = blosc2.open(str(unknown), mode="a")
    metadata = json.dumps(json.loads(stored.schunk.vlmeta[METADATA]) | {"new": 1})
    stored.schunk.vlmeta[METADATA] = metadata
    stored.schunk.vlmeta[CHECKSUM] = checksum(stored[:], metadata)
    stored = blosc2.open(str(unsummed), mode="a")
    del stored.schunk.vlmeta[CHECKSUM]
    before = written(store)
    status, out, _ = shown(capsys, store, "--repair")
    assert status == 0
    assert out.count("made by another version of dae3d") == 2
    assert written(store) == before
    assert names(store) == ["1", "2"]
    again(prepared, store)
    assert names(store) == ["0", "1", "2", "3"]
    assert {name for name, when in written(store).items() if when != before[name]} == {
        unknown.name,
        unsummed.name,
    }
    assert shown(capsys, store)[0] == 0


def excluding(prepared: Path, store: Path, tmp_path: Path) -> None:
    """Take scan 3 out of the manifest, and hold scan 1 out."""
    scans = [scan.source for scan in Store(store).scans][:3]
    scans[1] = scans[1].model_copy(update={"split": "val"})
    manifest = write_manifest(tmp_path / "fewer.jsonl", scans)
    prepare(manifest=manifest, out=store, workers=1, only=True, report=False)


@pytest.mark.parametrize("line", [0, 3])
def test_a_damaged_byte_of_the_index_undoes_no_exclusion_and_no_split(
    prepared, store, tmp_path, capsys, line
):
    excluding(prepared, store, tmp_path)
    index = store / "index.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"preparation":', b'"preparatiom":')
    index.write_bytes(b"".join(lines))
    with pytest.raises(Dae3dError, match=r"index.jsonl: (damaged|line 4 is damaged)"):
        names(store)
    assert shown(capsys, store)[0] == 1
    assert shown(capsys, store, "--prune")[0] == 1
    assert shown(capsys, store, "--repair")[0] == 0
    assert names(store) == ["0", "1", "2"]
    assert [scan.split for scan in Store(store).scans] == ["train", "val", "train"]
    assert len(written(store)) == 4


def test_prune_deletes_what_the_index_does_not_list(prepared, store, tmp_path, capsys, caplog):
    caplog.set_level("INFO", "dae3d")
    assert shown(capsys, store, "--prune")[0] == 0
    assert len(written(store)) == 4
    gone = file(store, 3)
    excluding(prepared, store, tmp_path)
    assert shown(capsys, store, "--prune")[0] == 0
    assert "deleted 1 files that the index does not list" in caplog.text
    assert not gone.exists()
    assert len(written(store)) == 3
    assert names(store) == ["0", "1", "2"]
    (store / "index.jsonl").unlink()
    status, _, err = shown(capsys, store, "--prune")
    assert (status, "repair it first" in err) == (1, True)
    assert len(written(store)) == 3


def test_prune_and_repair_leave_an_unfinished_array_alone(prepared, store, capsys):
    prepare(manifest=prepared / "manifest.jsonl", out=store, shard="1/2", workers=1, report=False)
    flip_a_bit(file(store, 0))
    before = sorted(path for path in store.rglob("*") if path.is_file())
    for words in ((), ("--repair",), ("--prune",)):
        status, _, err = shown(capsys, store, *words)
        assert status == 1
        assert "waiting for shard 0 of 2" in err
        assert "--repair" not in err
    assert sorted(path for path in store.rglob("*") if path.is_file()) == before


@pytest.mark.usefixtures("in_this_process")
def test_a_check_stands_in_nobodys_way(prepared, store, monkeypatch):
    def while_others_write_and_check(entry, store):
        again(prepared, store)
        with locked(store / ".lock", shared=True):  # as another check does
            pass
        return check_file(entry, store)

    monkeypatch.setattr("dae3d.commands.store_check.check_file", while_others_write_and_check)
    assert main(["store", "check", str(store), "--workers", "1"]) == 0


def test_no_flipped_bit_ends_a_read_with_an_error_of_the_decoder(store):
    """Law, of some bits where Blosc2's own records are: voxels, or an error that names the file."""
    path = file(store, 0)
    content = path.read_bytes()
    opened = Store(store)
    random = np.random.default_rng(0)
    refused = []
    for place in (*range(20, 300, 7), *range(len(content) - 1500, len(content), 31)):
        changed = bytearray(content)
        changed[place] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
        try:
            opened.read_padded(0, (0, 0, 0), (40, 31, 32))
        except Dae3dError as error:
            refused.append(str(error))
    assert len(refused) > 5
    assert all(str(path) in message for message in refused)


def test_a_folder_that_cannot_be_cleared_is_told_of(prepared, store):
    (store / ".dae3d-partial").mkdir()
    (store / ".dae3d-partial" / "half.b2nd").touch()
    (store / ".dae3d-partial").chmod(0)
    command = [sys.executable, "-m", "dae3d.cli", "prepare", prepared / "manifest.jsonl", "--out", store]
    run = subprocess.run(without_privilege([*command, "--no-report"]), capture_output=True, text=True)
    os.chmod(store / ".dae3d-partial", 0o755)
    assert run.returncode == 1
    assert "partial: cannot be written: Permission denied" in run.stderr
    assert "Traceback" not in run.stderr
    assert len(Store(store).scans) == 4
