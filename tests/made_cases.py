"""Labelled cases, and how they are prepared."""

from pathlib import Path

import numpy as np

from dae3d.scans.task import TaskCase
from dae3d.store.recipe import CaseRecipe
from scan_files import phantom, write_nifti

SHAPE = (30, 34, 26)


def recipe(**changes) -> CaseRecipe:
    fields = {"modalities": ("ct",), "labels": {0: "background", 1: "body", 4: "rod"}, "roi": 16}
    return CaseRecipe(**fields | changes)


def labels(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """The body and the rod of `phantom`, less some voxels that depend on the seed."""
    label = np.zeros(shape, np.uint8)
    label[tuple(slice(n // 5, n - n // 5) for n in shape)] = 1
    label[np.random.default_rng(seed).random(shape) < 0.1] = 0
    label[shape[0] // 2, shape[1] // 2, :] = 4
    return label


def some_cases(folder: Path, number: int, shape=SHAPE, affine=None) -> list[TaskCase]:
    cases = []
    for i in range(number):
        image = write_nifti(folder / f"case{i}.nii", phantom(shape, i), affine)
        label = write_nifti(folder / "labels" / f"case{i}.nii.gz", labels(shape, i), affine)
        cases.append(TaskCase(f"case{i}", (image,), label, f"subject {i}", i % 2))
    return cases
