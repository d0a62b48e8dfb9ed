"""Medical Segmentation Decathlon (http://medicaldecathlon.com): `dataset.json` and image folders."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import field_validator

from dae3d.errors import Dae3dError
from dae3d.scans.lists import Entry, ScanList, bare_names, load_list
from dae3d.scans.manifest import LeftOut
from dae3d.scans.modality import label_in_list
from dae3d.scans.readers import scan_stem, suffix
from dae3d.scans.sources import Candidate, absolute, files_in

_IMAGES = ("imagesTr", "imagesTs")
_LABELS = ("labelsTr", "labelsTs")


class Task(ScanList):
    """A task's `dataset.json`."""

    test: Sequence[Entry] = ()

    _bare_test = field_validator("test", mode="before")(bare_names)


def candidates_in_decathlon(root: Path, dataset: str | None) -> Iterator[Candidate | LeftOut]:
    """The images of the task `root`, or of all tasks in `root`, those without labels too.

    Each volume of a 4-D image is a scan of its own, of the same subject.

    Raises:
        Dae3dError: where a `dataset.json` is none of a task.
    """
    for home in _tasks(root):
        task = load_list(home / "dataset.json", Task)
        labels = _channel_labels(home, task)
        name = dataset or home.name
        present: set[Path] = set()
        for file in files_in(home, set()):
            if isinstance(file, LeftOut):
                yield file
            elif suffix(file) and file.parent.name in _IMAGES:
                present.add(file)
                yield from _channels(file, labels, home, root, name)
            elif suffix(file):
                reason = "segmentation" if file.parent.name in _LABELS else f"no image of {home.name}"
                yield LeftOut(path=file, reason=reason)
        listed = [home / image for entry in (*task.training, *task.test) for image in entry.images]
        yield from (
            LeftOut(path=file, reason="missing file") for file in map(absolute, listed) if file not in present
        )


def _tasks(root: Path) -> list[Path]:
    if (root / "dataset.json").is_file():
        return [root]
    return sorted(path.parent for path in root.glob("*/dataset.json"))


def _channel_labels(home: Path, task: Task) -> list[str]:
    if not isinstance(task.modality, dict) or not task.modality:
        raise Dae3dError(f"{home / 'dataset.json'}: names no `modality` of its channels")
    try:
        return [label_in_list(task.modality[number]) for number in sorted(task.modality, key=int)]
    except ValueError as error:
        raise Dae3dError(f"{home / 'dataset.json'}: modality: {error}") from None


def _channels(file: Path, labels: list[str], home: Path, root: Path, dataset: str) -> Iterator[Candidate]:
    for volume, label in enumerate(labels):
        yield Candidate(
            path=file,
            shown=file.relative_to(root).as_posix(),
            root=root,
            dataset=dataset,
            case=file,
            modality=label,
            subject=f"{home.name}/{scan_stem(file)}",
            volume=volume if len(labels) > 1 else None,
            by_name=True,
        )
