"""Labelled cases for fine-tuning, in the format of the Medical Segmentation Decathlon.

    {"name": "MS lesions",
     "modality": {"0": "T1w", "1": "FLAIR"},
     "labels": {"0": "background", "1": "lesion"},
     "training": [{"image": ["a_t1.nii.gz", "a_flair.nii.gz"], "label": "a_seg.nii.gz", "fold": 0}, ...],
     "validation": [{"image": [...], "label": "b_seg.nii.gz", "subject": "b"}],
     "test": [{"image": ["c_t1.nii.gz", "c_flair.nii.gz"]}, ...]}

Names are relative to the list. `labels` maps values to names, or names to values as in nnU-Net, or lists the
names of the values 0, 1, ...; the value 0 is the background, named or not. The images of an entry are its
channels. A value named "ignore", as in nnU-Net, marks voxels of unknown class, which are left out of losses
and metrics. An entry of `training` may have a `weight`: how often crops are drawn from it, relative to the
others (default: 1). Entries of `test` may be just an image's name, and need no label. `val` and `testing`,
among others, are read as `validation` and `test`, and nnU-Net's `dataset.json` as a list of the cases in its
folders.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dae3d.errors import Dae3dError
from dae3d.scans.given import Image, contradictions, listed
from dae3d.scans.grouping import group
from dae3d.scans.lists import home_elsewhere, load_list
from dae3d.scans.readers import scan_stem, suffix
from dae3d.scans.sources import absolute, readable_suffixes
from dae3d.scans.splits import Member, split_subjects
from dae3d.scans.subjects import subject_by_bids, subject_in_path
from dae3d.scans.task_channels import channels
from dae3d.scans.task_labels import IGNORE, parse_task_labels
from dae3d.scans.task_list import SPLITS, TaskEntry, TaskList, TaskSplit

# Share of the subjects held out if a list has no validation cases.
_HELD_OUT = 0.2


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskCase:
    """One case: a file for each channel, and the file of its label if it has one.

    `name` is unique within its task, and names its prediction's file. `weight` is how often training crops
    are drawn from it, relative to other cases.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    subject: str
    fold: int | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Task:
    """The classes and cases of a segmentation task; `labels` maps values in label files to names, ascending.

    `modalities` has one label per channel. `ignore` is the value of voxels of unknown class, if there is one.
    """

    path: Path
    name: str
    labels: dict[int, str]
    modalities: tuple[str, ...]
    training: tuple[TaskCase, ...]
    validation: tuple[TaskCase, ...]
    test: tuple[TaskCase, ...]
    ignore: int | None = None

    def split(self, name: TaskSplit, fold: int | None = None, labelled: bool = True) -> tuple[TaskCase, ...]:
        """The cases to train on, to validate on (see `sides`), or to test on.

        Their files exist; label files are checked only if `labelled`.

        Raises:
            Dae3dError: as `sides`; if there are no cases; or if a file is missing, with its name and entry.
        """
        cases = self.test if name == "test" else self.sides(fold)[name == "validation"]
        if not cases:
            there = ", ".join(f"{split} ({len(getattr(self, split))})" for split in SPLITS)
            raise Dae3dError(f"{self.path}: no cases under `{name}`; there are: {there}")
        self._refuse_missing(cases, labelled)
        return cases

    def _refuse_missing(self, cases: Sequence[TaskCase], labelled: bool) -> None:
        missing = [
            (case, file)
            for case in cases
            for file in (*case.images, case.label if labelled else None)
            if file is not None and not file.is_file()
        ]
        if missing:
            case, file = missing[0]
            more = f" (and {len(missing) - 1} more missing)" if len(missing) > 1 else ""
            raise Dae3dError(f"{self.path}: {self._entry(case)}: {file}: no such file{more}")

    def _entry(self, case: TaskCase) -> str:
        """The place of a case in the list: "training[3]"."""
        split = next(split for split in SPLITS if case in getattr(self, split))
        return f"{split}[{getattr(self, split).index(case)}]"

    def sides(self, fold: int | None = None) -> tuple[tuple[TaskCase, ...], tuple[TaskCase, ...]]:
        """The cases to train on, and those to validate on.

        By fold, if one is given; else as in the list; if it has nothing under `validation`, about a fifth of
        the subjects is held out, always the same ones. Files are not checked.

        Raises:
            Dae3dError: if the list has folds and none is given, or there is only one subject.
        """
        if fold is not None:
            return self.fold(fold)
        if self.validation:
            return self.training, self.validation
        folds = sorted({case.fold for case in self.training if case.fold is not None})
        if folds:
            raise Dae3dError(
                f"fold: {self.path} has folds; name the one to hold out: {', '.join(map(str, folds))}"
            )
        held_out = split_subjects([Member(case.subject, "", None) for case in self.training], _HELD_OUT, 0)
        train = tuple(case for case in self.training if held_out[case.subject] == "train")
        rest = tuple(case for case in self.training if held_out[case.subject] == "val")
        if not train or not rest:
            raise Dae3dError(
                f"{self.path}: needs training cases of at least two subjects, one of them to validate on"
            )
        return train, rest

    def fold(self, number: int) -> tuple[tuple[TaskCase, ...], tuple[TaskCase, ...]]:
        """The cases to train on and those held out: fold `number` of `training`, and all of `validation`.

        Raises:
            Dae3dError: if there is no such fold, or it leaves nothing to train on.
        """
        folds = sorted({case.fold for case in self.training if case.fold is not None})
        if number not in folds:
            there = f"there are: {', '.join(map(str, folds))}" if folds else "entries have no `fold`"
            raise Dae3dError(f"{self.path}: no entry of `training` has fold {number}; {there}")
        train = tuple(case for case in self.training if case.fold != number)
        if not train:
            raise Dae3dError(f"{self.path}: every entry of `training` has fold {number}: nothing to train on")
        held_out = tuple(case for case in self.training if case.fold == number)
        return train, held_out + self.validation


def read_task(path: Path, modality: Sequence[str] | None = None, order: Sequence[str] | None = None) -> Task:
    """Read a task's list.

    Files are not checked before `Task.split`: prediction needs none of the training files.

    Args:
        path: the list.
        modality: a label for each channel, which overrides the list's own.
        order: labels of the channels that the weights take. Images are put into that order if the list, or
            `modality`, gives the modality of each; else they are assumed to be in it.

    Raises:
        Dae3dError: if it is not such a list, a file is not a scan by its suffix or named twice, an entry that
            needs a label has none, classes or modalities are missing, or a channel is from another kind of
            scanner than the one in its place in `order`; names the list, the entry and the file.
    """
    path = absolute(path)
    content = load_list(path, TaskList)
    if not any(content.entries()):
        raise Dae3dError(
            f"{path}: not a task: none of {', '.join(f'`{split}`' for split in SPLITS)} has entries"
        )
    try:
        labels, ignore = parse_task_labels(content.labels)
    except ValueError as error:
        raise Dae3dError(f"{path}: `labels` {error}") from None
    modalities, places = channels(path, content, modality, order)
    _check_entries(path, content)
    cases = _cases(path, content, places)
    task = Task(
        path=path,
        name=content.name if isinstance(content.name, str) and content.name else path.stem,
        labels=labels,
        modalities=modalities,
        training=cases["training"],
        validation=cases["validation"],
        test=cases["test"],
        ignore=ignore,
    )
    _warn_of_shared_subjects(task)
    return task


def listed_cases(path: Path, order: Sequence[str] | None = None) -> tuple[TaskCase, ...]:
    """All cases of a list that may have no labels, with their images in the `order` of channels.

    Raises:
        Dae3dError: as `read_task`, but for labels and classes.
    """
    path = absolute(path)
    content = load_list(path, TaskList)
    _, places = channels(path, content, None, order)
    return tuple(case for cases in _cases(path, content, places).values() for case in cases)


def task_content(
    task: Task,
    training: Sequence[TaskCase],
    validation: Sequence[TaskCase],
    test: Sequence[TaskCase] = (),
    ignore: int | None = None,
) -> dict[str, Any]:
    """The content of a list of these cases of a task, for JSON; those to test on have no label.

    Args:
        task: gives name, classes and channels.
        training, validation, test: the cases.
        ignore: value of voxels of unknown class; None: that of the task.
    """
    ignore = task.ignore if ignore is None else ignore
    ignored = {} if ignore is None else {str(ignore): IGNORE}
    return {
        "name": task.name,
        "modality": {str(number): label for number, label in enumerate(task.modalities)},
        "labels": {**{str(value): name for value, name in task.labels.items()}, **ignored},
        "training": [_listed(case) for case in training],
        "validation": [_listed(case) for case in validation],
        "test": [{name: value for name, value in _listed(case).items() if name != "label"} for case in test],
    }


def _listed(case: TaskCase) -> dict[str, Any]:
    images = [str(path) for path in case.images]
    return {
        "image": images[0] if len(images) == 1 else images,
        "label": str(case.label),
        "subject": case.subject,
        **({} if case.weight == 1 else {"weight": case.weight}),
    }


def say_contradictions(task: Task, cases: Sequence[TaskCase]) -> None:
    """Warn about images whose names contradict the modality in the list."""
    said = [
        sentence
        for case in cases
        for _, sentence, _ in contradictions(map(Image.of, case.images), task.modalities)
    ]
    if said:
        _log.warning("%s: %s", task.path, listed(said))


def _check_entries(path: Path, content: TaskList) -> None:
    """Refuse entries without a label, files that cannot be read, and images in two entries."""
    owners: dict[Path, str] = {}
    for split, number, entry in content.entries():
        where = f"{split}[{number}]"
        if split != "test" and entry.label is None:
            raise Dae3dError(f"{path}: {where} ({entry.case}): has no `label`; cases without are for `test`")
        for name in [*entry.images, *filter(None, [entry.label])]:
            if not suffix(Path(name)):
                raise Dae3dError(
                    f"{path}: {where}: {name}: is not a scan by its suffix ({readable_suffixes()})"
                )
        for name in entry.images:
            owner = owners.setdefault(absolute(path.parent / name), where)
            if owner != where:
                raise Dae3dError(f"{path}: {where}: {name} is an image of {owner} as well")


def _cases(path: Path, content: TaskList, places: Sequence[int]) -> dict[TaskSplit, tuple[TaskCase, ...]]:
    """All cases, each with the images of its entry at `places`."""
    entries = list(content.entries())
    images = [tuple(absolute(path.parent / name) for name in entry.images) for _, _, entry in entries]
    files = [absolute(path.parent / entry.case) for _, _, entry in entries]
    names = case_names(files)
    subjects = _subjects(path, entries, files)
    cases: dict[TaskSplit, list[TaskCase]] = {split: [] for split in SPLITS}
    for (split, _, entry), paths, name, subject in zip(entries, images, names, subjects, strict=True):
        cases[split].append(
            TaskCase(
                name=name,
                images=tuple(paths[place] for place in places),
                label=None if entry.label is None else absolute(path.parent / entry.label),
                subject=subject,
                fold=entry.fold,
                weight=entry.weight,
            )
        )
    return {split: tuple(found) for split, found in cases.items()}


def _subjects(
    path: Path, entries: Sequence[tuple[TaskSplit, int, TaskEntry]], files: Sequence[Path]
) -> list[str]:
    """The subject of each entry: its own, or the one in its first image's name, judged by all names."""
    roots = {path.parent, home_elsewhere(path.parent, files)}
    told = [
        subject_by_bids(file, roots) if entry.subject is None else str(entry.subject)
        for (_, _, entry), file in zip(entries, files, strict=True)
    ]
    named = [
        None if subject else subject_in_path(file, roots) for subject, file in zip(told, files, strict=True)
    ]
    grouping = group({name: ("",) for name in named if name})
    for other, one in list(grouping.subject_of.items())[:1]:
        several = len(set(grouping.subject_of.values()))
        _log.info(
            "%s: similar names are taken as one subject, %d times: %s and %s; "
            "if they are not, add `subject` to the entries",
            path,
            several,
            one,
            other,
        )
    for doubt in grouping.doubts:
        _log.warning("%s: %s; if they are not, add `subject` to the entries", path, doubt)
    return [
        subject or grouping.subject_of.get(str(name), str(name))
        for subject, name in zip(told, named, strict=True)
    ]


def case_names(files: Sequence[Path]) -> list[str]:
    """A name for each file: its stem, preceded by as many folders as make all names unique."""
    names: list[str] = []
    for depth in range(1, max(len(file.parts) for file in files) + 1):
        names = ["_".join([*file.parts[-depth:-1], scan_stem(file)]).strip(os.sep) for file in files]
        if len(set(names)) == len(names):
            return names
    repeated = Counter(names).most_common(1)[0][0]
    raise Dae3dError(f"files whose names differ only in suffix or underscores: {repeated}")


def _warn_of_shared_subjects(task: Task) -> None:
    trained = {case.subject for case in task.training}
    shared = sorted({case.subject for case in task.validation} & trained)
    folds = Counter(subject for subject, _ in {(case.subject, case.fold) for case in task.training})
    for where, subjects in (
        ("both in `training` and in `validation`", shared),
        ("in several folds", sorted(subject for subject, count in folds.items() if count > 1)),
    ):
        if subjects:
            _log.warning(
                "%s: subjects %s, so results will be too good: %s%s",
                task.path,
                where,
                ", ".join(subjects[:3]),
                f" and {len(subjects) - 3} others" if len(subjects) > 3 else "",
            )
