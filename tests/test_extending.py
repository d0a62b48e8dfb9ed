"""A disruption, a loss and an image metric of somebody else's, each added from outside by a line."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import dae3d
from dae3d.disrupt import DISRUPTIONS, Disruption, Step
from dae3d.errors import SettingsError
from dae3d.evaluation.image_metrics import IMAGE_METRICS, ImageMetric
from dae3d.objectives import OBJECTIVES, Objective
from dae3d.training.callbacks import find_checkpoints
from run_rows import assert_same_run, rows


@Step
def half_blank(batch, settings):
    """The first half of every crop is lost."""
    mask = torch.zeros_like(batch.image, dtype=torch.bool)
    mask[:, :, : mask.shape[2] // 2] = True
    return dataclasses.replace(batch, image=batch.image.masked_fill(mask, 0))


def mean_intensity(repair, settings, heads):
    """How badly a crop's mean is told from its bottleneck, by a linear map that learns."""
    told = heads(repair.network.pooled(repair.hidden))[:, 0]
    return (told - repair.clean.mean(dim=(1, 2, 3, 4))).abs().mean()


def near(images):
    """The share of voxels whose error is below 0.5."""
    return ((images.image - images.clean).abs() < 0.5).float().flatten(1).mean(dim=1)


@pytest.fixture
def added(monkeypatch):
    disruption = Disruption((half_blank,), "the first half of every crop", "blanks the first half")
    objective = Objective(
        weight=lambda settings: 0.25,
        loss=mean_intensity,
        setting="mean_weight",
        heads=lambda settings: nn.Linear(16 * settings.embed_dim, 1),
        heads_name="mean_heads",
    )
    monkeypatch.setitem(DISRUPTIONS, "half", disruption)
    monkeypatch.setitem(OBJECTIVES, "mean", objective)
    monkeypatch.setitem(IMAGE_METRICS, "near", ImageMetric("Near voxels", near, unit="share", decimals=4))


def test_a_run_disrupts_learns_and_is_measured_by_them(added, tiny_store, tiny_settings, tmp_path):
    settings = tiny_settings | {"disruption": "half", "max_steps": 4, "save_every": 2, "val_every": 2}
    settings |= {"contrastive_weight": 0.0, "dense_weight": 0.0, "feature_weight": 0.0}
    settings |= {"repair_from": "full"}  # so that there are no errors at lower resolutions
    whole = dae3d.pretrain(data=tiny_store, out=tmp_path / "whole", **settings)
    found = rows(whole)
    for step in range(1, 5):
        expected = found[step, "train/l1"] + 0.25 * found[step, "train/mean"]
        assert math.isclose(found[step, "train/loss"], expected, rel_tol=1e-4)
    assert found[4, "val/loss"] == found[4, "val/l1"]
    # At least the half that was not lost is as it was.
    assert all(0.5 <= found[0, f"baseline/near/disrupted/{kind}"] <= 1 for kind in ("ct", "t1"))
    assert all(0 <= found[4, f"val/near/{kind}"] <= 1 for kind in ("ct", "t1"))
    checkpoint, _ = find_checkpoints(whole / "checkpoints")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert state["mean_heads.weight"].shape == (1, 16 * tiny_settings["embed_dim"])
    part = dae3d.pretrain(data=tiny_store, out=tmp_path / "part", **settings)
    find_checkpoints(part / "checkpoints")[0].unlink()
    dae3d.pretrain(out=part, resume=True)
    assert_same_run(part, whole)
    dae3d.report(run=whole)
    page = (whole / "report.html").read_text()
    assert "the first half of every crop" in page
    assert 'aria-label="Mean. training from' in page
    assert '<th class="number">Near voxels, share</th>' in page
    assert 'aria-label="Near voxels, share. ' in page


def test_without_it_the_name_is_refused_with_those_there_are(tiny_store, tmp_path):
    with pytest.raises(SettingsError, match=r"disruption: must be one of all, .*varied"):
        dae3d.pretrain(data=tiny_store, out=tmp_path / "run", disruption="half")
