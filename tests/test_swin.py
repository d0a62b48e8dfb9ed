"""Our Swin stages against MONAI's: the same parameters, the same results and gradients, another way there."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets.swin_unetr import BasicLayer, PatchMergingV2, compute_mask, get_window_size

from dae3d.models.attention import attention
from dae3d.models.swin import SwinStage
from dae3d.models.swin_unetr import PatchMerging
from dae3d.models.windows import into_windows, out_of_windows, windows

CPU = torch.device("cpu")


def pair(dim: int, heads: int, window: int) -> tuple[BasicLayer, SwinStage]:
    """MONAI's stage and ours, with the same random weights."""
    torch.manual_seed(0)
    theirs = BasicLayer(
        dim=dim,
        depth=2,
        num_heads=heads,
        window_size=(window,) * 3,
        drop_path=[0.0, 0.0],
        qkv_bias=True,
        downsample=PatchMergingV2,
    )
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = SwinStage(dim, 2, heads, window, PatchMergingV2(dim))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize(
    "sides",
    [(14, 14, 14), (16, 16, 16), (9, 7, 5), (3, 3, 3), (20, 4, 8), (2, 2, 2)],
    ids=lambda sides: "x".join(map(str, sides)),
)
def test_results_and_gradients_are_monais(sides):
    theirs, ours = pair(dim=8, heads=2, window=7)
    image = torch.randn(2, 8, *sides)
    mine, yours = image.clone().requires_grad_(), image.clone().requires_grad_()
    expected, found = theirs(yours), ours(mine)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-3, atol=1e-3)
    for (name, parameter), other in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        largest = float(parameter.grad.abs().max())
        torch.testing.assert_close(other.grad, parameter.grad, rtol=0, atol=1e-4 * largest, msg=name)


@pytest.mark.parametrize("sides", [(6, 4, 8), (5, 4, 3), (1, 1, 1)], ids=str)
def test_patches_merge_as_monais_do(sides):
    theirs, ours = PatchMergingV2(6), PatchMerging(6)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, *sides, 6)
    mine, yours = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = ours(mine), theirs(yours)
    assert torch.equal(found, expected)
    weight = torch.randn_like(expected)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(mine.grad, yours.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_gradients_results_are_the_same(dtype):
    theirs, ours = pair(dim=8, heads=2, window=4)
    image = torch.randn(1, 8, 10, 8, 6)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = ours(image)
    expected = theirs(image).detach()
    # bfloat16 has 8 bits of precision.
    within = 1e-4 if dtype == torch.float32 else 0.05 * float(expected.abs().max())
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=within)


def test_under_autocast_it_trains_as_monais_does():
    theirs, ours = pair(dim=8, heads=2, window=4)
    image = torch.randn(1, 8, 10, 8, 6)
    gradients = []
    for stage in (theirs, ours):
        with torch.autocast("cpu", torch.bfloat16):
            stage(image).float().square().mean().backward()
        gradients.append([parameter.grad for parameter in stage.parameters()])
    for expected, found in zip(*gradients, strict=True):
        assert torch.nn.functional.cosine_similarity(expected.flatten(), found.flatten(), dim=0) > 0.98


def test_recomputed_activations_give_the_same_gradients():
    _, kept = pair(dim=8, heads=2, window=4)
    recomputed = SwinStage(8, 2, 2, 4, PatchMergingV2(8), checkpoint_activations=True)
    recomputed.load_state_dict(kept.state_dict())
    image = torch.randn(1, 8, 10, 8, 6)
    for stage in (kept, recomputed):
        stage(image).square().sum().backward()
    for one, other in zip(kept.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.integers(1, 11)] * 3), st.integers(1, 3), st.integers(1, 5), st.booleans(), st.booleans()
)
def test_windows_hold_every_token_once_and_give_it_back(sides, batch, window, shifted, gradients):
    where = windows(batch, sides, window, shifted, CPU)
    count = batch * int(np.prod(sides))
    rows = torch.arange(1.0, count + 1)[:, None].requires_grad_(gradients)
    placed = into_windows(rows, torch.zeros(1), where)
    real = placed[placed > 0]
    assert sorted(real.tolist()) == list(range(1, count + 1))
    assert len(placed) - len(real) == len(where.padding)
    assert torch.equal(out_of_windows(placed, where), rows)
    if gradients:
        out_of_windows(placed, where).sum().backward()
        assert torch.equal(rows.grad, torch.ones_like(rows))


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(1, 11)] * 3), st.integers(2, 5))
def test_tokens_are_kept_apart_as_monai_does(sides, window):
    sizes, shifts = get_window_size(sides, (window,) * 3, (window // 2,) * 3)
    padded = [-(-side // size) * size for side, size in zip(sides, sizes, strict=True)]
    where = windows(1, sides, window, True, CPU)
    expected = compute_mask(padded, sizes, shifts, CPU)
    if not any(shifts):
        expected = torch.zeros_like(expected)
    found = torch.cat(
        [
            (torch.zeros(where.tokens, where.tokens) if mask is None else mask).expand(stop - start, -1, -1)
            for start, stop, mask in where.groups
        ]
    )
    # Windows are in another order; a window is known by the tokens it holds, and these by their numbers.
    numbers = torch.arange(1, int(np.prod(sides)) + 1).view(sides)
    pads = [(0, full - side) for full, side in zip(padded, sides, strict=True)]
    rolled = np.roll(np.pad(numbers.numpy(), pads), [-shift for shift in shifts], (0, 1, 2))
    starts = [range(0, full, size) for full, size in zip(padded, sizes, strict=True)]
    theirs = {}
    for number, corner in enumerate(itertools.product(*starts)):
        box = tuple(slice(start, start + size) for start, size in zip(corner, sizes, strict=True))
        theirs[tuple(rolled[box].ravel().tolist())] = expected[number]
    members = (where.source + 1).index_fill(0, where.padding, 0).view(-1, where.tokens)
    assert len(theirs) == len(members)
    for tokens, mask in zip(members.tolist(), found, strict=True):
        assert torch.equal(mask, theirs[tuple(tokens)])


def test_attention_is_its_definition():
    random = torch.Generator().manual_seed(3)
    qkv = torch.randn(5, 9, 3, 2, 4, generator=random, dtype=torch.float32)
    bias = torch.randn(2, 9, 9, generator=random)
    mask = torch.where(torch.rand(9, 9, generator=random) < 0.3, -100.0, 0.0)
    groups = windows(1, (4, 4, 4), 2, False, CPU).groups
    groups = [groups[0]._replace(stop=3), groups[0]._replace(start=3, stop=5, mask=mask)]
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / 2 + bias
    scores[3:] += mask
    expected = (scores.softmax(-1) @ v).transpose(1, 2)
    for with_gradients in (True, False):
        with torch.set_grad_enabled(with_gradients):
            found = attention(qkv, bias, groups)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
