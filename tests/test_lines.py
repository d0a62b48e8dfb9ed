import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from dae3d.errors import Dae3dError
from dae3d.files import inside
from dae3d.lines import Lines, Parsed


class Entry(BaseModel):
    number: int


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b" "))), cut=st.binary())
def test_lines_are_those_of_the_text(tmp_path: Path, content: list[bytes], cut: bytes):
    file = tmp_path / "lines"
    # What follows the last line end is not a line: it was cut short.
    file.write_bytes(b"".join(line + b"\n" for line in content) + cut.replace(b"\n", b" "))
    lines = Lines(file)
    assert [lines[i] for i in range(len(lines))] == content


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/a", "../a"])
def test_a_name_that_leads_out_of_a_folder_is_refused(tmp_path: Path, name: str):
    with pytest.raises(Dae3dError, match="cannot be used as a file name"):
        inside(tmp_path, name)


def test_other_names_stay(tmp_path: Path):
    for name in ("a..b", ".a", "..a", "a b", "a\\b"):
        assert inside(tmp_path, name) == tmp_path / name


def test_another_process_reads_the_same_or_is_told(tmp_path: Path):
    file = tmp_path / "lines"
    file.write_text("".join(f'{{"number":{i}}}\n' for i in range(5)))
    entries = Parsed(Lines(file), Entry, 1, 3, file, "make it again")
    sent = pickle.dumps(entries)
    assert [entry.number for entry in pickle.loads(sent)] == [1, 2, 3]
    replaced = tmp_path / "new"
    replaced.write_text("".join(f'{{"number":{i}}}\n' for i in range(50)))
    replaced.replace(file)
    assert [entry.number for entry in entries] == [1, 2, 3]
    with pytest.raises(Dae3dError, match="changed while it was in use"):
        pickle.loads(sent)


def test_a_bad_line_is_named(tmp_path: Path):
    file = tmp_path / "lines"
    file.write_text('{"number":0}\n{"number":"x"}\n')
    with pytest.raises(Dae3dError, match=r"lines: line 2 is damaged .*; make it again"):
        Parsed(Lines(file), Entry, 0, 2, file, "make it again")[1]
