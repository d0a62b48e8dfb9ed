"""What a long piece of work has finished so far, so that the same command goes on where it was stopped."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dae3d.errors import Dae3dError
from dae3d.files import make_folder, writing
from dae3d.locks import lock

_SHORT = 40  # characters of a value in a message


class Journal:
    """Results by name in a file of JSON lines, appended to as they come; a context that closes the file.

    Its first line is `heading`, what the results depend on. A result counts while the files it was made from
    are as they were: same path, size and time of change. One process at a time has the file.

    Args:
        path: of the file, which is made with the first result.
        heading: plain JSON.
        again: where the file has another heading, begin it again instead of refusing it.

    Raises:
        Dae3dError: where the file is of another heading or no journal, another process has it, or it cannot
            be written.
    """

    def __init__(self, path: Path, heading: Mapping[str, Any], again: bool = False) -> None:
        self.path = path
        self._heading = json.loads(json.dumps(heading))
        make_folder(path.parent)
        with writing(path):
            self._file = path.open("a+b")
        try:
            if not lock(self._file, path):
                raise Dae3dError(f"{path}: another dae3d is writing to it; wait, or name another --out")
            with writing(path):
                self._known = self._read(again)
        except BaseException:
            self._file.close()
            raise

    def _read(self, again: bool) -> dict[str, int]:
        """Where the line of each result begins; the last one of a name counts."""
        places: dict[str, int] = {}
        self._file.seek(0)
        self._refuse_other(self._file.readline())
        self._file.seek(0)
        end, heading = 0, None
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            entry = _parsed(line)
            if heading is None:
                heading = entry
            elif _is_result(entry):
                places[entry["name"]] = end
            end += len(line)
        if heading is not None and heading != self._heading:
            if not again:
                raise Dae3dError(
                    f"{self.path}: of other weights or settings ({_differences(heading, self._heading)}); "
                    "name another --out"
                )
            heading, places, end = None, {}, 0
        # A crash may have cut the last line short, and the next would go on from it.
        self._file.truncate(end)
        self._is_new = heading is None
        return places

    def _refuse_other(self, first: bytes) -> None:
        """A journal begins with a heading that has our first field; a crash may have left a part of it."""
        own = json.dumps(self._heading).encode()
        if first.endswith(b"\n"):
            ours = next(iter(self._heading), None) in _parsed(first)
        else:
            ours = own.startswith(first)
        if not ours:
            raise Dae3dError(
                f"{self.path}: is there, and does not begin as dae3d would have it; move it away, or name "
                "another --out"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_new:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def find(self, name: str, files: Iterable[Path]) -> Any:
        """The result of that name, or None where there is none, or its files have changed."""
        entry = self._entry(name)
        return entry["result"] if entry and entry["files"] == _fingerprint(files) else None

    def made_from(self, name: str) -> list[Path]:
        """The files that the result of that name was made from, whether changed since or not."""
        entry = self._entry(name)
        return [Path(path) for path, _, _ in entry["files"]] if entry else []

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self._known:
            return {}
        self._file.seek(self._known[name])
        return _parsed(self._file.readline())

    def add(self, name: str, files: Iterable[Path], result: Any) -> None:
        """Write down a result, which must be plain JSON and not None."""
        with writing(self.path):
            if self._is_new:
                self._write(self._heading)
                self._is_new = False
            self._write({"name": name, "files": _fingerprint(files), "result": result})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()


def sources_in(path: Path) -> dict[str, list[Path]]:
    """The files that each result in a journal was made from, by its name; nothing without a journal."""
    try:
        with path.open("rb") as file:
            entries = [entry for entry in map(_parsed, file) if _is_result(entry)]
    except OSError:
        return {}
    return {entry["name"]: [Path(source) for source, *_ in entry["files"]] for entry in entries}


def _parsed(line: bytes) -> dict[str, Any]:
    """The content of a line; nothing where it is not a JSON object, as after a crash of the machine."""
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _is_result(entry: Mapping[str, Any]) -> bool:
    """Whether a line has all that `add` writes; bytes that went bad may leave it JSON."""
    files = entry.get("files")
    return (
        isinstance(entry.get("name"), str)
        and "result" in entry
        and isinstance(files, list)
        and all(isinstance(file, list) and len(file) == 3 and isinstance(file[0], str) for file in files)
    )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs, with both values where they are short."""
    found = []
    for field in {**here, **there}:
        if there.get(field) != here.get(field):
            values = [json.dumps(heading.get(field)) for heading in (there, here)]
            shown = max(map(len, values)) <= _SHORT
            found.append(f"{field}: {values[0]} there, {values[1]} here" if shown else field)
    return "; ".join(found) or "what it says first"


def _fingerprint(files: Iterable[Path]) -> list[list[Any]]:
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
