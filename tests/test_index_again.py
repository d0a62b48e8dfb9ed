"""The command `index` run again: what is not read twice; and the parts that keep its memory small."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from dae3d.scans import header_cache
from dae3d.scans.ahead import in_threads
from dae3d.scans.header_cache import HeaderCache
from dae3d.scans.manifest import Manifest
from dae3d.scans.readers import Header, read_header
from dae3d.scans.spool import Spool
from indexed import modalities, reasons, run, write_scan


class Reads:
    """The reader of headers, keeping the names of the files read; it can fail at some call."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.interrupt_at: int | None = None
        self._lock = threading.Lock()

    def __call__(self, path: Path, volume: int | None = None) -> Header:
        with self._lock:
            self.names.append(path.name)
            if len(self.names) == self.interrupt_at:
                raise KeyboardInterrupt
        return read_header(path, volume)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    made = Reads()
    monkeypatch.setattr(header_cache, "read_header", made)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a_ct", "b_ct", "c_t1", "d_t1"):
        write_scan(tmp_path / "data" / f"{name}.nii.gz")
    write_scan(tmp_path / "data" / "four.nii.gz", (16, 16, 16, 2))
    write_scan(tmp_path / "data" / "two.nii.gz", (16, 16))
    return tmp_path / "data"


RULES = ["*_ct.nii.gz=ct", "*_t1.nii.gz=t1"]


def content(manifest: Manifest) -> tuple[list, list]:
    return list(manifest.scans), list(manifest.left_out)


def test_with_other_rules_no_header_is_read_again(folder: Path, reads: Reads) -> None:
    first = run(folder, rule=RULES)
    assert len(set(reads.names)) == 6
    before = content(first)
    reads.names.clear()
    assert content(run(folder, rule=RULES)) == before
    assert set(modalities(run(folder, modality="mr")).values()) == {"mr"}
    assert reads.names == []


def test_a_changed_file_is_read_again(folder: Path, reads: Reads) -> None:
    run(folder, rule=RULES)
    reads.names.clear()
    write_scan(folder / "b_ct.nii.gz", (16, 17, 20))
    write_scan(folder / "e_ct.nii.gz")
    shapes = {scan.path.name: scan.shape for scan in run(folder, rule=RULES).scans}
    assert sorted(reads.names) == ["b_ct.nii.gz", "e_ct.nii.gz"]
    assert shapes["b_ct.nii.gz"] == (16, 17, 20)
    assert shapes["a_ct.nii.gz"] == (16, 17, 18)


def test_a_header_is_read_again_when_a_file_that_it_names_has_changed(folder: Path, reads: Reads) -> None:
    sitk.WriteImage(sitk.Image([16, 17, 18], sitk.sitkInt16), str(folder / "f_ct.mhd"))
    rules = [*RULES, "f_ct.mhd=ct"]
    run(folder, rule=rules)
    reads.names.clear()
    with (folder / "f_ct.raw").open("r+b") as file:
        file.write(b"other")
    run(folder, rule=rules)
    assert reads.names == ["f_ct.mhd"]
    (folder / "f_ct.raw").unlink()
    assert reasons(run(folder, rule=rules))["f_ct.mhd"] == "unreadable: its data file f_ct.raw is missing"


def test_a_file_that_could_not_be_read_is_tried_again(folder: Path, reads: Reads) -> None:
    (folder / "bad.nii.gz").write_bytes(b"no gzip")
    assert reasons(run(folder, rule=RULES))["bad.nii.gz"].startswith("unreadable")
    reads.names.clear()
    run(folder, rule=RULES)
    assert set(reads.names) == {"bad.nii.gz"}


def test_an_interrupted_index_goes_on(folder: Path, reads: Reads) -> None:
    reads.interrupt_at = 4
    with pytest.raises(KeyboardInterrupt):
        run(folder, rule=RULES, workers=1)
    assert not (folder.parent / "manifest.json").exists()
    done = reads.names[:3]
    reads.names.clear()
    reads.interrupt_at = None
    manifest = run(folder, rule=RULES)
    assert len(manifest.scans) == 4
    assert not set(reads.names) & set(done)


def test_headers_of_damaged_lines_are_read_again(folder: Path, reads: Reads) -> None:
    before = content(run(folder, rule=RULES))
    cache = folder.parent / ".manifest.json.headers"
    lines = cache.read_bytes().splitlines(keepends=True)
    cache.write_bytes(b"\n" + lines[0] + lines[1][:40] + b"\n" + b"".join(lines[2:])[:-5])
    for count in (2, 0):
        reads.names.clear()
        assert content(run(folder, rule=RULES)) == before
        assert len(set(reads.names)) == count


def test_no_name_is_in_the_cache(folder: Path) -> None:
    run(folder, rule=RULES)
    text = (folder.parent / ".manifest.json.headers").read_text()
    assert "shape" in text
    assert not any(name in text for name in ("a_ct", "four", "data"))


def test_threads_share_a_cache(folder: Path, reads: Reads) -> None:
    paths = sorted(folder.iterdir())
    for _ in range(2):
        with HeaderCache(folder.parent / "cache") as cache:
            found = dict(in_threads(cache.facts, paths * 5, 4))
        assert found[folder / "four.nii.gz"].volumes == 2
        assert found[folder / "a_ct.nii.gz"].voxels.shape == (16, 17, 18)
        reads.names.clear()
    assert reads.names == []


def test_no_more_is_asked_for_than_threads_can_use() -> None:
    asked = 0

    def endless() -> Iterator[int]:
        nonlocal asked
        while True:
            asked += 1
            yield asked

    results = in_threads(lambda number: number**2, endless(), 3)
    taken = [next(results) for _ in range(500)]
    results.close()
    assert taken == [(number, number**2) for number in range(1, 501)]
    assert asked < 500 + 3 * 20


@given(st.lists(st.text() | st.integers()))
def test_a_spool_gives_back_what_it_got(tmp_path_factory: pytest.TempPathFactory, items: list) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool: Spool[str | int] = Spool(folder)
    places = [spool.add(item) for item in items]
    assert [spool.at(place) for place in places] == items
    assert list(spool) == list(spool) == items
    assert list(spool.items()) == list(zip(places, items, strict=True))
    assert len(spool) == len(items)
    assert list(folder.iterdir()) == []
