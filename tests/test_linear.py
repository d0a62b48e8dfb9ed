"""Linear layers as convolutions: PyTorch's results and gradients, which float64 tells."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.blocks.mlp import MLPBlock
from torch import nn

from dae3d.models.kernels.linear import Linear
from dae3d.models.network import RepairNetwork
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.swin_unetr.blocks import with_our_layers


def results(layer, x, upstream):
    """The output, and the gradients of the input and of the parameters."""
    x = x.clone().requires_grad_()
    out = layer(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *layer.parameters()], upstream.to(out.dtype))]


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    wide=st.integers(1, 40),
    out=st.integers(1, 40),
    bias=st.booleans(),
    transposed=st.booleans(),
)
def test_results_and_gradients_are_those_of_float64(shape, wide, out, bias, transposed):
    torch.manual_seed(0)
    ours = Linear(wide, out, bias=bias)
    plain = nn.Linear(wide, out, bias=bias).double()
    plain.load_state_dict(ours.state_dict())
    x, upstream = torch.randn(*shape, wide), torch.randn(*shape, out)
    if transposed and len(shape) > 1:
        x, upstream = x.transpose(0, 1), upstream.transpose(0, 1)
    found = results(ours, x, upstream)
    expected = results(plain, x.double(), upstream)
    assert found[0].dtype == torch.float32
    for value, truth in zip(found, expected, strict=True):
        assert value.shape == truth.shape
        # A gradient is a sum over all tokens, which may cancel.
        largest = float(truth.abs().max())
        torch.testing.assert_close(value.double(), truth, rtol=1e-4, atol=1e-5 * max(largest, 1))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("wide", "out"), [(12, 48), (48, 12), (96, 24), (24, 24)])
def test_many_tokens(wide, out, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        ours, plain = Linear(wide, out), nn.Linear(wide, out).double()
        plain.load_state_dict(ours.state_dict())
        x, upstream = torch.randn(2, 16, 17, 15, wide), torch.randn(2, 16, 17, 15, out)
        for value, truth in zip(
            results(ours, x, upstream), results(plain, x.double(), upstream), strict=True
        ):
            torch.testing.assert_close(value.double(), truth, rtol=1e-4, atol=1e-3)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("wide", "out"), [(12, 48), (48, 12), (96, 24)])
def test_autocast_rounds_as_pytorchs_own_does(wide, out):
    torch.manual_seed(0)
    ours, plain = Linear(wide, out), nn.Linear(wide, out)
    plain.load_state_dict(ours.state_dict())
    x, upstream = torch.randn(700, wide), torch.randn(700, out)
    exact = results(ours, x, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = results(ours, x, upstream.bfloat16())
        theirs = results(plain, x, upstream.bfloat16())
    assert [value.dtype for value in rounded] == [torch.bfloat16, *[torch.float32] * 3]
    for value, other, truth in zip(rounded, theirs, exact, strict=True):
        assert (value - truth).norm() < 0.01 * truth.norm()
        assert (value - truth).norm() < 1.2 * (other - truth).norm() + 1e-6


def test_float64_is_pytorchs_own():
    torch.manual_seed(0)
    ours, plain = Linear(12, 48), nn.Linear(12, 48).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(64, 12, dtype=torch.float64)
    assert torch.equal(ours.double()(x), plain(x))


def test_nothing_is_kept_for_no_gradient():
    ours = Linear(12, 48)
    with torch.no_grad():
        assert ours(torch.randn(5, 12)).grad_fn is None
    for parameter in ours.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(5, 12, requires_grad=True)
    ours(x).sum().backward()
    torch.testing.assert_close(x.grad, ours.weight.sum(0).expand(5, 12))
    assert ours.weight.grad is None


def test_blocks_of_monais_keep_their_parameters():
    block = MLPBlock(12, 48, dropout_mode="swin")
    parameters = dict(block.named_parameters())
    ours = with_our_layers(block)
    assert type(ours.linear1) is Linear
    assert {name: id(p) for name, p in ours.named_parameters()} == {n: id(p) for n, p in parameters.items()}


def test_the_network_has_no_other():
    network = RepairNetwork(SwinArchitecture(embed_dim=12, heads=(1, 2, 4, 8), window=4))
    kinds = {type(module) for module in network.modules() if isinstance(module, nn.Linear)}
    assert kinds == {Linear}
