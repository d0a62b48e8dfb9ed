"""Our convolution blocks against MONAI's and PyTorch's, values and gradients, in float64."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import nn
from torch.nn import functional

from dae3d.models.kernels.convolution import Convolution
from dae3d.models.kernels.norm import NormActivation
from dae3d.models.swin_unetr.blocks import with_our_layers

pytestmark = pytest.mark.slow

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last_3d}


def assert_alike(ours, theirs, *inputs, **way):
    """Two ways from the same inputs give the same values, and gradients of inputs and parameters."""
    found_inputs = [x.clone().requires_grad_() for x in inputs]
    exact_inputs = [x.double().requires_grad_() for x in inputs]
    found, exact = ours(*found_inputs, **way), theirs.double()(*exact_inputs, **way)
    weights = torch.rand(exact.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    (found * weights).sum().backward()
    (exact * weights.double()).sum().backward()
    pairs = [(found, exact)] + [(a.grad, b.grad) for a, b in zip(found_inputs, exact_inputs, strict=True)]
    exact_parameters = dict(theirs.named_parameters())
    pairs += [(a.grad, exact_parameters[name].grad) for name, a in ours.named_parameters()]
    for value, wanted in pairs:
        scale = wanted.abs().max().item()
        torch.testing.assert_close(value.double(), wanted, rtol=0, atol=1e-4 * scale)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("channels", "made", "side", "options"),
    [
        (6, 5, 12, {"kernel_size": 1}),
        (1, 5, 12, {"kernel_size": 1, "bias": False}),
        (6, 1, 12, {"kernel_size": 1}),
        (1, 4, 12, {"kernel_size": 3, "padding": 1}),
        (1, 4, 12, {"kernel_size": 3, "padding": 1, "stride": 2}),
        (1, 4, 13, {"kernel_size": (3, 1, 5), "padding": (0, 1, 2), "stride": (2, 1, 3)}),
        (6, 5, 12, {"kernel_size": 3, "padding": 1}),
        (6, 5, 12, {"kernel_size": 1, "stride": 2}),
        (6, 5, 2, {"kernel_size": 3, "padding": 1}),
        (6, 5, 2, {"kernel_size": 3, "padding": (2, 1, 0), "stride": 2}),
        (1, 4, 12, {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"}),
    ],
    ids=str,
)
def test_a_convolution_is_pytorchs(threads, layout, batch, channels, made, side, options):
    torch.manual_seed(0)
    theirs = nn.Conv3d(channels, made, **options)
    ours = Convolution(channels, made, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(batch, channels, side, side + 1, side + 2).to(memory_format=LAYOUTS[layout])
    assert_alike(ours, theirs, x)


@pytest.mark.parametrize("kernel", [1, 3])
def test_parts_stand_for_their_concatenation(kernel):
    torch.manual_seed(0)
    ours = Convolution(7, 5, kernel, padding=kernel // 2)
    parts = [torch.randn(2, channels, 6, 7, 8) for channels in (1, 4, 2)]
    exact = copy.deepcopy(ours).double()
    whole = functional.conv3d(torch.cat(parts, dim=1).double(), exact.weight, exact.bias, padding=kernel // 2)
    torch.testing.assert_close(ours(*parts).double(), whole, rtol=0, atol=1e-5)


def norm(x):
    return (x - x.mean((2, 3, 4), keepdim=True)) / (
        x.var((2, 3, 4), keepdim=True, correction=0) + 1e-5
    ).sqrt()


class Defined(nn.Module):
    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x, residual=None, normalise_residual=False):
        total = norm(x)
        if residual is not None:
            total = total + (norm(residual) if normalise_residual else residual)
        return torch.where(total > 0, total, self.slope * total)


@pytest.mark.parametrize("layout", [*LAYOUTS, "mixed"])
@pytest.mark.parametrize("shape", [(1, 6, 9, 8, 7), (2, 12, 16, 16, 16), (2, 300, 4, 4, 4)], ids=str)
@pytest.mark.parametrize("normalise_residual", [None, False, True])
def test_a_norm_with_its_sum_and_activation(layout, shape, normalise_residual):
    random = torch.Generator().manual_seed(0)
    inputs = [5 + 3 * torch.randn(shape, generator=random)]
    if normalise_residual is not None:
        inputs.append(2 * torch.randn(shape, generator=random) - 7)
    if layout == "mixed":
        inputs[0] = inputs[0].to(memory_format=torch.channels_last_3d)
    else:
        inputs = [x.to(memory_format=LAYOUTS[layout]) for x in inputs]
    way = {} if normalise_residual is None else {"normalise_residual": normalise_residual}
    assert_alike(NormActivation(0.1), Defined(0.1), *inputs, **way)


def test_a_norm_in_bfloat16_stays_near_and_keeps_the_types():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 8, 8, 8, generator=random).to(torch.bfloat16)
    x = x.to(memory_format=torch.channels_last_3d).requires_grad_()
    residual = torch.randn(2, 8, 8, 8, 8, generator=random).requires_grad_()
    made = NormActivation(0.01)(x, residual)
    made.float().sum().backward()
    assert (made.dtype, x.grad.dtype, residual.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    wanted = Defined(0.01)(x.detach().double(), residual.detach().double())
    torch.testing.assert_close(made.double(), wanted, rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(residual.grad, torch.where(wanted > 0, 1.0, 0.01), rtol=2**-7, atol=0)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("side", [2, 4, 9])
@pytest.mark.parametrize("channels", [(1, 6), (4, 4), (6, 3), (96, 48)], ids=str)
def test_a_residual_block_is_monais(threads, channels, side, batch):
    torch.manual_seed(0)
    theirs = UnetrBasicBlock(3, *channels, 3, 1, norm_name="instance", res_block=True)
    ours = with_our_layers(copy.deepcopy(theirs))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_alike(ours, theirs, torch.randn(batch, channels[0], side, side + 1, side))


def test_a_block_that_doubles_the_sides_is_monais():
    torch.manual_seed(0)
    theirs = UnetrUpBlock(3, 6, 4, 3, 2, norm_name="instance", res_block=True)
    ours = with_our_layers(copy.deepcopy(theirs))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_alike(ours, theirs, torch.randn(2, 6, 4, 4, 5), torch.randn(2, 4, 8, 8, 10))


def test_gradients_in_bfloat16_come_from_memory_that_was_written():
    # Memory is handed out filled with 3e38, and the lowest feature map is 2^3.
    code = """
import torch
from dae3d.models.network import RepairNetwork
from dae3d.models.swin_unetr import SwinArchitecture
torch.manual_seed(0)
network = RepairNetwork(SwinArchitecture(embed_dim=12, heads=(1, 1, 2, 2), window=2))
image = torch.rand(1, 1, 64, 64, 64)
with torch.autocast("cpu", torch.bfloat16):
    (network(image).float() - image).abs().mean().backward()
print(max(p.grad.abs().max().item() for p in network.parameters() if p.grad is not None))
"""
    filled = {**os.environ, "MALLOC_PERTURB_": "128"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=filled, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 100
