"""Labelled cases for fine-tuning: write them into a store, and read crops from it."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm import tqdm

from dae3d.cores import usable_cores
from dae3d.errors import Dae3dError, first_problem
from dae3d.files import write_text
from dae3d.scans.readers import Volume
from dae3d.scans.task import TaskCase
from dae3d.store.boxes import Triple, padded, read_box
from dae3d.store.case_files import (
    CASE_INDEX,
    CASES,
    LABEL,
    POSITIONS,
    CaseOutcome,
    StoredCase,
    store_case,
    unchanged,
)
from dae3d.store.intensity import normalise
from dae3d.store.recipe import CaseRecipe
from dae3d.store.workers import work_through
from dae3d.store.writer import only_writer

_log = logging.getLogger(__name__)


class _IndexHeader(BaseModel):
    """The first line of the index; one line per case follows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    recipe: CaseRecipe
    cases: int


class CaseStore:
    """Prepared cases, read in boxes of voxels; it can be pickled, and used in forked processes.

    `cases` are in the order given to `prepare_cases`. `recipe` is the one they were prepared for; its
    `intensity` and `roi` are not binding.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the cases last prepared in folder `path`.

        Raises:
            Dae3dError: if there are none, or the index is damaged.
        """
        self.path = Path(path)
        try:
            first, *lines = (self.path / CASE_INDEX).read_text().splitlines()
            header = _IndexHeader.model_validate_json(first)
            self.recipe = header.recipe
            self.cases: Sequence[StoredCase] = tuple(map(StoredCase.model_validate_json, lines))
            if len(self.cases) != header.cases:
                raise ValueError(f"{len(self.cases)} cases, expected {header.cases}")
        except (FileNotFoundError, NotADirectoryError):
            raise Dae3dError(f"{self.path}: no prepared cases here; `dae3d finetune` prepares them") from None
        except (ValidationError, ValueError) as error:
            reason = first_problem(error)
            raise Dae3dError(
                f"{self.path / CASE_INDEX}: damaged ({reason}); run `dae3d finetune` again"
            ) from None
        self._numbers = {case.name: number for number, case in enumerate(self.cases)}

    def number(self, name: str) -> int:
        """The position of a case in `cases`.

        Raises:
            KeyError: if no case has that name.
        """
        return self._numbers[name]

    def image(
        self, number: int, start: Triple, size: Triple, intensity: Mapping[str, str] | None = None
    ) -> np.ndarray:
        """The box of `size` voxels from voxel `start` (may be negative), scaled for the network.

        `intensity` has scaling rules by modality, which override the defaults.

        Returns:
            (C, *size) float32; 0 outside the case, as if padded after scaling.

        Raises:
            Dae3dError: if a stored file is missing or damaged.
        """
        case = self.cases[number]
        image = np.empty((len(case.channels), *size), np.float32)
        for channel in range(len(image)):
            image[channel] = self._channel(case, channel, start, size, intensity)
        return image

    def label(self, number: int, start: Triple, size: Triple) -> np.ndarray:
        """The class indices in the box of `size` voxels from voxel `start`: uint8, 0 outside the case."""
        case = self.cases[number]
        read = partial(read_box, self.path / CASES / case.folder / LABEL, case.label_bytes, "finetune")
        return padded(read, case.shape, start, size, np.uint8)

    def positions(self, number: int) -> list[np.ndarray]:
        """For each class, positions (n, 3) int32 of up to 10,000 of its voxels, sampled when it was prepared.

        An array is empty only if the case has no voxel of the class. Background is sampled inside the
        foreground box.
        """
        case = self.cases[number]
        path = self.path / CASES / case.folder / POSITIONS
        try:
            drawn = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise Dae3dError(f"{path}: {error}; run `dae3d finetune` again") from error
        return np.split(drawn, np.cumsum(case.drawn)[:-1])

    def _channel(
        self, case: StoredCase, number: int, start: Triple, size: Triple, rules: Mapping[str, str] | None
    ) -> np.ndarray:
        channel = case.channels[number]
        path = self.path / CASES / case.folder / f"{number}.b2nd"

        def scaled(first: Triple, last: Triple) -> np.ndarray:
            voxels = read_box(path, channel.bytes, "finetune", first, last)
            if (channel.slope, channel.intercept) != (1.0, 0.0):
                voxels = Volume(voxels, np.eye(4), channel.slope, channel.intercept).intensities()
            return normalise(voxels, self.recipe.modalities[number], channel.statistics, rules)

        return padded(scaled, case.shape, start, size, np.float32)


def prepare_cases(
    cases: Sequence[TaskCase], recipe: CaseRecipe, folder: Path, workers: int | None = None
) -> CaseStore:
    """Write labelled cases into a store, in parallel, skipping those it has already.

    Runs that share a store wait for each other, and each gets its own cases. `workers` is the number of
    processes, each with one case in memory (default: one per processor core).

    Raises:
        Dae3dError: if the store cannot be written to; or, once the others are done, with all cases that
            cannot be used, and why.
    """
    with only_writer(folder, CASES, wait=True):
        stored: dict[str, StoredCase] = {}
        unusable: dict[str, str] = {}
        for outcome in _outcomes(cases, recipe, folder, workers or usable_cores()):
            if outcome.stored is None:
                unusable[outcome.case.name] = outcome.reason
            else:
                stored[outcome.case.name] = outcome.stored
        unusable |= _shared_contents(list(stored.values()))
        if unusable:
            raise Dae3dError(_explain(cases, unusable))
        ordered = [stored[case.name] for case in cases]
        header = _IndexHeader(recipe=recipe, cases=len(ordered))
        lines = [model.model_dump_json() for model in (header, *ordered)]
        write_text(folder / CASE_INDEX, "\n".join(lines) + "\n")
        _warn_of_cut_labels(ordered)
        return CaseStore(folder)


def _outcomes(
    cases: Sequence[TaskCase], recipe: CaseRecipe, folder: Path, workers: int
) -> Iterator[CaseOutcome]:
    todo = []
    for case in cases:
        stored = unchanged(case, recipe, folder)
        if stored is None:
            todo.append(case)
        else:
            yield CaseOutcome(case, stored)
    if not todo:
        return
    run = partial(store_case, recipe=recipe, store=folder)
    workers = min(workers, len(todo))
    resampling = recipe.spacing is not None
    work = work_through(todo, run, _died, workers, resampling)
    done = len(cases) - len(todo)
    with (
        tqdm(total=len(cases), initial=done, desc="prepare cases", unit="case") as progress,
        closing(work) as outcomes,
    ):
        for outcome in outcomes:
            yield outcome
            progress.update()


def _died(case: TaskCase, reason: str) -> CaseOutcome:
    return CaseOutcome(case, reason=reason)


def _shared_contents(cases: Sequence[StoredCase]) -> dict[str, str]:
    """Cases with a file identical to one of another subject: one of the two must be wrong."""
    first: dict[str, StoredCase] = {}
    wrong = {}
    for case in cases:
        empty_label = not any(case.voxels[1:])
        for source in case.sources[:-1] if empty_label else case.sources:
            other = first.setdefault(source.digest, case)
            if other.subject != case.subject:
                wrong[case.name] = (
                    f"{source.path}: is the same as a file of {other.name}, another subject; one of them is "
                    "wrong (or, if both are of one subject, give both entries the same `subject`)"
                )
    return wrong


def _explain(cases: Sequence[TaskCase], unusable: Mapping[str, str]) -> str:
    lines = [f"  {case.name}: {unusable[case.name]}" for case in cases if case.name in unusable]
    head = f"{len(lines)} of {len(cases)} cases cannot be used (fix them, or remove them from the list):"
    return "\n".join([head, *lines])


def _warn_of_cut_labels(cases: Sequence[StoredCase]) -> None:
    cut = [case for case in cases if case.cut_away]
    if cut:
        some = ", ".join(f"{case.name} ({case.cut_away} voxels)" for case in cut[:5])
        _log.warning(
            "crop_foreground removes labelled voxels in %d cases: %s%s; turn it off if they matter",
            len(cut),
            some,
            " and others" if len(cut) > 5 else "",
        )
