"""Pairs of reference label and prediction: check that the files match, and score them."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dae3d.errors import Dae3dError, ScanError, as_scan_error
from dae3d.evaluation.segmentation_metrics import METRICS, Scores, compare
from dae3d.journal import Journal, sources_in
from dae3d.scans.grids import Grid, grid_difference
from dae3d.scans.readers import read_header, read_volume
from dae3d.scans.task import TaskCase
from dae3d.scans.task_labels import IGNORED
from dae3d.store.conform_case import class_indices
from dae3d.store.recipe import CaseRecipe

CaseScores = dict[str, Scores]

# Next to predictions: a journal of the input files of each prediction.
RECORD = "predictions.jsonl"

_log = logging.getLogger(__name__)

_SHOWN = 20  # problems listed in a message


@dataclass(frozen=True)
class Pair:
    """The reference label and the prediction of a case; `images` are its channels."""

    name: str
    images: tuple[Path, ...]
    reference: Path
    prediction: Path

    @property
    def compared(self) -> list[Path]:
        """The files that the scores depend on."""
        return [self.prediction, self.reference]


def pair(cases: Sequence[TaskCase], predictions: Path) -> list[Pair]:
    """Find the prediction of every case: `<name>.nii.gz` in the folder.

    Warns if, by the record in the folder, predictions were made from other images than those of the cases.

    Raises:
        Dae3dError: listing all cases without a label or a prediction, with a prediction that is the label
            itself, or with image, label and prediction on different grids.
    """
    problems = []
    pairs = []
    sources = sources_in(predictions / RECORD)
    others = [case for case in cases if _from_other_images(case, sources.get(case.name))]
    if others:
        _log.warning(
            "%d of %d predictions were made from other images than those in the list, such as that of %s "
            "from %s",
            *(len(others), len(cases), others[0].name, sources[others[0].name][0]),
        )
    for case in cases:
        prediction = predictions / f"{case.name}.nii.gz"
        if case.label is None:
            problems.append(f"{case.name}: has no label to compare with")
        elif not prediction.is_file():
            problems.append(f"{case.name}: no prediction {prediction}")
        elif prediction.samefile(case.label):
            problems.append(f"{case.name}: prediction {prediction} is the label itself")
        else:
            found = Pair(case.name, case.images, case.label, prediction)
            pairs.append(found)
            problems += _misfits(found)
    refuse(problems)
    return pairs


def _from_other_images(case: TaskCase, made_from: Sequence[Path] | None) -> bool:
    """Whether a prediction was made from other images; only names are compared if files were moved."""
    if not made_from:
        return False
    if all(path.exists() for path in made_from):
        return {path.resolve() for path in made_from} != {path.resolve() for path in case.images}
    return {path.name for path in made_from} != {path.name for path in case.images}


def refuse(problems: Sequence[str]) -> None:
    """Raise a Dae3dError that lists the problems, if there are any."""
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise Dae3dError("these cases cannot be evaluated:\n  " + "\n  ".join([*problems[:_SHOWN], *more]))


def _misfits(pair: Pair) -> Iterator[str]:
    try:
        label = _grid(pair.reference)
        if _is_sheared(label):
            _log.warning(
                "%s: the axes of label %s are sheared; distances and volumes are computed as if they were "
                "orthogonal",
                pair.name,
                pair.reference,
            )
        for kind, path in (("prediction", pair.prediction), *(("image", image) for image in pair.images)):
            difference = grid_difference(_grid(path), label)
            if difference:
                yield (
                    f"{pair.name}: {kind} {path} is not on the grid of label {pair.reference}: {difference}"
                )
    except ScanError as error:
        yield f"{pair.name}: {error}"


def _is_sheared(grid: Grid) -> bool:
    """Whether axes deviate from right angles by more than half a degree, as with a tilted gantry."""
    axes = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > np.sin(np.radians(0.5)))


def _grid(path: Path) -> Grid:
    try:
        header = read_header(path)
    except ScanError as error:
        raise ScanError(f"{path}: {error}") from None
    return Grid(header.shape, header.affine)


def read_classes(path: Path, recipe: CaseRecipe) -> tuple[np.ndarray, Grid]:
    """Read a label file as (X, Y, Z) uint8 class indices, 0 for the background, with its grid.

    Voxels to ignore are `IGNORED`.

    Raises:
        ScanError: naming the file, if it cannot be read or contains a value of no class.
    """
    try:
        volume = read_volume(path)
        indices = class_indices(volume, recipe)
    except ScanError as error:
        raise ScanError(f"{path}: {error}") from None
    x, y, z = indices.shape
    return indices, Grid((x, y, z), volume.affine)


def read_pair(pair: Pair, recipe: CaseRecipe) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Prediction and reference as (X, Y, Z) uint8 class indices, with their grid.

    Voxels that the reference ignores are background in both.

    Raises:
        ScanError: as `read_classes`.
    """
    prediction, _ = read_classes(pair.prediction, recipe.model_copy(update={"ignore": None}))
    reference, grid = read_classes(pair.reference, recipe)
    if recipe.ignore is not None:
        ignored = reference == IGNORED
        prediction[ignored] = reference[ignored] = 0
    return prediction, reference, grid


def score(
    pairs: Sequence[Pair],
    recipe: CaseRecipe,
    classes: Mapping[str, Sequence[int]],
    tolerance: float,
    journal: Journal,
    workers: int,
) -> dict[str, CaseScores]:
    """Score all pairs in parallel threads; most of the work releases the GIL.

    Args:
        pairs: labels and predictions.
        recipe: of the labels.
        classes: class indices by name.
        tolerance: of the normalised surface distance, mm.
        journal: earlier results, which are reused.
        workers: threads, each with two label maps in memory.

    Returns:
        Scores by case, in the order of `pairs`.

    Raises:
        Dae3dError: after all other pairs have been scored, listing the pairs that cannot be, and why.
    """

    def run(pair: Pair) -> CaseScores:
        with as_scan_error():
            prediction, reference, grid = read_pair(pair, recipe)
            return compare(prediction, reference, grid.spacing, classes, tolerance)

    measured = {p.name: journal.find(p.name, p.compared) for p in pairs}
    found = {name: _recorded(result) for name, result in measured.items() if result is not None}
    known = {name: scores for name, scores in found.items() if scores is not None}
    problems = []
    todo = [p for p in pairs if p.name not in known]
    with tqdm(total=len(pairs), initial=len(known), desc="evaluate", unit="case") as progress:
        for case, future in _in_threads(run, todo, workers):
            try:
                known[case.name] = future.result()
                journal.add(case.name, case.compared, known[case.name])
            except ScanError as error:
                problems.append(f"{case.name}: {error}")
            progress.update()
    refuse(problems)
    return {p.name: known[p.name] for p in pairs}


def _recorded(result: Mapping[str, Any]) -> CaseScores | None:
    """Scores from a journal, by name or in the order of `METRICS`; None if the metrics differ."""
    scores = {
        label: dict(zip(METRICS, values, strict=False)) if isinstance(values, list) else values
        for label, values in result.items()
    }
    return scores if all(values.keys() == METRICS.keys() for values in scores.values()) else None


def _in_threads(
    run: Callable[[Pair], CaseScores], pairs: Sequence[Pair], workers: int
) -> Iterator[tuple[Pair, Future[CaseScores]]]:
    """Yield pairs as they finish; when the caller stops, running ones finish and no others start."""
    executor = ThreadPoolExecutor(workers)
    try:
        futures = {executor.submit(run, pair): pair for pair in pairs}
        for future in as_completed(futures):
            yield futures[future], future
    finally:
        executor.shutdown(cancel_futures=True)
