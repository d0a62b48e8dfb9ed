"""Files under a folder that are not scans by their names and contents, counted by kind."""

import re
from collections.abc import Iterator
from pathlib import Path

from dae3d.scans.manifest import LeftOut
from dae3d.scans.readers import SUFFIXES

NO_SCAN = "not a scan"
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lzma", ".z")
_SCANS = (*SUFFIXES, ".img", ".dcm", ".ima", ".dicom")
_IMAGES = (".img", ".img.gz", ".img.bz2")
_ENDING = re.compile(r"\.[A-Za-z]\w{0,7}$")
_KINDS = 100  # of endings that are counted separately


class OtherFiles:
    """Counts of files that are left out because they are not scans, by reason, with the first of each."""

    def __init__(self) -> None:
        self._kinds: dict[str, LeftOut] = {}

    def add(self, path: Path) -> None:
        """Count a file."""
        reason = reason_by_name(path)
        if reason not in self._kinds and len(self._kinds) >= _KINDS:
            reason = NO_SCAN
        first = self._kinds.get(reason, LeftOut(path=path, reason=reason, files=0))
        self._kinds[reason] = first.model_copy(update={"files": first.files + 1})

    def __iter__(self) -> Iterator[LeftOut]:
        """An entry for each kind, in the order of their first files."""
        return iter(self._kinds.values())


def reason_by_name(path: Path) -> str:
    """Why a file is left out, by its name; files of one kind have the same reason."""
    name = path.name.lower()
    archive = next((ending for ending in _ARCHIVES if name.endswith(ending)), None)
    if archive:
        return f"archive that is not read: {archive}"
    packed = next((ending for ending in _COMPRESSED if name.endswith(ending)), "")
    scan = next((ending for ending in _SCANS if name.removesuffix(packed).endswith(ending)), None)
    if name.endswith(_IMAGES):
        return "image without its header: no .hdr beside it"
    if packed and scan:
        return f"compressed in a way that is not read: {scan}{packed}; unpack it"
    ending = _ENDING.search(name)
    return f"{NO_SCAN}: {ending[0] if ending else 'no ending that is known'}"


def is_archive(path: Path) -> bool:
    """Whether a file is an archive by its name; scans in it are not looked for."""
    return path.name.lower().endswith(_ARCHIVES)
