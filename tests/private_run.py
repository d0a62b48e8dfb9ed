"""Runs in whose paths, scans and subjects a word stands that nothing published may have."""

from pathlib import Path

import nibabel
import numpy as np

import dae3d
from conftest import TINY, labelled_case, smooth_volume, write_task

WORD = "zebrafinch"


def pretrained(folder: Path) -> Path:
    """A run of 5 steps of pre-training on 5 scans, with validations."""
    home = folder / WORD
    home.mkdir()
    for i in range(5):
        voxels = np.round(smooth_volume(i, (36, 36, 36)) * 500 + 1).astype(np.int16)
        label = "ct" if i < 2 else "T1w"
        nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(home / f"sub-{WORD}{i}_{label}.nii.gz")
    dae3d.index(folders=[home], out=home / f"{WORD}.jsonl", val_fraction=0.3, dataset="phantoms")
    dae3d.prepare(manifest=home / f"{WORD}.jsonl", out=home / f"{WORD}-store", workers=1)
    out = home / f"{WORD}-run"
    return dae3d.pretrain(data=home / f"{WORD}-store", out=out, max_steps=5, datasets=["phantoms"], **TINY)


def fine_tuned(folder: Path, init: Path) -> Path:
    """A run of 4 steps of fine-tuning from those weights."""
    home = folder / f"{WORD}-cases"
    home.mkdir(exist_ok=True)
    entries = []
    for i in range(3):
        image, label = labelled_case(i, (36, 36, 36), True)
        names = [f"{WORD}{i}.nii.gz", f"{WORD}{i}_label.nii.gz"]
        for name, voxels in zip(names, (image, label), strict=True):
            nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(home / name)
        entries.append(dict(zip(("image", "label"), names, strict=True)))
    task = write_task(home, "organs", training=entries[:2], validation=entries[2:])
    others = ("val_crops", "batch_size", "window")
    settings = {name: value for name, value in TINY.items() if name not in others}
    return dae3d.finetune(
        **settings,
        data=task,
        out=home / f"{WORD}-run",
        init=init,
        max_steps=4,
        batch_size=2,
        prepare_workers=1,
        spacing=(1.5, 1.5, 1.5),
    )
