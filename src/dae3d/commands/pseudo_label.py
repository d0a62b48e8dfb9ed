"""The command `pseudo-label`: label unlabelled scans with fine-tuned networks, to train on what is sure."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dae3d.drawing.case_view import view_case
from dae3d.drawing.overlay import Wording, draw_case
from dae3d.drawing.pictures import save_picture
from dae3d.errors import Dae3dError, ScanError
from dae3d.evaluation.pairs import read_classes
from dae3d.files import inside, refuse_other_file, unfinished_files, write_text
from dae3d.inference.device import pick_device
from dae3d.inference.ensemble import Ensemble, load_ensemble
from dae3d.inference.given_cases import ScanCase, given_cases, refuse_other_classes, say_strange_values
from dae3d.inference.mirror import mirrored_axes
from dae3d.inference.nifti import label_values, write_nifti
from dae3d.inference.original_grid import nearest_classes
from dae3d.inference.pseudo_labels import Ranges, Sureness, label_scan, sureness
from dae3d.inference.pseudo_settings import PseudoLabelSettings
from dae3d.inference.sliding import window_count
from dae3d.journal import Journal
from dae3d.reporting.html import refuse_other_page
from dae3d.reporting.pseudo_labels import PseudoCase, cases_csv, write_pseudo_page
from dae3d.run_folder import refuse_a_runs_folder
from dae3d.scans.given import Image
from dae3d.scans.manifest import Manifest, is_manifest
from dae3d.scans.readers import read_volume
from dae3d.scans.sides import AXES, Axis
from dae3d.scans.task import Task, TaskCase, listed_cases, read_task, task_content
from dae3d.scans.task_labels import IGNORED
from dae3d.settings import command
from dae3d.store.recipe import CaseRecipe
from dae3d.store.source import contents_of
from dae3d.words import plural

log = logging.getLogger(__name__)

TASK = "task.json"
_RECORD, _LABELS, _TABLE, _PAGE = "pseudo-labels.jsonl", "labels", "cases.csv", "report.html"
_DRAWN = 4  # pictures of scans that are kept, and of those that are not
_COLUMNS = Wording(("label", "sure", "ignored"), missed="unsure, ignored", extra="", mixed="")


@command
def pseudo_label(settings: PseudoLabelSettings) -> Path:
    """Label scans with fine-tuned networks, keep what they are sure of, and write a list to train on.

    Writes `labels/<name>.nii.gz` for each scan, `cases.csv` and `report.html` with what was kept and why, and
    `task.json`: the list with the kept scans as further training cases, whose unsure voxels have the value of
    "ignore". Scans that are in the list of labelled cases, by the content of their files, are left out.

    Scans already labelled with the same weights and settings, by `pseudo-labels.jsonl`, are not labelled
    again.

    Returns:
        The new list.

    Raises:
        Dae3dError: if the weights, the list or the scans cannot be used; or, once the others are done, with
            all scans that cannot be labelled, and why.
    """
    refuse_a_runs_folder(settings.out, "pseudo-labels")
    for name, kind, start in (
        (TASK, "list of `pseudo-label`", rb'\{\n "name": '),
        (_TABLE, "table of `pseudo-label`", rb"case,kept,"),
    ):
        refuse_other_file(settings.out / name, kind, start)
    refuse_other_page(settings.out / _PAGE)
    device = pick_device(settings.device, settings.threads)
    ensemble = load_ensemble(settings.weights, device)
    task = read_task(settings.task, order=ensemble.recipe.modalities)
    refuse_other_classes(task, ensemble.recipe)
    training, validation = (task.split(side, settings.fold) for side in ("training", "validation"))
    recipe = ensemble.recipe.model_copy(update={"ignore": task.ignore or max(task.labels) + 1})
    cases = _unlabelled(settings, recipe, task, (*training, *validation))
    ranges = _volumes(training, recipe)
    found, problems = _label_all(cases, ensemble, recipe, settings, device)
    if found:
        labelled = [_judged(case, own, settings, ranges) for case, own in found]
        _write_results(settings, task, (training, validation), recipe, labelled, ranges)
    if problems:
        raise Dae3dError(
            f"{len(problems)} of {len(cases)} scans cannot be labelled:\n  " + "\n  ".join(problems)
        )
    return settings.out / TASK


def _unlabelled(
    settings: PseudoLabelSettings, recipe: CaseRecipe, task: Task, labelled: Sequence[TaskCase]
) -> list[ScanCase]:
    """The scans to label, without those that are in the list with a label."""
    cases = list(_given(settings, recipe, task))
    for case in cases:
        other = [image for image in case.images if image.series or image.volume is not None]
        if other:
            raise Dae3dError(
                f"{other[0].path}: the images of a training case are 3-D files; convert it to NIfTI first"
            )
    labelled = [*labelled, *(case for case in task.test if case.label)]
    known = {digest for case in labelled for digest in _contents(case.images)}
    kept = [case for case in cases if not known & _contents([image.path for image in case.images])]
    if len(kept) < len(cases):
        log.info("left out: %s of the list of labelled cases", plural(len(cases) - len(kept), "scan"))
    if not kept:
        raise Dae3dError(
            "no unlabelled scans: name files or folders, or a list or manifest with --data, or add `test` "
            f"cases to {settings.task}"
        )
    return kept


def _contents(images: Sequence[Path]) -> set[str]:
    try:
        return set(contents_of(images))
    except OSError as error:
        raise Dae3dError(f"{error.filename}: cannot be read: {error.strerror}") from None


def _given(settings: PseudoLabelSettings, recipe: CaseRecipe, task: Task) -> Iterator[ScanCase]:
    if settings.scans:
        yield from given_cases(settings.scans, recipe.modalities)
        return
    if settings.data is not None and is_manifest(settings.data):
        if len(recipe.modalities) > 1:
            raise Dae3dError(
                f"data: {settings.data}: a manifest does not say which scans are channels of one case; give "
                "a folder, or a list"
            )
        scans = Manifest.load(settings.data).scans
        files = [str(scan.path) for scan in scans if scan.modality == recipe.modalities[0]]
        yield from given_cases(files, recipe.modalities, recipe.modalities)
        return
    cases = task.test if settings.data is None else listed_cases(settings.data, recipe.modalities)
    for case in cases:
        yield ScanCase(case.name, tuple(map(Image.of, case.images)))


def _volumes(cases: Sequence[TaskCase], recipe: CaseRecipe) -> Ranges:
    """The smallest and largest volume of each class in the labelled cases, ml."""
    found = []
    for case in cases:
        if case.label is not None:
            label, grid = read_classes(case.label, recipe)
            counts = np.bincount(label.ravel(), minlength=IGNORED + 1)[1 : len(recipe.labels)]
            found.append(counts * np.prod(grid.spacing) / 1000)
    volumes = np.array(found)
    return {
        name: (float(own.min()), float(own.max()))
        for name, own in zip(recipe.class_names[1:], volumes.T, strict=True)
    }


def _label_all(
    cases: Sequence[ScanCase],
    ensemble: Ensemble,
    recipe: CaseRecipe,
    settings: PseudoLabelSettings,
    device: torch.device,
) -> tuple[list[tuple[ScanCase, Sureness]], list[str]]:
    """Label the scans; returns those that are labelled, and why others cannot be."""
    mirror = mirrored_axes(ensemble, settings.mirror_axes) if settings.mirror else ()
    heading: dict[str, Any] = {
        "pseudo_labels": ensemble.digests,
        "ignore": recipe.ignore,
        "mirror": list(mirror),
        **settings.model_dump(include={"ignore_below", "overlap"}),
    }
    found, problems = [], []
    with Journal(settings.out / _RECORD, heading) as record:
        for part in unfinished_files(settings.out / _LABELS, *(_label_file(settings, c).name for c in cases)):
            part.unlink(missing_ok=True)
        for case in tqdm(cases, "pseudo-label", unit="scan"):
            result = record.find(case.name, case.files)
            if result is None or not _label_file(settings, case).is_file():
                try:
                    own = _label(case, ensemble, recipe, settings, mirror, device)
                except ScanError as error:
                    problems.append(f"{case.name}: {error}")
                    continue
                result = own.model_dump()
                record.add(case.name, case.files, result)
            found.append((case, Sureness.model_validate(result)))
    return found, problems


def _label(
    case: ScanCase,
    ensemble: Ensemble,
    recipe: CaseRecipe,
    settings: PseudoLabelSettings,
    mirror: Sequence[Axis],
    device: torch.device,
) -> Sureness:
    """Label a scan, and write the label in its own grid."""
    conformed = case.read(recipe)
    say_strange_values(case, conformed, recipe)
    image = torch.from_numpy(conformed.normalised(recipe))
    grid, original = conformed.grid, conformed.original
    del conformed  # frees memory
    windows = len(ensemble.networks) * window_count(grid.shape, recipe.roi, settings.overlap)
    with tqdm(total=windows, desc=case.name, unit="window", leave=False) as progress:
        found = label_scan(
            ensemble.networks,
            *(image, recipe.roi, settings.overlap, settings.window_batch, device),
            *([AXES.index(axis) for axis in mirror], progress.update),
        )
    ignored = found.probability < settings.ignore_below
    classes = nearest_classes(np.where(ignored, np.uint8(IGNORED), found.classes), grid, original)
    write_nifti(_label_file(settings, case), label_values(recipe)[classes], case.files[0], original.affine)
    voxel_ml = float(np.prod(grid.spacing)) / 1000
    return sureness(found, ignored, voxel_ml, recipe.class_names)


def _label_file(settings: PseudoLabelSettings, case: ScanCase) -> Path:
    return inside(settings.out / _LABELS, f"{case.name}.nii.gz")


def _judged(case: ScanCase, found: Sureness, settings: PseudoLabelSettings, ranges: Ranges) -> PseudoCase:
    reasons = settings.rules.reasons_against(found, ranges)
    images = tuple(image.path.absolute() for image in case.images)
    return PseudoCase(case.name, images, _label_file(settings, case), found, tuple(reasons))


def _write_results(
    settings: PseudoLabelSettings,
    task: Task,
    sides: tuple[Sequence[TaskCase], Sequence[TaskCase]],
    recipe: CaseRecipe,
    cases: Sequence[PseudoCase],
    ranges: Ranges,
) -> None:
    kept = [case for case in cases if not case.reasons]
    training, validation = sides
    weight = settings.weight or min(1.0, len(training) / max(1, len(kept)))
    summary = (
        f"{len(kept)} of {plural(len(cases), 'scan')} kept, each with a weight of {weight:.3g} beside "
        f"{plural(len(training), 'labelled case')} of weight 1."
    )
    write_text(settings.out / _TABLE, cases_csv(cases))
    pictures = list(_pictures(settings, cases, recipe))
    write_pseudo_page(
        *(settings.out / _PAGE, task.name, cases, ranges, pictures, summary),
        *(settings.ignore_below, settings.to_yaml()),
    )
    log.info("%s The page: %s", summary, settings.out / _PAGE)
    if not kept:
        log.warning(
            "no scan is kept, so the list has the labelled cases alone; %s has the reasons. Lower "
            "--min-probability or --min-agreement, or raise --volume-factor, if the pictures look right",
            settings.out / _TABLE,
        )
    pseudo = [TaskCase(c.name, c.images, c.label.absolute(), c.name, weight=weight) for c in kept]
    content = task_content(task, [*training, *pseudo], validation, ignore=recipe.ignore)
    write_text(settings.out / TASK, json.dumps(content, indent=1) + "\n")
    log.info("train on it with `dae3d finetune --data %s`", settings.out / TASK)


def _pictures(
    settings: PseudoLabelSettings, cases: Sequence[PseudoCase], recipe: CaseRecipe
) -> Iterator[tuple[Path, str]]:
    """Pictures of the least sure scans that are kept, and of some that are left out, with their captions."""
    ranked = sorted(cases, key=lambda case: case.rank)
    ignored = len(recipe.labels)  # drawn as one more class
    names = {**dict(enumerate(recipe.class_names)), ignored: "ignored"}
    del names[0]
    for is_kept in (True, False):
        for case in [case for case in ranked if (not case.reasons) is is_kept][:_DRAWN]:
            label, _ = read_classes(case.label, recipe)
            view = view_case(
                read_volume(case.images[0]),
                np.where(label == IGNORED, np.uint8(ignored), label),
                np.where(label == IGNORED, np.uint8(0), label),
            )
            path = settings.out / "pictures" / f"{case.name}.png"
            save_picture(draw_case(view, view.fullest, case.name, names, _COLUMNS), path)
            yield path, f"{'kept' if is_kept else 'left out: ' + '; '.join(case.reasons)}: {case.name}"
