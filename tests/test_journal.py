"""Journals: what is in them is found again, and never lost to a crash, other settings or another process."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from dae3d.errors import Dae3dError
from dae3d.files import make_folder, whole_file, write_text
from dae3d.journal import Journal, sources_in
from dae3d.locks import lock

HEADING = {"weights": "abc", "overlap": 0.5}


# A result whose bytes went bad, and which is JSON all the same.
LINES = [
    b'{"name": "c", "filgs": [], "result": 3}\n',
    b'{"name": "c", "files": [["x", 1]], "result": 3}\n',
    b'{"name": "c", "files": {}, "result": 3}\n',
    b'{"name": "c", "files": [], "resumt": 3}\n',
    b'{"name": ["c"], "files": [], "result": 3}\n',
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with the results `a` and `b`."""
    with Journal(tmp_path / "j.jsonl", HEADING) as journal:
        journal.add("a", [], 1)
        journal.add("b", [], 2)
    return tmp_path / "j.jsonl"


def found(path: Path) -> list[int | None]:
    with Journal(path, HEADING) as journal:
        return [journal.find(name, []) for name in "abc"]


def test_a_line_cut_short_is_dropped_and_the_next_one_is_whole(path: Path) -> None:
    with path.open("a") as file:
        file.write('{"name": "c", "fi')
    with Journal(path, HEADING) as journal:
        assert journal.find("c", []) is None
        journal.add("c", [], 3)
    assert found(path) == [1, 2, 3]


@pytest.mark.parametrize("line", [b"\0\0\0\n", b"[1, 2]\n", b"\xff\xfe\n", b"\n", *LINES])
def test_damaged_lines_are_ignored(path: Path, line: bytes) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], line, *lines[2:]]))
    assert found(path) == [1, 2, None]


def test_opening_changes_nothing(path: Path) -> None:
    before = path.read_bytes()
    found(path)
    with pytest.raises(Dae3dError, match=r"overlap: 0\.5 there, 0\.75 here"):
        Journal(path, HEADING | {"overlap": 0.75})
    with pytest.raises(Dae3dError, match=r"settings \(weights\)"):
        Journal(path, HEADING | {"weights": "d" * 64})
    assert path.read_bytes() == before


def test_a_journal_of_nothing_is_not_left(tmp_path: Path) -> None:
    with Journal(tmp_path / "new" / "j.jsonl", HEADING):
        pass
    assert not list((tmp_path / "new").iterdir())


def test_a_field_that_one_heading_lacks_is_named(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl", {"a": 1, "volume": 2}) as journal:
        journal.add("x", [], 1)
    with pytest.raises(
        Dae3dError, match=r"made with other weights or settings \(volume: 2 there, null here\)"
    ):
        Journal(tmp_path / "j.jsonl", {"a": 1})


def test_sources_of_results(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl", {"a": 1}) as journal:
        for name in ("x.txt", "y.txt"):
            (tmp_path / name).touch()
        journal.add("x", [tmp_path / "y.txt"], 1)
        journal.add("x", [tmp_path / "x.txt", tmp_path / "y.txt"], 1)
    with (tmp_path / "j.jsonl").open("a") as file:
        file.write('{"name": "cut sho')
    assert sources_in(tmp_path / "j.jsonl") == {"x": [tmp_path / "x.txt", tmp_path / "y.txt"]}
    assert sources_in(tmp_path / "none.jsonl") == {}


def test_start_over(path: Path) -> None:
    with Journal(path, HEADING | {"overlap": 0.75}, again=True) as journal:
        assert journal.find("a", []) is None
        journal.add("a", [], 4)
    with Journal(path, HEADING | {"overlap": 0.75}) as journal:
        assert journal.find("a", []) == 4


def test_files_of_a_result_are_known_after_they_changed(tmp_path: Path) -> None:
    scan = tmp_path / "scan"
    scan.write_text("first")
    with Journal(tmp_path / "j.jsonl", HEADING) as journal:
        journal.add("a", [scan], 1)
    scan.write_text("changed")
    with Journal(tmp_path / "j.jsonl", HEADING) as journal:
        assert journal.find("a", [scan]) is None
        assert journal.made_from("a") == [scan]
        assert journal.made_from("b") == []


def test_two_processes_do_not_share_one(path: Path) -> None:
    script = "import pathlib, sys; from dae3d.journal import Journal; Journal(pathlib.Path(sys.argv[1]), {})"
    with Journal(path, HEADING):
        second = subprocess.run(
            [sys.executable, "-c", script, path], capture_output=True, text=True, check=False
        )
    assert "another dae3d process is writing to it" in second.stderr
    assert found(path) == [1, 2, None]


def test_a_disk_without_locks_is_said_once(path: Path, caplog, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        assert found(path) == [1, 2, None]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path.parent}: the file system does not support locking (No locks available); "
        "do not start another run that writes to it"
    ]


def test_a_lock_is_shared_or_not(tmp_path: Path) -> None:
    with (tmp_path / "l").open("a+b") as one, (tmp_path / "l").open("a+b") as two:
        assert lock(one, tmp_path / "l", shared=True)
        assert lock(two, tmp_path / "l", shared=True)
        assert not lock(two, tmp_path / "l")
    with (tmp_path / "l").open("a+b") as three:
        assert lock(three, tmp_path / "l", wait=True)


# Files


@pytest.mark.parametrize("name", ["file/x.txt", "file/deep/x.txt", "folder"])
def test_what_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    with pytest.raises(Dae3dError, match=f"{tmp_path / name.removesuffix('/x.txt')}: cannot be"):
        write_text(tmp_path / name, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_full_disk_is_said_and_the_old_file_stays(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "old")
    with pytest.raises(Dae3dError, match="x: cannot be written: No space left"), whole_file(tmp_path / "x"):
        raise OSError(28, "No space left on device")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "old")]


def test_a_folder_may_be_there(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "file").touch()
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "file").is_file()
