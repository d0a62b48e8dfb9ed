"""Plans: crops by nnU-Net's rule within the memory, a network for them, and settings that train."""

import logging
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

import dae3d
from conftest import smooth_volume
from dae3d.cli import main
from dae3d.errors import Dae3dError, SettingsError
from dae3d.planning.comments import Line, written
from dae3d.planning.crops import (
    first_shape,
    largest_batch,
    largest_fitting,
    smaller_shapes,
)
from dae3d.planning.fingerprint import Fingerprint, advice
from dae3d.planning.network import PlannedNetwork
from dae3d.settings import resolve
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.training.pretrain_settings import PretrainSettings

OF_32 = PlannedNetwork("swin-unetr", "small", "cpu", (1, 1, 1)).multiples


def of_resenc(spacing):
    return PlannedNetwork("resenc", "small", "cpu", spacing).multiples


# Crops


def test_the_first_shape_counted_by_hand():
    # (256^3 * 0.8 * 0.8 * 3)^(1/3) = 318.2 mm: 398 x 398 x 106 voxels, of which the scan has 398 x 300 x 100.
    assert first_shape((512, 300, 100), (0.8, 0.8, 3.0), OF_32, 256**3) == (416, 320, 128)
    # Small scans are not exceeded, except by rounding up.
    assert first_shape((40, 40, 36), (1, 1, 1), OF_32, 256**3) == (64, 64, 64)
    # By nnU-Net's rule 36 and 40 voxels are halved three times.
    assert first_shape((40, 40, 36), (1, 1, 1), of_resenc((1, 1, 1)), 256**3) == (40, 40, 40)


def test_shapes_shrink_along_the_axis_that_is_longest_relative_to_the_median():
    shapes = list(smaller_shapes((128, 128, 96), (256, 128, 64), OF_32))
    # Relative to the median: 1/2, 1, 3/2; then 1/2, 1, 1; ...
    assert shapes[:2] == [(128, 128, 96), (128, 128, 64)]
    assert shapes[2] in [(128, 96, 64), (128, 128, 32)]
    assert shapes[3] == (128, 96, 32)
    assert shapes[-1] == (32, 32, 32)
    assert len(shapes) == 1 + (128 - 32) // 32 * 2 + (96 - 32) // 32


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.5, 0.5, 5), (1, 3, 1), (0.7, 0.7, 1.5)])
def test_every_shape_is_a_multiple_of_its_own_strides_and_smaller_than_the_last(spacing):
    multiples = of_resenc(spacing)
    first = first_shape((300, 260, 90), spacing, multiples, 128**3)
    shapes = list(smaller_shapes(first, (300, 260, 90), multiples))
    assert len(shapes) > 3
    for shape in shapes:
        assert not any(side % of for side, of in zip(shape, multiples(shape), strict=True))
        assert min(shape) >= 8
    volumes = [math.prod(shape) for shape in shapes]
    assert volumes == sorted(set(volumes), reverse=True)


def by_voxels(roi, crops):
    return 1000 + 100 * math.prod(roi) * crops


@pytest.mark.parametrize("limit", [10**k for k in range(6, 11)])
def test_the_largest_shape_that_fits_is_found(limit):
    shapes = list(smaller_shapes((192, 160, 128), (200, 170, 130), OF_32))
    fits = [shape for shape in shapes if by_voxels(shape, 2) <= limit]
    found = largest_fitting(shapes, by_voxels, limit, (2,))
    assert found == ((fits[0], 2) if fits else None)


def test_four_crops_are_preferred_unless_they_would_be_small():
    shapes = [(96, 96, 96), (64, 64, 64), (32, 32, 32)]
    assert largest_fitting(shapes, by_voxels, by_voxels((64, 64, 64), 4), (4, 2)) == ((64, 64, 64), 4)
    assert largest_fitting(shapes, by_voxels, by_voxels((64, 64, 64), 2), (4, 2)) == ((64, 64, 64), 2)
    assert largest_fitting(shapes, by_voxels, by_voxels((32, 32, 32), 4), (4, 2)) == ((32, 32, 32), 4)
    assert largest_fitting(shapes, by_voxels, by_voxels((32, 32, 32), 4) - 1, (4, 2)) == ((32, 32, 32), 2)


def test_the_largest_batch_that_fits():
    def needs(crops):
        return 500 + 100 * crops

    assert largest_batch(needs, 1400, 1, 99) == 9
    assert largest_batch(needs, 1499, 2, 99) == 8
    assert largest_batch(needs, 1499, 2, 6) == 6
    assert largest_batch(needs, 699, 2, 99) == 0
    # Not quite linear: the estimate is corrected.
    assert largest_batch(lambda n: 500 + 100 * n + n * n, 1500, 1, 99) == 9


# Fingerprints


def fingerprint(*spacings, shape=(200, 200, 40)):
    rows = np.array(spacings, float)
    shapes = np.tile(np.array(shape, float), (len(rows), 1))
    return Fingerprint(("t1",) * len(rows), shapes, rows, shapes)


def test_alike_voxels_need_no_advice():
    assert advice(fingerprint((1, 1, 1), (1, 1, 1.2)), as_acquired=True) is None


def test_mixed_voxels_are_found():
    assert "factor of 2 along an axis" in str(advice(fingerprint((1, 1, 1), (1, 2, 1)), as_acquired=False))


def test_thick_slices_are_found_only_as_acquired():
    thick = fingerprint((0.5, 0.5, 3), (0.5, 0.5, 3))
    assert "6 times as long" in str(advice(thick, as_acquired=True))
    assert advice(thick, as_acquired=False) is None


def test_the_better_voxel_size_is_that_of_nnunet():
    # Thick and few slices: the tenth percentile of 2, 3, 4, 5, 6 is 2.4.
    mixed = fingerprint(*((0.5, 0.5, mm) for mm in (2, 3, 4, 5, 6)))
    assert mixed.better_spacing() == (0.5, 0.5, 2.4)
    # Many slices: the median.
    many = fingerprint(*((0.5, 0.5, mm) for mm in (2, 3, 4, 5, 6)), shape=(200, 200, 100))
    assert many.better_spacing() == (0.5, 0.5, 4)


# YAML


def test_comments_stay_comments():
    text = written(
        "tests", "x", ["Found:", "a\nroi: 3"], [Line("data", Path("/a: b\n#c")), Line("lr", 1e-4, "w\nx: 1")]
    )
    assert yaml.safe_load(text) == {"data": "/a: b\n#c", "lr": 1e-4}


# The command


def test_a_plan_trains(tiny_store, tmp_path, caplog):
    out = tmp_path / "plan.yaml"
    with caplog.at_level(logging.INFO, "dae3d"):
        plan = dae3d.plan(store=tiny_store, out=out, memory="4GB", hours=0.5, steps=1, accelerator="cpu")
    assert plan == out
    text = out.read_text()
    settings = resolve(PretrainSettings, {"config": out})
    assert settings.roi in [(64, 64, 64), (32, 64, 64)]
    assert settings.batch_size == 4
    assert settings.embed_dim == 12
    assert settings.data == tiny_store
    assert settings.max_steps >= 1
    assert "# - ct: " in text
    assert "# - seconds a step: " in text
    assert "hours of the run: " in caplog.text
    run = dae3d.pretrain(
        config=out, out=tmp_path / "run", max_steps=1, val_every=1, save_every=10, workers=0, val_crops=1
    )
    assert (run / "weights/last.safetensors").is_file()


def flat_store(folder: Path) -> Path:
    """Scans of 48 x 44 x 12 voxels of 1 x 1 x 5 mm."""
    for i in range(3):
        voxels = np.round(smooth_volume(i, (48, 44, 12)) * 500 + 1).astype(np.int16)
        nibabel.Nifti1Image(voxels, np.diag([1.0, 1, 5, 1])).to_filename(folder / f"sub-{i}_T1w.nii.gz")
    dae3d.index(folders=[folder], out=folder / "manifest.jsonl", val_fraction=0)
    dae3d.prepare(manifest=folder / "manifest.jsonl", out=folder / "store", workers=1, report=False)
    return folder / "store"


def test_thick_slices_get_flat_crops_and_strides(tmp_path):
    store = flat_store(tmp_path)
    out = tmp_path / "plan.yaml"
    dae3d.plan(store=store, out=out, memory="8GB", backbone="resenc", steps=0, accelerator="cpu")
    settings = resolve(PretrainSettings, {"config": out})
    x, y, z = settings.roi
    assert z == 16  # 12 voxels, rounded up to blocks of 8
    assert (x, y) == (48, 48)
    # 5 mm are not halved while the other axes are below 2.5 mm.
    assert settings.stage_strides[1:3] == ((2, 2, 1), (2, 2, 1))
    assert settings.stage_kernels[0] == (3, 3, 1)
    text = " ".join(line.lstrip("# ") for line in out.read_text().splitlines())
    assert "slices are thick: voxels are 5 times as long as wide" in text
    assert "dae3d prepare MANIFEST --out ANOTHER_STORE --spacing 1 1 5" in text
    assert "not measured (--steps 0)" in text


def test_too_little_memory_says_the_least(tiny_store, tmp_path):
    given = {"store": tiny_store, "out": tmp_path / "plan.yaml", "steps": 0, "accelerator": "cpu"}
    with pytest.raises(
        Dae3dError, match=r"memory: 10.0 MB .* 32 x 32 x 32, 2 a step, take at least (\S+ MB)"
    ) as found:
        dae3d.plan(memory="10MB", **given)
    assert not (tmp_path / "plan.yaml").exists()
    least = found.value.args[0].split("at least ")[1].split(";")[0]
    dae3d.plan(memory=f"{float(least.split()[0]) + 0.1:.1f} MB", **given)
    settings = resolve(PretrainSettings, {"config": tmp_path / "plan.yaml"})
    assert (settings.roi, settings.batch_size) == ((32, 32, 32), 2)


def test_wrong_requests_are_refused_before_any_work(tiny_store, tmp_path):
    out = tmp_path / "plan.yaml"
    with pytest.raises(SettingsError, match="memory: must be a size with its unit"):
        dae3d.plan(store=tiny_store, out=out, memory="24 apples")
    with pytest.raises(SettingsError, match="backbone: must be one of"):
        dae3d.plan(store=tiny_store, out=out, backbone="vit")
    with pytest.raises(Dae3dError, match="batch_size: must be even"):
        dae3d.plan(store=tiny_store, out=out, memory="4GB", batch_size=3)
    out.write_text("lr: 1\n")
    with pytest.raises(Dae3dError, match="is not a plan"):
        dae3d.plan(store=tiny_store, out=out)
    assert out.read_text() == "lr: 1\n"


def test_hours_without_measured_steps_are_refused(tiny_store, tmp_path):
    given = {"store": tiny_store, "out": tmp_path / "plan.yaml", "memory": "400MB", "accelerator": "cpu"}
    with pytest.raises(Dae3dError, match="hours: the steps that fit are unknown"):
        dae3d.plan(hours=1, steps=0, **given)


def test_a_plan_for_a_task(tiny_store, tiny_task, tmp_path):
    out = tmp_path / "plan.yaml"
    words = ["plan", str(tiny_store), "--out", str(out), "--for", str(tiny_task), "--memory", "2GB"]
    assert main([*words, "--steps", "0", "--backbone", "resenc", "--accelerator", "cpu"]) == 0
    before = resolve(PretrainSettings, {"config": out})
    after = resolve(FinetuneSettings, {"config": tmp_path / "plan-finetune.yaml"})
    assert after.data == tiny_task
    assert after.init == before.out
    assert after.stage_strides == before.stage_strides
    assert after.spacing is None  # both have voxels of 1 mm
    assert not any(side % of for side, of in zip(after.roi, before.architecture().multiple, strict=True))
    text = (tmp_path / "plan-finetune.yaml").read_text()
    # Median shape of cases of (40 - i, 37 - i, 25 + i) voxels, i from 0 to 7.
    assert "median 36 x 34 x 28 voxels" in text
    assert "1 channels, 3 classes" in text
    # Both are plans, which may be written again.
    assert main([*words, "--steps", "0", "--backbone", "resenc", "--accelerator", "cpu"]) == 0
