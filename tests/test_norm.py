"""Instance norm in the channels-last layout: values and gradients by their definition, in float64."""

import pytest
import torch
from torch import Tensor

from dae3d.models.kernels.norm import InstanceNorm

# Rows of 36 voxels, 3072 of them: more than are added up at once, and no multiple of that.
MANY = (12, 48, 48, 48)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last_3d}


def defined(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    centred = x - x.mean((2, 3, 4), keepdim=True)
    normal = centred / (centred.square().mean((2, 3, 4), keepdim=True) + 1e-5).sqrt()
    return normal if weight is None else normal * weight.view(-1, 1, 1, 1) + bias.view(-1, 1, 1, 1)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("gradient_layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(6, 9, 8, 7), (1, 4, 4, 4), (300, 8, 8, 8), MANY], ids=str)
def test_values_and_gradients(batch, affine, gradient_layout, shape):
    random = torch.Generator().manual_seed(0)
    norm = InstanceNorm(shape[0], affine=affine)
    if affine:
        torch.nn.init.normal_(norm.weight, generator=random)
        torch.nn.init.normal_(norm.bias, generator=random)
    # Far from zero, where a difference of squares would lose all digits.
    values = 1000 + 3 * torch.randn(batch, *shape, generator=random)
    weight = torch.randn(batch, *shape, generator=random)
    x = values.to(memory_format=torch.channels_last_3d).requires_grad_()
    found = norm(x)
    found.backward(weight.to(memory_format=LAYOUTS[gradient_layout]))
    exact = values.double().requires_grad_()
    parameters = [p.detach().double().requires_grad_() for p in norm.parameters()] or [None, None]
    expected = defined(exact, *parameters)
    expected.backward(weight.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-3, atol=1e-3)
    for parameter, wanted in zip(norm.parameters(), parameters, strict=False):
        torch.testing.assert_close(parameter.grad.double(), wanted.grad, rtol=1e-3, atol=1e-2)


def test_the_layout_stays_what_it_is():
    norm = InstanceNorm(4)
    x = torch.randn(2, 4, 6, 6, 6)
    assert norm(x).is_contiguous()
    turned = norm(x.to(memory_format=torch.channels_last_3d))
    assert turned.is_contiguous(memory_format=torch.channels_last_3d)
    assert not turned.is_contiguous()


def test_a_single_voxel_becomes_zero():
    x = torch.randn(2, 4, 1, 1, 1, requires_grad=True)
    norm = InstanceNorm(4)
    assert norm(x).abs().max() == 0
    norm(x).sum().backward()
    assert x.grad.abs().max() == 0
