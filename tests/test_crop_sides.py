"""Crops whose sides differ: how they are set, and runs from pre-training to prediction."""

import json
import logging

import nibabel
import numpy as np
import pytest
import torch
import yaml
from pydantic import TypeAdapter, ValidationError

import dae3d
from conftest import smooth_volume
from dae3d.cli import main
from dae3d.disrupt import DISRUPTIONS, DisruptionSettings
from dae3d.errors import SettingsError
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.settings import resolve
from dae3d.store.boxes import Roi
from dae3d.store.recipe import CaseRecipe
from dae3d.training.augment import Augmentation
from dae3d.training.data import CropLoaders, training_data
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.training.pretrain_settings import PretrainSettings

FLAT = (64, 32, 32)
NEEDED = {"data": "store", "out": "run"}


# The setting


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (40, (40, 40, 40)),
        ("40", (40, 40, 40)),
        (40.0, (40, 40, 40)),
        (np.int64(40), (40, 40, 40)),
        ([40], (40, 40, 40)),
        ((40, 56, 8), (40, 56, 8)),
        (["40", "56", "8"], (40, 56, 8)),
    ],
)
def test_one_number_stands_for_three(given, meant):
    found = TypeAdapter(Roi).validate_python(given)
    assert found == meant
    assert type(found) is tuple
    assert {type(side) for side in found} == {int}


@pytest.mark.parametrize("given", [7, [40, 56, 7], [40, 56], [40] * 4, [], "a", 40.5, None, True, {"x": 40}])
def test_what_is_no_crop(given):
    with pytest.raises(ValidationError):
        TypeAdapter(Roi).validate_python(given)


@pytest.mark.parametrize("text", ["roi: 64", "roi: [64]", "roi: [64, 64, 64]"])
def test_a_config_has_one_number_or_three(text, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    settings = resolve(PretrainSettings, NEEDED | {"config": tmp_path / "c.yaml"})
    assert settings.roi == (64, 64, 64)
    assert yaml.safe_load(settings.to_yaml())["roi"] == [64, 64, 64]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--roi", "64"], [64, 64, 64]),
        (["--roi", "64", "96", "32"], [64, 96, 32]),
        (["--roi=64"], [64, 64, 64]),
        (["--roi", "64", "96", "32", "--roi", "128"], [128, 128, 128]),
    ],
)
@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_flag_has_one_number_or_three(command, words, meant, capsys):
    assert main([command, "--data", "d", "--out", "o", "--print-settings", *words]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["roi"] == meant


@pytest.mark.parametrize("command", ["embed", "reconstruct"])
def test_commands_on_scans_take_three_numbers_too(command, tmp_path, capsys):
    out = str(tmp_path / "e.npz")
    assert main([command, "scan", "--weights", "w", "--out", out, "--roi", "64", "32"]) == 1
    error = capsys.readouterr().err
    assert error == (
        "dae3d: error: roi: must be one number, or three (right, anterior, superior), not 2 "
        "(got ['64', '32'])\n"
    )


def test_an_architecture_names_the_sides_and_what_they_must_be_multiples_of():
    swin = SwinArchitecture()
    swin.check_sides((64, 96, 32))
    with pytest.raises(SettingsError, match=r"^roi: sides must be multiples of 32, not 40 x 56 x 40$"):
        swin.check_sides((40, 56, 40))

    class Anisotropic(SwinArchitecture):
        multiple = (8, 8, 4)

    Anisotropic().check_sides((40, 56, 12))
    with pytest.raises(SettingsError, match=r"^roi: sides must be multiples of 8 x 8 x 4, not 40 x 12 x 8$"):
        Anisotropic().check_sides((40, 12, 8))


def test_the_side_that_a_disruption_does_not_divide_is_named():
    strengths = DisruptionSettings(block_size=16)
    DISRUPTIONS["mae"].check(strengths, (64, 48, 16))
    with pytest.raises(
        ValueError, match=r"^block_size: .*every side of roi 64 x 40 x 24, not 16.* 40 and 24$"
    ):
        DISRUPTIONS["mae"].check(strengths, (64, 40, 24))


def test_fine_tuning_asks_the_network_too(tiny_finetune, tmp_path):
    with pytest.raises(SettingsError, match=r"^roi: sides must be multiples of 32, not 64 x 40 x 32$"):
        dae3d.finetune(**tiny_finetune | {"roi": (64, 40, 32), "out": tmp_path / "run"})


@pytest.mark.parametrize("given", [{}, {"roi": 32}, {"roi": (32, 32, 32)}])
def test_a_run_with_a_single_number_in_its_settings_goes_on(
    given, tiny_store, tiny_settings, tmp_path, caplog
):
    run = dae3d.pretrain(data=tiny_store, out=tmp_path / "run", **tiny_settings | {"max_steps": 4})
    path = run / "settings.yaml"
    now = path.read_text()
    assert "roi: [32, 32, 32]\n" in now
    path.write_text(now.replace("roi: [32, 32, 32]", "roi: 32"))
    with caplog.at_level(logging.INFO):
        dae3d.pretrain(out=run, resume=True, max_steps=5, **given)
    changes = [m for m in caplog.messages if m.startswith("settings changed")]
    assert changes == ["settings changed since the run began: max_steps 4 -> 5"]
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(now) | {"max_steps": 5}


def test_a_recipe_with_a_single_number_is_that_of_a_cube():
    recipe = CaseRecipe(modalities=("ct",), labels={0: "background", 1: "organ"}, roi=32)
    older = json.loads(recipe.model_dump_json()) | {"roi": 32}
    assert CaseRecipe.model_validate(older) == recipe
    assert recipe.roi == (32, 32, 32)


# Augmentation

JITTER = NEEDED | {"flip_prob": 0, "rotate_prob": 0.5, "scale_prob": 0.5, "shift_prob": 0.5}


@pytest.mark.parametrize(
    ("roi", "turns"), [((16, 16, 8), {1, 2, 3}), ((16, 8, 24), {2}), ((8, 16, 16), {2}), ((8, 16, 8), {2})]
)
def test_crops_are_rotated_by_right_angles_that_keep_their_shape(roi, turns):
    augment = Augmentation(
        FinetuneSettings(**JITTER | {"roi": roi, "scale_prob": 0, "shift_prob": 0, "rotate_prob": 1})
    )
    image = torch.rand(1, *roi)
    seen = set()
    for seed in range(40):
        made, label = augment(image, image.clone(), seed)
        assert made.shape == image.shape
        assert torch.equal(made, label)
        ways = [k for k in range(4) if torch.equal(made, image.rot90(k, (1, 2)))]
        assert len(ways) == 1
        seen |= set(ways)
    assert seen == turns


def test_other_sides_draw_the_same_random_numbers():
    """The jitter that is drawn after the rotation is that of a cube."""
    ones = {roi: torch.ones(1, *roi) for roi in ((16, 16, 16), (16, 8, 24))}
    for seed in range(20):
        cube, flat = (
            Augmentation(FinetuneSettings(**JITTER | {"roi": roi}))(image, image.clone(), seed)[0].unique()
            for roi, image in ones.items()
        )
        assert torch.equal(cube, flat)


# Runs


@pytest.fixture(scope="module")
def flat_run(tiny_store, tiny_settings, tmp_path_factory):
    """Three steps with every loss and the probe."""
    out = tmp_path_factory.mktemp("flat") / "run"
    given = {"roi": FLAT, "max_steps": 3, "disruption": "varied", "skip_drop": 0.2, "probe_every": 3}
    return dae3d.pretrain(
        data=tiny_store, out=out, **tiny_settings | given | {"val_every": 3, "save_every": 3}
    )


@pytest.fixture(scope="module")
def flat_finetuned(flat_run, tiny_finetune, tmp_path_factory):
    out = tmp_path_factory.mktemp("flat") / "finetuned"
    given = {"roi": FLAT, "max_steps": 2, "deep_supervision": True, "rotate_prob": 1, "val_every": 2}
    return dae3d.finetune(**tiny_finetune | given | {"save_every": 2, "init": flat_run, "out": out})


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_give_crops_of_these_sides(tiny_store, tmp_path, workers):
    settings = PretrainSettings(data=tiny_store, out=tmp_path, roi=FLAT, batch_size=2, workers=workers)
    data = training_data(settings, 1)
    loaders = CropLoaders(data, settings)
    loaders.trainer = _Trainer()
    batches = iter(loaders.train_dataloader())
    for number in range(0, 8, 2):
        batch = loaders.on_after_batch_transfer(next(batches), 0)
        assert batch["image"].shape == batch["inside"].shape == (2, 1, *FLAT)
        for place in range(2):
            crop = data.stream[number + place]
            expected = data.store.read_padded(crop.scan, crop.start, FLAT)
            np.testing.assert_array_equal(batch["image"][place, 0].numpy(), expected)
            places = np.stack(np.indices(FLAT), -1) + crop.start
            inside = ((places >= 0) & (places < data.store.scans[crop.scan].shape)).all(-1)
            np.testing.assert_array_equal(batch["inside"][place, 0].numpy(), inside)


class _Trainer:
    num_devices, global_step, global_rank, world_size = 1, 0, 0, 1

    class strategy:
        root_device = torch.device("cpu")


def test_a_network_is_pre_trained_on_them(flat_run):
    assert yaml.safe_load((flat_run / "settings.yaml").read_text())["roi"] == list(FLAT)
    assert "crops of 64 x 32 x 32, batch 4 x 1" in (flat_run / "log.txt").read_text()
    network = dae3d.load(flat_run)
    assert network.info["settings"]["roi"] == list(FLAT)
    figures = dae3d.check(run=flat_run, device="cpu").figures
    assert figures.tokens["level4"] == 2 * sum(figures.crops.values())
    assert figures.tokens["level0"] == 32 * 16 * 16 * sum(figures.crops.values())


def test_whole_scans_are_repaired_and_embedded_in_windows_of_them(flat_run, tmp_path):
    scan = tmp_path / "sub-1_T1w.nii.gz"
    voxels = np.round(smooth_volume(3, (70, 36, 34)) * 100 + 100).astype(np.int16)
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(scan)
    rows = dae3d.reconstruct(scans=[scan], weights=flat_run, out=tmp_path / "repaired", device="cpu")
    assert all(np.isfinite(row["l1"]) for row in rows)
    usual, same, other = (
        dae3d.embed(
            scans=[scan], weights=flat_run, out=tmp_path / f"{name}.npz", device="cpu", **given
        ).features
        for name, given in {"a": {}, "b": {"roi": FLAT}, "c": {"roi": (32, 64, 32)}}.items()
    )
    np.testing.assert_array_equal(usual, same)
    assert abs(usual - other).max() > 1e-4


def test_it_is_fine_tuned_and_segments_whole_scans(flat_finetuned, tmp_path):
    recipe = CaseRecipe.model_validate(dae3d.load(flat_finetuned).info["recipe"])
    assert recipe.roi == FLAT
    scan = tmp_path / "sub-9_T1w.nii.gz"
    voxels = np.round(smooth_volume(3, (70, 36, 20)) * 100 + 100).astype(np.int16)
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(scan)
    [made] = dae3d.predict(scans=[scan], weights=[flat_finetuned], out=tmp_path / "out", device="cpu")
    segmented = nibabel.load(made)
    assert segmented.shape == voxels.shape
    assert set(np.unique(np.asarray(segmented.dataobj))) <= {0, 1, 4}
