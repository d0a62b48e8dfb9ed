"""Scans that pre-training leaves out, because segmentation is tested on their subjects."""

from collections.abc import Sequence
from pathlib import Path

from dae3d.errors import Dae3dError, ScanError
from dae3d.scans.readers import read_volume
from dae3d.scans.task import TaskCase, read_task
from dae3d.store.fingerprint import voxel_digest
from dae3d.store.index import Outline
from dae3d.store.source import contents_of


def held_out_cases(task: Path) -> tuple[TaskCase, ...]:
    """The cases of a list that segmentation is tested on: validation and test, or all if it has folds.

    Raises:
        Dae3dError: as `read_task` and `Task.sides`.
    """
    found = read_task(task)
    folds = any(case.fold is not None for case in found.training)
    tested = (*found.training, *found.validation) if folds else found.sides()[1]
    return (*tested, *found.test)


def scans_of_cases(outlines: Sequence[Outline], cases: Sequence[TaskCase]) -> list[int]:
    """Numbers of the scans of these cases: the same file, the same voxels, or another scan of such a subject.

    Args:
        outlines: of the scans in a store.
        cases: whose images are read.

    Raises:
        Dae3dError: if an image cannot be read.
    """
    digests = {digest for case in cases for digest in digests_of(case)}
    same = [
        outline for outline in outlines if digests & {outline.source.digest or "", outline.voxel_digest or ""}
    ]
    subjects = {_subject(outline) for outline in same}
    return [number for number, outline in enumerate(outlines) if _subject(outline) in subjects]


def digests_of(case: TaskCase) -> list[str]:
    """Of the files of a case's images, and of their voxels, as in a store and in weights.

    Raises:
        Dae3dError: if an image cannot be read.
    """
    try:
        files = contents_of(case.images)
        return files + [voxel_digest(read_volume(image)) for image in case.images if image.is_file()]
    except OSError as error:
        raise Dae3dError(f"{case.name}: {error.filename}: unreadable: {error.strerror}") from None
    except ScanError as error:
        raise Dae3dError(f"{case.name}: {error}") from None


def _subject(outline: Outline) -> tuple[str, str]:
    """Without a name of its own, a scan is its own subject."""
    source = outline.source
    return source.dataset, source.subject or source.path
