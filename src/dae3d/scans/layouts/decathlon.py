"""Medical Segmentation Decathlon (http://medicaldecathlon.com): `dataset.json` and image folders.

Also raw data sets of nnU-Net, which have a file for each channel (see `scans.nnunet`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import field_validator

from dae3d.errors import Dae3dError
from dae3d.scans.lists import Entry, ScanList, bare_names, load_list
from dae3d.scans.manifest import LeftOut
from dae3d.scans.modality import label_in_list
from dae3d.scans.nnunet import channel_of
from dae3d.scans.readers import scan_stem, suffix
from dae3d.scans.sources import Candidate, absolute, files_in

_IMAGES = ("imagesTr", "imagesTs")
_LABELS = ("labelsTr", "labelsTs")


class DecathlonTask(ScanList):
    """A task's `dataset.json`."""

    test: Sequence[Entry] = ()

    _bare_test = field_validator("test", mode="before")(bare_names)


def candidates_in_decathlon(root: Path, dataset: str | None) -> Iterator[Candidate | LeftOut]:
    """The images of the task `root`, or of all tasks in `root`, including those without labels.

    Each volume of a 4-D image is a separate scan of the same subject; so is each channel's file.

    Raises:
        Dae3dError: if a `dataset.json` is not that of a task.
    """
    for home in _tasks(root):
        task = load_list(home / "dataset.json", DecathlonTask)
        labels = _channel_labels(home, task)
        name = dataset or home.name
        entries = [*task.training, *task.test]
        by_file = any(entry.case_file for entry in entries)
        present: set[Path] = set()
        for file in files_in(home, set()):
            if isinstance(file, LeftOut):
                yield file
            elif suffix(file) and file.parent.name in _IMAGES:
                present.add(file)
                yield from _scans(file, labels, home, root, name, by_file)
            elif suffix(file):
                reason = "segmentation" if file.parent.name in _LABELS else f"not an image of {home.name}"
                yield LeftOut(path=file, reason=reason)
        listed = [home / image for entry in entries for image in entry.images]
        yield from (
            LeftOut(path=file, reason="missing file") for file in map(absolute, listed) if file not in present
        )


def _tasks(root: Path) -> list[Path]:
    if (root / "dataset.json").is_file():
        return [root]
    return sorted(path.parent for path in root.glob("*/dataset.json"))


def _channel_labels(home: Path, task: DecathlonTask) -> list[str]:
    if not isinstance(task.modality, dict) or not task.modality:
        raise Dae3dError(f"{home / 'dataset.json'}: has no `modality` for its channels")
    try:
        return [label_in_list(task.modality[number]) for number in sorted(task.modality, key=int)]
    except ValueError as error:
        raise Dae3dError(f"{home / 'dataset.json'}: modality: {error}") from None


def _scans(
    file: Path, labels: list[str], home: Path, root: Path, dataset: str, by_file: bool
) -> Iterator[Candidate | LeftOut]:
    """The channels in a file, or, if `by_file`, the one of its number."""
    case, channels = scan_stem(file), list(enumerate(labels))
    single = by_file or len(labels) == 1
    if by_file:
        case, number = channel_of(file) or (case, None)
        channels = channels[number : number + 1] if number is not None else []
        if not channels:
            yield LeftOut(
                path=file, reason=f"not a channel of {home.name}: numbers are 0000 to {len(labels) - 1:04d}"
            )
    for number, label in channels:
        yield Candidate(
            path=file,
            shown=file.relative_to(root).as_posix(),
            root=root,
            dataset=dataset,
            case=file,
            modality=label,
            subject=f"{home.name}/{case}",
            volume=None if single else number,
            volumes=None if single else len(labels),
            by_name=True,
        )
