"""The repair of features."""

import numpy as np
import pytest
import torch
from torch import nn

from dae3d.objectives.features import FeatureHeads, feature_loss


class Same(nn.Module):
    """Predicts what it gets."""

    def forward(self, x):
        return x


def smooth_l1(error):
    size = np.abs(error)
    return np.where(size < 1, size**2 / 2, size - 0.5)


def maps(seed, *sides):
    """Two stages of two samples, the second at half the resolution and of twice the channels."""
    random = np.random.default_rng(seed)
    shapes = [(2, 3, *sides), (2, 6, *(side // 2 for side in sides))]
    return [torch.from_numpy(random.normal(1, 2, shape).astype(np.float32)) for shape in shapes]


@pytest.mark.parametrize("deep", [16, 32, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_the_loss_is_that_of_the_definition(padded, deep):
    """Whatever the strides of the last axis: 4, 8 or 1 voxels a token of the first stage, 4 of the others."""
    stages, wanted = maps(0, 8, 8, 4), maps(1, 8, 8, 4)
    inside = None
    if padded:
        inside = torch.zeros(2, 1, 32, 32, deep, dtype=torch.bool)
        inside[0, :, :20] = True
        inside[1, :, :, 8:] = True
    found = feature_loss(stages, wanted, [Same(), Same()], inside)
    expected = np.zeros(2)
    for stage, teacher in zip(stages, wanted, strict=True):
        strides = [side // count for side, count in zip((32, 32, deep), stage.shape[2:], strict=True)]
        for sample in range(2):
            goal = teacher[sample].double().numpy()
            mean, deviation = goal.mean((1, 2, 3), keepdims=True), goal.std((1, 2, 3), keepdims=True)
            error = smooth_l1(stage[sample].double().numpy() - (goal - mean) / deviation).mean(0)
            weight = np.ones(error.shape)
            if padded:
                x, y, z = error.shape
                a, b, c = strides
                blocks = inside[sample, 0].double().numpy().reshape(x, a, y, b, z, c)
                weight = blocks.mean((1, 3, 5))
            expected[sample] += np.average(error, weights=weight)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_a_map_of_a_single_place_is_left_out():
    stages, wanted = maps(2, 2, 2, 2), maps(3, 2, 2, 2)
    assert wanted[1].shape[2:] == (1, 1, 1)
    both = feature_loss(stages, wanted, [Same(), Same()], None)
    torch.testing.assert_close(both, feature_loss(stages[:1], wanted[:1], [Same()], None))


def test_a_crop_that_lies_outside_the_scan_altogether_has_no_loss():
    stages, wanted = maps(4, 4, 4, 4), maps(5, 4, 4, 4)
    inside = torch.zeros(2, 1, 16, 16, 16, dtype=torch.bool)
    inside[1] = True
    found = feature_loss(stages, wanted, [Same(), Same()], inside)
    assert found[0] == 0
    assert found[1] > 0


def test_the_head_of_a_stage_that_is_a_single_token_does_not_learn():
    strides = [(4, 4, 2), (8, 8, 4), (16, 16, 8)]
    for roi, learning in [
        ((16, 16, 8), [True, True, False]),
        ((16, 32, 8), [True] * 3),
        ((8, 8, 4), [True, False, False]),
    ]:
        heads = FeatureHeads([2, 4, 8], strides, roi)
        assert [head[0].weight.requires_grad for head in heads] == learning


@pytest.mark.parametrize("roi", [32, 64])
def test_heads_learn_to_predict_and_give_the_stages_gradients(roi):
    torch.manual_seed(0)
    shapes = [(2, 2 * 2**stage, *(roi // 4 // 2**stage,) * 3) for stage in range(4)]
    wanted = [torch.randn(shape) for shape in shapes]
    stages = [torch.randn(shape, requires_grad=True) for shape in shapes]
    heads = FeatureHeads([2, 4, 8, 16], [(stride,) * 3 for stride in (4, 8, 16, 32)], (roi,) * 3)
    learning = [head[0].weight.requires_grad for head in heads]
    assert learning == [True, True, True, roi > 32]
    parameters = [parameter for parameter in heads.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam([*parameters, *stages], lr=0.02)
    first = feature_loss(stages, wanted, heads, None).mean().item()
    for _ in range(150):
        loss = feature_loss(stages, wanted, heads, None).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < first / 2
    with_gradients = [stage.grad is not None and bool(stage.grad.any()) for stage in stages]
    assert with_gradients == learning
    # Of processes that wait for gradients, none may be missing.
    assert all(parameter.grad is not None for parameter in parameters)
