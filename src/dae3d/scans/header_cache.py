"""A cache of headers, so that an index that is interrupted or repeated does not read them again."""

import hashlib
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dae3d.errors import ScanError
from dae3d.lines import KeyedLines
from dae3d.scans.dicom.header import has_preamble
from dae3d.scans.readers import ITK_SUFFIXES, Header, files_read, read_header, suffix, volume_count

_KEY = 32  # hexadecimal digits at the start of a line
_VERSION = 3  # raise it when headers are interpreted differently, or fields change


class VoxelInfo(BaseModel):
    """The part of a `readers.Header` that a manifest keeps; the fields are the same."""

    model_config = ConfigDict(frozen=True)

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    dtype: str
    orientation: str

    @classmethod
    def of(cls, header: Header) -> "VoxelInfo":
        """That part of a header."""
        return cls(
            shape=header.shape, spacing=header.spacing, dtype=header.dtype, orientation=header.orientation
        )


class FileFacts(BaseModel):
    """The voxels of a file's volume or `volumes`, and the reason if the file as it is is not a scan.

    A 4-D file has both `voxels` and a reason, a `dicom` file (by its content) has neither. `remark` is that
    of `readers.Header`.
    """

    model_config = ConfigDict(frozen=True)

    voxels: VoxelInfo | None = None
    volumes: int = 1
    reason: str | None = None
    remark: str = ""
    dicom: bool = False


class HeaderCache(KeyedLines):
    """Facts by file, kept in a file of lines; a context that closes it. Threads may share it.

    A line is valid as long as its file, and those that are read with it, have the same path, sizes and times
    of change. File names are stored only as digests. If another process appends at the same time, lines can
    be damaged; those headers are read again.

    Raises:
        Dae3dError: if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.read_places()

    def key_of(self, line: bytes) -> bytes:
        """The digest at the start of a line."""
        return line[:_KEY]

    def facts(self, path: Path) -> FileFacts:
        """The facts of the file at `path`, from the cache or from its header.

        Raises:
            OSError: if there is no such file.
        """
        key = _key(path)
        with suppress(ValueError):
            return FileFacts.model_validate_json((self.line_of(key) or b"")[_KEY:])
        facts = read_facts(path)
        # An unreadable file may be readable the next time without having changed.
        if facts.voxels is not None or not (facts.reason or "").startswith("unreadable"):
            self.append(key + facts.model_dump_json(exclude_defaults=True).encode())
        return facts


def read_facts(path: Path) -> FileFacts:
    """The facts of a file by its header; a file that cannot be a scan has a reason and no voxels."""
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
    text = f"{_VERSION} {times} {path}"
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=_KEY // 2).hexdigest().encode()
