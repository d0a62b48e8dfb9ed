"""A backbone of somebody else's, added from outside by a line, through the commands."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import dae3d
from dae3d.models.architecture import Architecture
from dae3d.models.backbones import BACKBONES
from dae3d.models.network import FeatureEncoder, RepairNetwork, Segmenter
from dae3d.training.optimiser import parameter_groups
from dae3d.training.pretrain_settings import PretrainSettings


class Encoder(nn.Module):
    """Five convolutions of stride 2."""

    def __init__(self, width, in_channels):
        super().__init__()
        widths = [in_channels, *(width * 2**level for level in range(5))]
        self.stages = nn.ModuleList(nn.Conv3d(a, b, 3, 2, 1) for a, b in itertools.pairwise(widths))

    def forward(self, image, channel_keep=None, token_mask=None):
        maps, x = [], image
        for number, stage in enumerate(self.stages):
            x = stage(x).relu()
            if number == 0 and channel_keep is not None:
                x = x * channel_keep
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """Each feature map, and a head on the finest that gives 2^3 voxels a place."""

    def __init__(self, width, out_channels):
        super().__init__()
        self.voxels = nn.ConvTranspose3d(width, out_channels, 2, 2)
        self.head = nn.Sequential(self.voxels)

    def features(self, image, hidden):
        return list(hidden)

    def images(self, features):
        return [self.voxels(features[0])]


@dataclass(frozen=True)
class Plain(Architecture):
    backbone: ClassVar[str] = "plain"
    width: int = 4

    multiple = (32, 32, 32)
    level_strides = tuple((stride,) * 3 for stride in (2, 4, 8, 16, 32))
    image_parameters = ("encoder.stages.0.weight",)
    above_half = ()
    units = (nn.Conv3d,)

    @property
    def level_channels(self):
        return tuple(self.width * 2**level for level in range(5))

    @property
    def decoder_channels(self):
        return self.level_channels[:2]

    def encoder(self, checkpoint_activations, repairs):
        return Encoder(self.width, self.in_channels)

    def decoder(self, checkpoint_activations, repairs):
        return Decoder(self.width, self.out_channels)

    def auxiliary_heads(self):
        return nn.ModuleList()

    def distance(self, name):
        return 5 - int(name.split(".")[2]) if name.startswith("encoder.") else 0


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setitem(BACKBONES, "plain", Plain)
    monkeypatch.setattr(
        PretrainSettings, "architecture", lambda self: Plain(repair_from=self.repair_from, width=4)
    )


@pytest.mark.parametrize("disruption", ["all", "mae", "varied"])
def test_it_is_pre_trained_with_every_loss_and_loaded_for_every_task(
    plain, tiny_store, tiny_settings, tmp_path, disruption
):
    given = {"max_steps": 2, "save_every": 1, "log_every": 1, "batch_size": 4, "disruption": disruption}
    run = dae3d.pretrain(data=tiny_store, out=tmp_path / "run", **tiny_settings | given)
    network = dae3d.load(run)
    assert type(network) is RepairNetwork
    assert network.architecture == Plain(repair_from=PretrainSettings.model_fields["repair_from"].default)
    image = torch.rand(1, 1, 32, 64, 32)
    with torch.inference_mode():
        assert network(image).shape == image.shape
        segmenter = dae3d.load(run, task="segmentation", classes=3, transfer="encoder")
        assert type(segmenter) is Segmenter
        assert segmenter(image).shape == (1, 3, 32, 64, 32)
        encoder = dae3d.load(run, task="encoder")
        assert type(encoder) is FeatureEncoder
        for one, other in zip(encoder(image), network.encode(image), strict=True):
            np.testing.assert_array_equal(one, other)
    scales = [group["scale"] for group in parameter_groups(network, 0.0, layer_decay=0.5)]
    assert sorted(set(scales)) == [0.5**5, 0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]
    figures = dae3d.check(run=run, device="cpu").figures
    assert figures.channels == {f"level{level}": 4 * 2**level for level in range(5)}
