"""The command `predict`: segment scans with one or several fine-tuned networks, in the scans' own grids."""

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
    refuse_other_classes,
    refuse_other_labels,
    say_strange_values,
)
from dae3d.inference.mirror import mirrored_axes
from dae3d.inference.nifti import label_values, write_nifti
from dae3d.inference.original_grid import interpolate_slabs, is_part_of, nearest_classes
from dae3d.inference.sliding import probability_slabs, segment, window_count
from dae3d.journal import Journal, sources_in
from dae3d.models.hub import WeightsSource
from dae3d.scans.channels import ScanText, channel_files
from dae3d.scans.given import SCANS_GIVEN, VOLUME_GIVEN, Image
from dae3d.scans.modality import Label
from dae3d.scans.sides import AXES, AXES_SHOWN, Axis
from dae3d.scans.task import read_task, say_contradictions
from dae3d.scans.task_list import TaskSplit
from dae3d.settings import Positional, Settings, command
from dae3d.store.recipe import CaseRecipe

log = logging.getLogger(__name__)

_LABELS, _PROBABILITIES = ".nii.gz", "_probabilities.nii.gz"


class PredictSettings(Settings):
    """Settings of `predict`."""

    scans: Annotated[list[ScanText], Positional()] = Field([], description=SCANS_GIVEN)
    weights: list[WeightsSource] = Field(
        min_length=1,
        description="fine-tuned runs (their best weights), weight files or hf://ORG/NAME[/FILE]; several are "
        "averaged",
    )
    out: Path = Field(description="output folder")
    data: Path | None = Field(None, description="instead of scans: a list of cases, as for `dae3d finetune`")
    split: TaskSplit | None = Field(
        None, description="which cases of the list (default: test; with --fold: validation)"
    )
    fold: int | None = Field(None, ge=0, description="fold that is held out, as in `dae3d finetune`")
    modality: list[Label] | None = Field(
        None,
        description="label of each channel of the scans, in the order given; overrides headers and names "
        "(default: from headers, names or the list; else the order of the weights)",
    )
    volume: int | None = Field(None, ge=0, description=VOLUME_GIVEN)
    overlap: float = Field(0.5, ge=0, lt=1, description="overlap of neighbouring windows")
    mirror: bool = Field(
        False,
        description="average over mirror images along the axes that training flipped, except left-right if "
        "class names distinguish the sides; takes up to eight times as long",
    )
    mirror_axes: list[Axis] | None = Field(
        None, min_length=1, description=f"with --mirror: mirror along these axes instead: {AXES_SHOWN}"
    )
    resample: Literal["probabilities", "labels"] = Field(
        "probabilities",
        description="what is resampled to the scan's own grid: probabilities (linear) or labels (nearest)",
    )
    probabilities: bool = Field(
        False, description="also write <name>_probabilities.nii.gz, with one volume per class"
    )
    window_batch: int = Field(1, ge=1, description="windows per batch")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int | None = Field(None, ge=1, description=THREADS)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if bool(self.scans) == (self.data is not None):
            raise ValueError("scans, data: give either scans or a list of cases with --data")
        if self.mirror_axes and not self.mirror:
            raise ValueError("mirror_axes: requires --mirror")
        if self.probabilities and self.resample == "labels":
            raise ValueError("probabilities: requires resample=probabilities")
        return self


@command
def predict(settings: PredictSettings) -> list[Path]:
    """Segment scans, and write `<name>.nii.gz` for each, in the scan's own grid.

    Channels are put into the order of the weights if headers, names, the list or `modality` identify them;
    otherwise they must be in that order. Scans of another machine by header or BIDS name are refused. A scan
    that may be of another modality by its name or values gives a warning.

    Scans are preprocessed as in training. If that resampled a scan, class probabilities are interpolated
    linearly at its own voxels and the most probable class is taken, or with `resample="labels"` the class of
    the nearest voxel. If not, both are the same, and nothing is interpolated. Cropped regions are background.
    Voxels have the label values of the task.

    Scans already finished with the same weights and settings, by `predictions.jsonl` in the output folder,
    are skipped. A folder started with other weights or settings, or with files made from other scans, is
    refused. `weights.json` has the training records of the weights, for `evaluate`.

    Returns:
        The label files of all scans, in their order.

    Raises:
        Dae3dError: if the weights, the classes of the list, the scans or the folder cannot be used; or, once
            the others are done, with all scans that cannot be segmented, and why.
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
            part.unlink(missing_ok=True)  # may be gigabytes of probabilities
        done = [case for case in cases if _is_done(case, record, settings)]
        if done:
            log.info("%d of %d scans are segmented already", len(done), len(cases))
        pending = [case for case in cases if case not in done]
        for case in tqdm(pending, "predict", unit="scan", disable=not pending):
            record.add(case.name, case.files, [])  # so that files found after a crash belong to this scan
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
    grid, original = conformed.grid, conformed.original
    del conformed  # frees memory
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
        write_nifti(label_file, label_values(recipe)[classes], case.files[0], original.affine)


@contextmanager
def _probabilities(files: Sequence[Path], shape: tuple[int, ...]) -> Iterator[Any]:
    """An array (K, X, Y, Z) on disk beside the output file, initially all background; or None.

    Raises:
        OSError: if there is not enough disk space.
    """
    if not files:
        yield None
        return
    make_folder(files[0].parent)
    scratch = unfinished_name(files[0])
    try:
        reserve(scratch, math.prod(shape) * np.dtype(np.float32).itemsize)
        # Planes are usually finished along the last axis, so that one is outermost, as in NIfTI.
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
            f"{case.name}: out of GPU memory; use --window-batch 1, fewer networks, or --device cpu"
        ) from None


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
    refuse_other_classes(task, recipe)
    split = settings.split or ("test" if settings.fold is None else "validation")
    cases = task.split(split, settings.fold, labelled=False)
    if settings.modality is None:
        say_contradictions(task, cases)
    return [
        ScanCase(case.name, tuple(Image.of(path, settings.volume) for path in case.images), case.label)
        for case in cases
    ]


def _made_in(folder: Path) -> set[str]:
    """The names of the files that `predict` wrote into a folder."""
    made = sources_in(folder / RECORD)
    return {f"{name}{ending}" for name in made for ending in (_LABELS, _PROBABILITIES)}


def _names(case: ScanCase, settings: PredictSettings) -> list[str]:
    return [path.name for path in _files(case, settings)]


def _files(case: ScanCase, settings: PredictSettings) -> list[Path]:
    """The output files: labels and, with `probabilities`, those."""
    endings = [_LABELS, _PROBABILITIES] if settings.probabilities else [_LABELS]
    return [inside(settings.out, f"{case.name}{ending}") for ending in endings]


def _refuse_overwriting_inputs(cases: Sequence[ScanCase], settings: PredictSettings) -> None:
    written = {Path(os.path.realpath(path)) for case in cases for path in _files(case, settings)}
    for case in cases:
        for path in [*case.files, *([case.label] if case.label else [])]:
            if Path(os.path.realpath(path)) in written:
                raise Dae3dError(f"out: a segmentation would overwrite {path}; choose another folder")


def _refuse_overwriting_others(cases: Sequence[ScanCase], record: Journal, settings: PredictSettings) -> None:
    """Refuse to overwrite files not made from these scans: manual labels, or other scans of the same name."""
    for case in cases:
        there = [path for path in _files(case, settings) if os.path.lexists(path)]
        if there and record.made_from(case.name) != case.files:
            raise Dae3dError(
                f"out: {there[0]} exists, and by {record.path.name} it was not made from {case.files[0]}; "
                "choose another folder, or give all scans in one call, which gives them different names"
            )


def _heading(ensemble: Ensemble, settings: PredictSettings, mirror: Sequence[Axis]) -> dict[str, Any]:
    """Everything that segmentations depend on, except the scans."""
    fields = {"overlap", "mirror", "resample", "probabilities"}
    heading = {"weights": ensemble.digests, **settings.model_dump(mode="json", include=fields)}
    if settings.volume is not None:
        heading["volume"] = settings.volume
    # Not recorded for all axes, as in folders of versions without the setting.
    return heading if set(mirror) in (set(), set(AXES)) else {**heading, "mirror_axes": list(mirror)}


def _is_done(case: ScanCase, record: Journal, settings: PredictSettings) -> bool:
    found = record.find(case.name, case.files) == _names(case, settings)
    return found and all(path.is_file() for path in _files(case, settings))
