"""A record of finished results, so that a command that was stopped continues when it is run again."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dae3d.errors import Dae3dError
from dae3d.files import writing
from dae3d.lines import KeyedLines
from dae3d.locks import lock

_SHORT = 40  # characters of a value in a message


class Journal(KeyedLines):
    """Results by name, appended to a file of JSON lines as they are computed.

    The first line is the `heading`: what the results depend on. A result is valid as long as its source files
    have the same path, size and modification time. Only one process at a time can open the file.

    Args:
        path: the file; it is created with the first result.
        heading: plain JSON.
        again: if the file has another heading, start over instead of refusing it.

    Raises:
        Dae3dError: if the file has another heading or is not a journal, another process has it open, or it
            cannot be written.
    """

    def __init__(self, path: Path, heading: Mapping[str, Any], again: bool = False) -> None:
        super().__init__(path)
        self._heading = json.loads(json.dumps(heading))
        try:
            if not lock(self._file, path):
                raise Dae3dError(
                    f"{path}: another dae3d process is writing to it; wait, or name another --out"
                )
            with writing(path):
                self._is_new = not self._continues(again)
                if self._is_new:
                    self._file.truncate(0)
            self.read_places()
        except BaseException:
            self._file.close()
            raise

    def _continues(self, again: bool) -> bool:
        """Whether the file begins with the heading; raises as the class if it may not be written."""
        self._file.seek(0)
        first = self._file.readline()
        if first.endswith(b"\n"):
            heading = _parsed(first)
            is_journal = next(iter(self._heading), None) in heading
        else:  # new, or cut short by a crash
            heading = None
            is_journal = json.dumps(self._heading).encode().startswith(first)
        if not is_journal:
            raise Dae3dError(
                f"{self.path}: exists and is not a file that dae3d would continue here; move it away, or "
                "name another --out"
            )
        if heading not in (None, self._heading) and not again:
            raise Dae3dError(
                f"{self.path}: made with other weights or settings ({_differences(heading, self._heading)}); "
                "name another --out"
            )
        return heading == self._heading

    def close(self) -> None:
        """Close the file, and delete it if it has no results."""
        if self._is_new:
            self.path.unlink(missing_ok=True)
        super().close()

    def key_of(self, line: bytes) -> str | None:
        """The name of the result in a line."""
        entry = _parsed(line)
        return entry["name"] if _is_result(entry) else None

    def find(self, name: str, files: Iterable[Path]) -> Any:
        """The result of that name; None if there is none, or its files have changed."""
        entry = self._entry(name)
        return entry["result"] if entry and entry["files"] == _fingerprint(files) else None

    def made_from(self, name: str) -> list[Path]:
        """The source files of the result of that name, whether they have changed since or not."""
        entry = self._entry(name)
        return [Path(path) for path, _, _ in entry["files"]] if entry else []

    def _entry(self, name: str) -> dict[str, Any]:
        return _parsed(self.line_of(name) or b"")

    def add(self, name: str, files: Iterable[Path], result: Any) -> None:
        """Append a result, which must be plain JSON and not None."""
        if self._is_new:
            self.append(json.dumps(self._heading).encode())
            self._is_new = False
        with writing(self.path):
            entry = {"name": name, "files": _fingerprint(files), "result": result}
        self.append(json.dumps(entry).encode())


def sources_in(path: Path) -> dict[str, list[Path]]:
    """The source files of each result in a journal, by its name; empty without a journal."""
    try:
        with path.open("rb") as file:
            entries = [entry for entry in map(_parsed, file) if _is_result(entry)]
    except OSError:
        return {}
    return {entry["name"]: [Path(source) for source, *_ in entry["files"]] for entry in entries}


def _parsed(line: bytes) -> dict[str, Any]:
    """The content of a line; empty if it is not a JSON object, as after a crash of the machine."""
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _is_result(entry: Mapping[str, Any]) -> bool:
    """Whether a line has all that `add` writes; a line with flipped bytes may still be JSON."""
    files = entry.get("files")
    return (
        isinstance(entry.get("name"), str)
        and "result" in entry
        and isinstance(files, list)
        and all(isinstance(file, list) and len(file) == 3 and isinstance(file[0], str) for file in files)
    )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The fields that differ, with both values if they are short."""
    found = []
    for field in {**here, **there}:
        if there.get(field) != here.get(field):
            values = [json.dumps(heading.get(field)) for heading in (there, here)]
            shown = max(map(len, values)) <= _SHORT
            found.append(f"{field}: {values[0]} there, {values[1]} here" if shown else field)
    return "; ".join(found) or "the first line"


def _fingerprint(files: Iterable[Path]) -> list[list[Any]]:
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
