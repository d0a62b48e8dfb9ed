"""What a long piece of work has finished so far, so that the same command goes on where it was stopped."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dae3d.files import write_text


class Journal:
    """Results by name in a file of JSON lines, appended to as they come; a context that closes the file.

    Its first line is `heading`, what the results depend on; a journal with another one is begun anew. A
    result counts while the files it was made from are as they were: same path, size and time of change.
    """

    def __init__(self, path: Path, heading: Mapping[str, Any]) -> None:
        self.path = path
        self._known = _read(path, json.dumps(heading))
        # Written out anew, for a line that a crash cut short would spoil the next one.
        write_text(path, "".join(json.dumps(line) + "\n" for line in [heading, *self._known.values()]))
        self._file = path.open("a")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def find(self, name: str, files: Iterable[Path]) -> Any:
        """The result of that name, or None where there is none, or its files have changed."""
        entry = self._known.get(name)
        return entry["result"] if entry and entry["files"] == _fingerprint(files) else None

    def add(self, name: str, files: Iterable[Path], result: Any) -> None:
        """Write down a result, which must be plain JSON and not None."""
        self._write({"name": name, "files": _fingerprint(files), "result": result})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _read(path: Path, heading: str) -> dict[str, dict[str, Any]]:
    lines = path.read_text().split("\n") if path.is_file() else []
    if not lines or lines[0] != heading:
        return {}
    # What follows the last line break is nothing, or cut short.
    entries = [json.loads(line) for line in lines[1:-1]]
    return {entry["name"]: entry for entry in entries}


def _fingerprint(files: Iterable[Path]) -> list[list[Any]]:
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
