"""Pre-training with everything on that a run can do, as a user runs it."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import dae3d
from dae3d.errors import SettingsError
from dae3d.models.loading import load
from dae3d.training.callbacks import find_checkpoints
from dae3d.training.pretrain_settings import PretrainSettings
from run_rows import assert_same_run, rows

pytestmark = pytest.mark.slow

EVERYTHING = {
    "batch_size": 4,
    "max_steps": 6,
    "save_every": 3,
    "val_every": 3,
    "keep": 2,
    "disruption": "varied",
    "crop_region": "foreground",
    "clip_intensity": 4.0,
    "intensity_jitter": 0.2,
    "repair_from": "pyramid",
    "skip_drop": 0.5,
    "masked_weight": 3.0,
    "coarse_weight": 0.5,
    "relative_loss": True,
    "loss_on_padding": False,
    "contrastive_weight": 0.03,
    "contrastive_view": "clean",
    "dense_weight": 0.2,
    "feature_weight": 0.5,
}
# What a run of before recorded of what has another default since then.
RECORDED = {
    "disruption": "all",
    "crop_region": "volume",
    "contrastive_weight": 0.03,
    "contrastive_temperature": 0.5,
    "restore_intensity": True,
}


@pytest.fixture(scope="module")
def full_run(tiny_store, tiny_settings, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("full") / "run"
    return dae3d.pretrain(data=tiny_store, out=out, **(tiny_settings | EVERYTHING))


def test_all_losses_are_finite_and_recorded(full_run):
    metrics = rows(full_run)
    assert all(math.isfinite(value) for value in metrics.values())
    for name in ("train/loss", "train/l1", "train/contrastive", "train/dense", "train/features"):
        assert {step for step, metric in metrics if metric == name} == set(range(1, 7))
    # Two feature maps of log(128) each where nothing is told apart yet.
    assert 0 < metrics[1, "train/dense"] < 2.5 * math.log(128)
    for step in range(1, 7):
        parts = (0.03, "train/contrastive"), (0.2, "train/dense"), (0.5, "train/features"), (1, "train/l1")
        # And the coarse repairs.
        assert metrics[step, "train/loss"] > sum(weight * metrics[step, name] for weight, name in parts)


def test_it_goes_on_bit_for_bit(full_run, tiny_store, tiny_settings, tmp_path):
    part = dae3d.pretrain(data=tiny_store, out=tmp_path / "part", **(tiny_settings | EVERYTHING))
    newest, _ = find_checkpoints(part / "checkpoints")
    newest.unlink()
    dae3d.pretrain(out=part, resume=True)
    assert_same_run(part, full_run)


def test_weights_hold_the_network_and_nothing_that_is_thrown_away(full_run):
    network = load(full_run)
    assert network.architecture.repair_from == "pyramid"
    assert not network.load_report.missing
    assert not network.load_report.skipped
    names = load_file(full_run / "weights/last.safetensors").keys()
    assert not [name for name in names if "projection" in name or "feature_heads" in name]
    assert any(name.startswith("decoder.repair_heads.4.") for name in names)
    # A checkpoint holds them, for the run that goes on.
    state = torch.load(find_checkpoints(full_run / "checkpoints")[0], weights_only=True)["state_dict"]
    for heads in ("projections.", "feature_heads."):
        assert [name for name in state if name.startswith(heads)]


def test_without_weight_there_is_no_dense_loss_and_no_repair_of_features(tiny_store, tiny_settings, tmp_path):
    settings = tiny_settings | EVERYTHING | {"dense_weight": 0.0, "max_steps": 1, "batch_size": 3}
    settings["feature_weight"] = 0.0
    settings |= {"save_every": 1, "val_every": 1}
    run = dae3d.pretrain(data=tiny_store, out=tmp_path / "run", **settings)
    assert not {"train/dense", "train/features"} & {name for _, name in rows(run)}
    state = torch.load(find_checkpoints(run / "checkpoints")[0], weights_only=True)["state_dict"]
    assert not [name for name in state if name.startswith(("projections.", "feature_heads."))]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dense_weight": 0.0}, "dense_weight"),
        ({"feature_weight": 0.0}, "feature_weight"),
        ({"repair_from": "full"}, "repair_from"),
    ],
)
def test_what_the_parameters_depend_on_stays_as_it_was(change, named, full_run):
    with pytest.raises(SettingsError, match=f"{named}: .*was started with"):
        dae3d.pretrain(out=full_run, resume=True, max_steps=9, **change)


def test_a_run_of_before_goes_on_as_it_began(tiny_store, tiny_settings, tmp_path):
    settings = tiny_settings | PretrainSettings.earlier | RECORDED
    settings |= {"max_steps": 6, "save_every": 3, "val_every": 3, "keep": 2, "data": tiny_store}
    whole = dae3d.pretrain(out=tmp_path / "whole", **settings)
    part = dae3d.pretrain(out=tmp_path / "part", **settings)
    find_checkpoints(part / "checkpoints")[0].unlink()
    saved = yaml.safe_load((part / "settings.yaml").read_text())
    added = {*PretrainSettings.earlier, "coarse_weight", "dense_temperature", "probe_task"}
    assert added < saved.keys()
    older = {name: value for name, value in saved.items() if name not in added}
    (part / "settings.yaml").write_text(yaml.safe_dump(older))
    dae3d.pretrain(out=part, resume=True)
    assert_same_run(part, whole)
    names = load_file(part / "weights/last.safetensors").keys()
    assert "decoder.head.conv.conv.weight" in names
    assert {"decoder.skips.0.layer.conv1.conv.weight", "decoder.ups.4.transp_conv.conv.weight"} <= names


def test_a_contrastive_loss_that_has_nothing_to_learn_from_is_said(
    tiny_store, tiny_settings, tmp_path, caplog
):
    small = tiny_settings | {"batch_size": 2, "max_steps": 3}
    run = dae3d.pretrain(data=tiny_store, out=tmp_path / "small", **small)
    assert "with 2 crops per step" in caplog.text
    assert {value for (_, name), value in rows(run).items() if name == "train/contrastive"} == {0.0}
    caplog.clear()
    dae3d.pretrain(data=tiny_store, out=tmp_path / "without", contrastive_weight=0.0, **small)
    dae3d.pretrain(data=tiny_store, out=tmp_path / "four", **small | {"batch_size": 4, "max_steps": 1})
    assert "contrastive_weight:" not in caplog.text
