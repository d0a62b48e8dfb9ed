"""The command `predict`: segment scans with one fine-tuned network or several, in the scans' own grids."""

import functools
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from tqdm import tqdm

from dae3d.cores import THREADS
from dae3d.errors import Dae3dError, ScanError
from dae3d.evaluation.held_out import write_weights
from dae3d.evaluation.pairs import RECORD
from dae3d.files import inside, make_folder, reserve, unfinished_files, unfinished_name, writing
from dae3d.inference.device import pick_device
from dae3d.inference.ensemble import Ensemble, load_ensemble
from dae3d.inference.given_cases import (
    ScanCase,
    given_cases,
    in_words,
    refuse_other_labels,
    say_strange_values,
)
from dae3d.inference.mirror import mirrored_axes
from dae3d.inference.nifti import write_nifti
from dae3d.inference.original_grid import interpolate_slabs, is_part_of, nearest_classes
from dae3d.inference.sliding import probability_slabs, segment, window_count
from dae3d.journal import Journal, sources_in
from dae3d.scans.channels import ScanText, channel_files
from dae3d.scans.given import SCANS_GIVEN, VOLUME_GIVEN, Image
from dae3d.scans.modality import Label
from dae3d.scans.sides import AXES, AXES_SHOWN, Axis
from dae3d.scans.task import Task, read_task, say_contradictions
from dae3d.scans.task_list import TaskSplit
from dae3d.settings import Positional, Settings, command
from dae3d.store.recipe import CaseRecipe

log = logging.getLogger(__name__)

_LABELS, _PROBABILITIES = ".nii.gz", "_probabilities.nii.gz"


class PredictSettings(Settings):
    """Which networks segment which scans, and how."""

    scans: Annotated[list[ScanText], Positional()] = Field([], description=SCANS_GIVEN)
    weights: list[Path] = Field(
        min_length=1, description="fine-tuned runs (their best weights) or files; several are averaged"
    )
    out: Path = Field(description="folder to write to")
    data: Path | None = Field(None, description="in place of scans: a list of cases, as of `dae3d finetune`")
    split: TaskSplit | None = Field(
        None, description="cases of the list (default: test; with fold, validation)"
    )
    fold: int | None = Field(None, ge=0, description="fold that is held out, as of `dae3d finetune`")
    modality: list[Label] | None = Field(
        None,
        description="label of each channel of the scans, in the order in which they are given, whatever "
        "headers and names say (default: what those, or the list, say; else the weights' order)",
    )
    volume: int | None = Field(None, ge=0, description=VOLUME_GIVEN)
    overlap: float = Field(0.5, ge=0, lt=1, description="share of a window that the next one covers too")
    mirror: bool = Field(
        False,
        description="average over mirror images along the axes that training flipped, but not those that "
        "exchange left and right where names of classes tell them apart; takes up to eight times as long",
    )
    mirror_axes: list[Axis] | None = Field(
        None, min_length=1, description=f"axes to mirror along with --mirror in place of those: {AXES_SHOWN}"
    )
    resample: Literal["probabilities", "labels"] = Field(
        "probabilities",
        description="what is brought back to a scan's own grid: probabilities (linear), or labels (nearest)",
    )
    probabilities: bool = Field(False, description="also write <name>_probabilities.nii.gz, a volume a class")
    window_batch: int = Field(1, ge=1, description="windows that go through a network together")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int | None = Field(None, ge=1, description=THREADS)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if bool(self.scans) == (self.data is not None):
            raise ValueError("scans, data: give scans, or a list of cases with --data, and not both")
        if self.mirror_axes and not self.mirror:
            raise ValueError("mirror_axes: needs --mirror")
        if self.probabilities and self.resample == "labels":
            raise ValueError("probabilities: are interpolated, so resample must be probabilities too")
        return self


@command
def predict(settings: PredictSettings) -> list[Path]:
    """Segment scans, and write `<name>.nii.gz` for each, in the scan's own grid.

    Channels are put into the order of the weights where headers, names, the list or `modality` tell what each
    is, and are taken to be in it where nothing does. What is of another machine by its header or BIDS name is
    refused, and what may be of another modality by its name or values is said.

    A scan is prepared as the weights' own cases were. Where that resampled it, class probabilities are
    interpolated linearly at the scan's own voxels, and the most probable class is taken, or with
    `resample="labels"` the class of the nearest voxel; where it did not, both are the same and nothing is
    interpolated. What was cropped away as empty is background. Voxels have the label values of the task.

    Scans that are finished already, with the same weights and settings, are passed over: `predictions.jsonl`
    in the folder says so. A folder that was begun with others is refused, and so is one with files that were
    made from other scans. `weights.json` has what the weights say of their training, for `evaluate`.

    Returns:
        The label files of all scans, in their order.

    Raises:
        Dae3dError: where the weights, the list's classes, the scans as they are given or the folder cannot be
            used; or, once the others
            are done, with every scan that cannot be, and why.
    """
    device = pick_device(settings.device, settings.threads)
    ensemble = load_ensemble(settings.weights, device)
    cases = _cases(settings, ensemble.recipe)
    if len(ensemble.recipe.modalities) > 1:
        log.info("the weights take %s", in_words(ensemble.recipe.modalities))
    _refuse_overwriting_inputs(cases, settings)
    mirror = mirrored_axes(ensemble, settings.mirror_axes) if settings.mirror else ()
    problems = []
    with Journal(settings.out / RECORD, _heading(ensemble, settings, mirror)) as record:
        _refuse_overwriting_others(cases, record, settings)
        if ensemble.infos:
            write_weights(settings.out, ensemble.infos)
        for part in unfinished_files(
            settings.out, *(name for case in cases for name in _names(case, settings))
        ):
            part.unlink(missing_ok=True)  # a scan's probabilities may be gigabytes
        done = [case for case in cases if _is_done(case, record, settings)]
        if done:
            log.info("%d of %d scans are segmented already", len(done), len(cases))
        pending = [case for case in cases if case not in done]
        for case in tqdm(pending, "predict", unit="scan", disable=not pending):
            record.add(case.name, case.files, [])  # whatever is found of it after a crash is of this scan
            try:
                _predict_case(case, ensemble, settings, mirror, device)
            except ScanError as error:
                problems.append(f"{case.name}: {error}")
            else:
                record.add(case.name, case.files, _names(case, settings))
    if problems:
        counts = (
            f"{len(problems)} of {len(cases)} scans cannot be segmented (the others are in {settings.out})"
        )
        raise Dae3dError(f"{counts}:\n  " + "\n  ".join(problems))
    log.info("segmentations: %s", settings.out)
    return [_files(case, settings)[0] for case in cases]


def _predict_case(
    case: ScanCase,
    ensemble: Ensemble,
    settings: PredictSettings,
    mirror: Sequence[Axis],
    device: torch.device,
) -> None:
    recipe = ensemble.recipe
    conformed = case.read(recipe)
    say_strange_values(case, conformed, recipe)
    image = torch.from_numpy(conformed.normalised(recipe))
    grid, original = conformed.grid, conformed.native
    del conformed  # its voxels are not needed any more
    label_file, *probability_files = _files(case, settings)
    windows = window_count(grid.shape, recipe.roi, settings.overlap)
    with (
        tqdm(total=windows, desc=case.name, unit="window", leave=False) as progress,
        _explained(case, settings),
        _probabilities(probability_files, (len(recipe.labels), *original.shape)) as probabilities,
    ):
        arguments = (
            *(ensemble.networks, image, recipe.roi, settings.overlap, settings.window_batch, device),
            *([AXES.index(axis) for axis in mirror], progress.update),
        )
        if settings.probabilities or (
            settings.resample == "probabilities" and not is_part_of(original, grid)
        ):
            classes = np.zeros(original.shape, np.uint8)
            interpolate_slabs(probability_slabs(*arguments), grid, original, classes, probabilities)
        else:
            classes = nearest_classes(segment(*arguments).numpy(), grid, original)
        for path in probability_files:
            write_nifti(path, np.moveaxis(probabilities, 0, -1), case.files[0], original.affine)
        write_nifti(label_file, _values(recipe.label_values)[classes], case.files[0], original.affine)


@contextmanager
def _probabilities(files: Sequence[Path], shape: tuple[int, ...]) -> Iterator[Any]:
    """An array (K, X, Y, Z) on disk beside the file to be, background everywhere; or None.

    Raises:
        OSError: where there is no room for it.
    """
    if not files:
        yield None
        return
    make_folder(files[0].parent)
    scratch = unfinished_name(files[0])
    try:
        reserve(scratch, math.prod(shape) * np.dtype(np.float32).itemsize)
        # Planes are finished one by one along the last axis most often: that one is outermost, as in NIfTI.
        array = np.memmap(scratch, np.float32, "r+", shape=(shape[0], *shape[:0:-1])).transpose(0, 3, 2, 1)
        array[0] = 1
        yield array
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def _explained(case: ScanCase, settings: PredictSettings) -> Iterator[None]:
    try:
        with writing(settings.out):
            yield
    except torch.OutOfMemoryError:
        raise Dae3dError(
            f"{case.name}: out of GPU memory; take --window-batch 1, fewer networks, or --device cpu"
        ) from None


def _values(labels: Sequence[int]) -> np.ndarray:
    """The label value of each class, in the smallest type that viewers know."""
    kind = next(k for k in (np.uint8, np.int16, np.int32) if max(labels) <= np.iinfo(k).max)
    return np.array(labels, kind)


def _cases(settings: PredictSettings, recipe: CaseRecipe) -> list[ScanCase]:
    if settings.data is None:
        files = [path for scan in settings.scans for path in channel_files(scan)]
        missing = [str(path) for path in files if not path.exists()]
        if missing:
            raise Dae3dError("scans: no such file or folder: " + ", ".join(missing))
        made = functools.cache(_made_in)
        return given_cases(
            settings.scans,
            recipe.modalities,
            settings.modality,
            settings.volume,
            pass_over=lambda path: path.name in made(path.parent),
        )
    refuse_other_labels(settings.modality, recipe.modalities)
    task = read_task(settings.data, settings.modality, order=recipe.modalities)
    _refuse_other_classes(task, recipe)
    split = settings.split or ("test" if settings.fold is None else "validation")
    cases = task.split(split, settings.fold, labelled=False)
    if settings.modality is None:
        say_contradictions(task, cases)
    return [
        ScanCase(case.name, tuple(Image.of(path, settings.volume) for path in case.images), case.label)
        for case in cases
    ]


def _made_in(folder: Path) -> set[str]:
    """The names of the files that were predicted into a folder."""
    made = sources_in(folder / RECORD)
    return {f"{name}{ending}" for name in made for ending in (_LABELS, _PROBABILITIES)}


def _refuse_other_classes(task: Task, recipe: CaseRecipe) -> None:
    """A list's label values must be those of the weights; where names alone are others, a warning will do."""
    if task.labels == recipe.labels:
        return
    own, learned = (
        ", ".join(f"{value} {name}" for value, name in labels.items())
        for labels in (task.labels, recipe.labels)
    )
    if tuple(task.labels) != recipe.label_values:
        raise Dae3dError(f"{task.path}: its `labels` are {own}, but the weights were trained on {learned}")
    log.warning("%s: its classes are called %s, but in the weights %s", task.path, own, learned)


def _names(case: ScanCase, settings: PredictSettings) -> list[str]:
    return [path.name for path in _files(case, settings)]


def _files(case: ScanCase, settings: PredictSettings) -> list[Path]:
    """The file of the labels, and that of the probabilities where they are wanted."""
    endings = [_LABELS, _PROBABILITIES] if settings.probabilities else [_LABELS]
    return [inside(settings.out, f"{case.name}{ending}") for ending in endings]


def _refuse_overwriting_inputs(cases: Sequence[ScanCase], settings: PredictSettings) -> None:
    written = {Path(os.path.realpath(path)) for case in cases for path in _files(case, settings)}
    for case in cases:
        for path in [*case.files, *([case.label] if case.label else [])]:
            if Path(os.path.realpath(path)) in written:
                raise Dae3dError(f"out: a segmentation would overwrite {path}; take another folder")


def _refuse_overwriting_others(cases: Sequence[ScanCase], record: Journal, settings: PredictSettings) -> None:
    """Refuse files that are there and not of these very scans: manual labels, or scans of the same name."""
    for case in cases:
        there = [path for path in _files(case, settings) if os.path.lexists(path)]
        if there and record.made_from(case.name) != case.files:
            raise Dae3dError(
                f"out: {there[0]} is there already, and {record.path.name} does not say that it was made "
                f"from {case.files[0]}; take another folder, or give all scans in one call, which names "
                "them apart"
            )


def _heading(ensemble: Ensemble, settings: PredictSettings, mirror: Sequence[Axis]) -> dict[str, Any]:
    """What segmentations depend on, beside the scans."""
    fields = {"overlap", "mirror", "resample", "probabilities"}
    heading = {"weights": ensemble.digests, **settings.model_dump(mode="json", include=fields)}
    if settings.volume is not None:
        heading["volume"] = settings.volume
    # Mirroring along all axes is what it was when there was no choice.
    return heading if set(mirror) in (set(), set(AXES)) else {**heading, "mirror_axes": list(mirror)}


def _is_done(case: ScanCase, record: Journal, settings: PredictSettings) -> bool:
    found = record.find(case.name, case.files) == _names(case, settings)
    return found and all(path.is_file() for path in _files(case, settings))
