"""Whether the files of a scan have changed, without reading them."""

import os
from pathlib import Path

from dae3d.store.source import Stamp


def made(path: Path, size: int, time: int) -> Path:
    path.write_bytes(bytes(size))
    os.utime(path, ns=(time, time))
    return path


def test_one_of_several_files_is_replaced_by_an_older_one_of_its_size(tmp_path: Path) -> None:
    header, first, second = (made(tmp_path / name, 100, 5000) for name in ("a.mhd", "1.raw", "2.raw"))
    before = Stamp.of([header, first, second])
    assert Stamp.of([second, header, first]) == before
    made(second, 100, 3000)
    assert Stamp.of([header, first, second]) != before
    made(second, 100, 5000)
    assert Stamp.of([header, first, second]) == before


def test_a_stamp_of_an_earlier_version_holds_for_what_it_says(tmp_path: Path) -> None:
    paths = [made(tmp_path / "a", 100, 5000), made(tmp_path / "b", 50, 3000)]
    earlier = Stamp.model_validate_json('{"bytes": 150, "mtime_ns": 5000}')
    assert Stamp.of(paths) == earlier
    made(paths[1], 51, 3000)
    assert Stamp.of(paths) != earlier
    assert Stamp.of(paths[:1]) == Stamp(bytes=100, mtime_ns=5000)
