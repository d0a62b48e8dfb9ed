"""What headers say, written down, so that an index interrupted or repeated does not read them again."""

import hashlib
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict

from dae3d.errors import ScanError
from dae3d.files import make_folder, writing
from dae3d.scans.dicom.header import has_preamble
from dae3d.scans.readers import ITK_SUFFIXES, Header, files_read, read_header, suffix, volume_count

_KEY = 32  # hexadecimal digits at the start of a line
_UNDERSTOOD = 3  # grows when headers come to be understood otherwise


class VoxelInfo(BaseModel):
    """What a manifest says of a scan's voxels; the fields are those of `readers.Header`."""

    model_config = ConfigDict(frozen=True)

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    dtype: str
    orientation: str

    @classmethod
    def of(cls, header: Header) -> "VoxelInfo":
        """The part of a header that a manifest keeps."""
        return cls(
            shape=header.shape, spacing=header.spacing, dtype=header.dtype, orientation=header.orientation
        )


class FileFacts(BaseModel):
    """The grid of a file's volume or `volumes`, and why the file as it is makes no scan.

    A 4-D file has both a reason and a grid, one that is `dicom`, whatever its name says, neither. `remark` is
    `readers.Header.remark`.
    """

    model_config = ConfigDict(frozen=True)

    voxels: VoxelInfo | None = None
    volumes: int = 1
    reason: str | None = None
    remark: str = ""
    dicom: bool = False


class HeaderCache:
    """FileFacts by file in a file of lines; a context that closes it. Threads may share it.

    A line counts while its file, and those that are read with it, have the same path, sizes and times of
    change. Names are kept as digests only.
    Another process that appends to the same file at the same time can spoil lines, which are then read again.

    Raises:
        Dae3dError: where the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        with writing(path):
            self._new = path.open("ab")
            self._old = path.open("rb")
        self._lock = threading.Lock()
        self._places: dict[bytes, int] = {}
        place = 0
        for line in self._old:
            self._places[line[:_KEY]] = place
            place += len(line)
        if place and not line.endswith(b"\n"):
            self._new.write(b"\n")  # a crash cut it short

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._old.close()
        self._new.close()

    def facts(self, path: Path) -> FileFacts:
        """What the file at `path` says of itself, by a line of this cache or by its header.

        Raises:
            OSError: where there is no such file.
        """
        key = _key(path)
        known = self._find(key)
        if known is not None:
            return known
        facts = read_facts(path)
        # An unreadable file may be read the next time without having changed.
        if facts.voxels is not None or not (facts.reason or "").startswith("unreadable"):
            self._add(key, facts)
        return facts

    def _find(self, key: bytes) -> FileFacts | None:
        with self._lock:
            place = self._places.get(key)
            if place is None:
                return None
            self._old.seek(place)
            line = self._old.readline()
        try:
            return FileFacts.model_validate_json(line[_KEY:])
        except ValueError:
            return None

    def _add(self, key: bytes, facts: FileFacts) -> None:
        line = key + facts.model_dump_json(exclude_defaults=True).encode() + b"\n"
        with self._lock, writing(Path(self._new.name)):
            self._new.write(line)


def read_facts(path: Path) -> FileFacts:
    """What a file's header says; a file that cannot be a scan has a reason and no grid."""
    # ITK goes by content: it would read a single DICOM file as a scan.
    if suffix(path) in ITK_SUFFIXES and has_preamble(path):
        return FileFacts(dicom=True)
    try:
        header = read_header(path)
        return FileFacts(voxels=VoxelInfo.of(header), remark=header.remark)
    except ScanError as error:
        reason = str(error)
    try:
        volumes = volume_count(path)
        header = read_header(path, 0)
    except ScanError:
        return FileFacts(dicom=True) if has_preamble(path) else FileFacts(reason=reason)
    return FileFacts(voxels=VoxelInfo.of(header), volumes=volumes, reason=reason, remark=header.remark)


def _key(path: Path) -> bytes:
    stats = [file.stat() for file in files_read(path)]
    times = " ".join(f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}" for stat in stats)
    text = f"{_UNDERSTOOD} {times} {path}"
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=_KEY // 2).hexdigest().encode()
