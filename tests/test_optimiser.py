"""Which parameters decay, and the learning rate of each step."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from dae3d.models.network import RepairNetwork
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.training.optimiser import learning_rate, parameter_groups
from dae3d.training.pretrain_settings import PretrainSettings

SETTINGS = PretrainSettings(
    data="s", out="r", max_steps=200, warmup_steps=40, lr=1e-4, min_lr=1e-5, warmup_lr=1e-6
)


def rate(step, settings):
    return learning_rate(step, settings, settings.schedule(1))


def test_matrices_and_convolutions_decay_and_nothing_else():
    network = RepairNetwork(SwinArchitecture(embed_dim=4, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=2))
    groups = parameter_groups(network, 0.05)
    decayed, plain = ([p for g in groups if g["weight_decay"] == w for p in g["params"]] for w in (0.05, 0.0))
    assert {group["scale"] for group in groups} == {1.0}
    kinds = (nn.Linear, nn.Conv3d, nn.ConvTranspose3d)
    expected = {id(m.weight) for m in network.modules() if isinstance(m, kinds)}
    assert {id(parameter) for parameter in decayed} == expected
    everything = {id(parameter) for parameter in network.parameters()}
    assert {id(parameter) for parameter in plain} == everything - expected
    assert len(decayed) + len(plain) == len(everything)
    names = {name for name, parameter in network.named_parameters() if id(parameter) not in expected}
    assert {"encoder.mask_token", "encoder.patch_embed.norm1.weight"} <= names
    assert "encoder.stages.0.blocks.0.attn.relative_position_bias_table" in names


def test_what_is_frozen_is_in_no_group():
    network = RepairNetwork(SwinArchitecture(embed_dim=4, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=2))
    network.encoder.requires_grad_(False)
    learning = {id(p) for group in parameter_groups(network, 0.05) for p in group["params"]}
    assert learning == {id(p) for p in network.decoder.parameters()}


def test_a_stage_deeper_learns_more_slowly():
    network = RepairNetwork(SwinArchitecture(embed_dim=4, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=2))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    expected = {"encoder.patch_embed": 0.5**5, "encoder.mask_token": 0.5**5, "decoder": 1.0}
    expected |= {f"encoder.stages.{i}": 0.5 ** (4 - i) for i in range(4)}
    for group in parameter_groups(network, 0.05, layer_decay=0.5):
        for parameter in group["params"]:
            [scale] = [v for start, v in expected.items() if names[id(parameter)].startswith(start)]
            assert group["scale"] == scale


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine_from_there():
    # Warm-up of 40 steps from 1e-6 to 1e-4; then 160 steps of half a cosine to 1e-5.
    assert rate(0, SETTINGS) == 1e-6
    assert rate(20, SETTINGS) == pytest.approx(5.05e-5)
    assert rate(39, SETTINGS) == pytest.approx(1e-6 + 39 * 2.475e-6)
    assert rate(40, SETTINGS) == pytest.approx(1e-4)
    # A quarter of the way (45 degrees), the middle, three quarters, the end.
    assert rate(80, SETTINGS) == pytest.approx(1e-5 + 9e-5 * (1 + 0.5**0.5) / 2)
    assert rate(120, SETTINGS) == pytest.approx(5.5e-5)
    assert rate(160, SETTINGS) == pytest.approx(1e-5 + 9e-5 * (1 - 0.5**0.5) / 2)
    assert rate(200, SETTINGS) == pytest.approx(1e-5)
    assert rate(250, SETTINGS) == pytest.approx(1e-5)
    rates = [rate(step, SETTINGS) for step in range(201)]
    assert rates.index(max(rates)) == 40
    assert sorted(rates[:41]) == rates[:41]
    assert sorted(rates[40:], reverse=True) == rates[40:]


def test_as_published_the_cosine_has_run_since_the_start():
    settings = SETTINGS.model_copy(update={"cosine_from": "start"})
    assert rate(0, settings) == 1e-6
    assert rate(20, settings) == pytest.approx((1e-6 + 1e-4) / 2)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-4)
    cosine = CosineAnnealingLR(optimizer, T_max=200, eta_min=1e-5)
    expected = []
    for _ in range(201):
        expected.append(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()
    rates = [rate(step, settings) for step in range(201)]
    assert rates[40:] == pytest.approx(expected[40:], rel=1e-6)
    assert rates[200] == pytest.approx(1e-5)
    assert rate(250, settings) == pytest.approx(1e-5)


@pytest.mark.parametrize("cosine_from", ["start", "warmup"])
def test_without_warm_up_it_starts_at_the_highest(cosine_from):
    settings = SETTINGS.model_copy(update={"warmup_steps": 0, "cosine_from": cosine_from})
    assert rate(0, settings) == pytest.approx(1e-4)
    assert rate(100, settings) == pytest.approx(5.5e-5)


@pytest.mark.parametrize("steps", [40, 41])
def test_a_run_as_long_as_its_warm_up_has_a_rate_for_every_step(steps):
    settings = SETTINGS.model_copy(update={"max_steps": steps})
    assert rate(39, settings) == pytest.approx(1e-6 + 39 * 2.475e-6)
    assert rate(40, settings) == pytest.approx(1e-4)
