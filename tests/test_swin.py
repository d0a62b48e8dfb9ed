"""Our Swin stages against MONAI's, and against attention by its definition where MONAI's is not that."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets.swin_unetr import BasicLayer, PatchMergingV2, compute_mask, get_window_size

from dae3d.models.swin_unetr.attention import attention
from dae3d.models.swin_unetr.encoder import PatchMerging
from dae3d.models.swin_unetr.stage import SwinStage, WindowAttention
from dae3d.models.swin_unetr.windows import into_windows, out_of_windows, windows

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
    ours = SwinStage(dim, 2, heads, window, PatchMergingV2(dim), edges="reference")
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
    recomputed = SwinStage(8, 2, 2, 4, PatchMergingV2(8), checkpoint_activations=True, edges="reference")
    recomputed.load_state_dict(kept.state_dict())
    image = torch.randn(1, 8, 10, 8, 6)
    for stage in (kept, recomputed):
        stage(image).square().sum().backward()
    for one, other in zip(kept.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@settings(max_examples=40)
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


@settings(max_examples=25)
@given(st.tuples(*[st.integers(1, 11)] * 3), st.integers(2, 5))
def test_tokens_are_kept_apart_as_monai_does(sides, window):
    sizes, shifts = get_window_size(sides, (window,) * 3, (window // 2,) * 3)
    padded = [-(-side // size) * size for side, size in zip(sides, sizes, strict=True)]
    where = windows(1, sides, window, True, CPU, "reference")
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


# Edges of a volume: each pair of tokens by its own offset, and no attention to padding


def plain_attention(layer, x, window, shifted):
    """Window attention by its definition, over all pairs of tokens, without windows, padding or rolling.

    Along each axis windows are cells of `window` tokens, or of all where there are fewer, which begin half a
    window earlier where they are shifted; a token attends to those in its cell.
    """
    sides, dim = x.shape[1:4], x.shape[-1]
    places = torch.tensor(list(itertools.product(*map(range, sides))))
    sizes = torch.tensor([min(side, window) for side in sides])
    starts = torch.tensor([window // 2 if shifted and side > window else 0 for side in sides])
    cells = torch.div(places - starts, sizes, rounding_mode="floor")
    together = (cells[:, None] == cells[None]).all(-1)
    # The table has a row for each offset from -(window - 1) to window - 1, along the last axis first.
    away = places[:, None] - places[None] + window - 1
    side = 2 * window - 1
    rows = (away[..., 0] * side**2 + away[..., 1] * side + away[..., 2]).clamp(0, side**3 - 1)
    bias = layer.relative_position_bias_table[rows].permute(2, 0, 1)
    q, k, v = layer.qkv(x.flatten(1, 3)).unflatten(-1, (3, layer.heads, -1)).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / (dim // layer.heads) ** 0.5 + bias
    weights = scores.masked_fill(~together, -torch.inf).softmax(-1)
    return layer.proj((weights @ v).transpose(1, 2).flatten(2)).view(x.shape)


# With windows of 4: padded on all axes, cut on all, cut on some, both, neither.
EDGES = [(10, 6, 5), (3, 3, 3), (8, 8, 3), (9, 2, 7), (1, 5, 11), (8, 4, 12), (5, 5, 5)]


def made_layer(window, edges="exact", dtype=torch.float64):
    torch.manual_seed(1)
    layer = WindowAttention(8, 2, window, edges)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer.to(dtype)


def with_gradients(layer, attend, x):
    x = x.clone().requires_grad_()
    layer.zero_grad()
    found = attend(x)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (found * weight.to(found.dtype)).sum().backward()
    return [found.detach(), x.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("sides", EDGES, ids=lambda sides: "x".join(map(str, sides)))
def test_exact_edges_are_attention_by_its_definition(sides, shifted):
    layer = made_layer(4)
    x = torch.randn(2, *sides, 8, dtype=torch.float64)
    where = windows(2, sides, 4, shifted, CPU)
    expected = with_gradients(layer, lambda x: plain_attention(layer, x, 4, shifted), x)
    found = with_gradients(layer, lambda x: layer(x, where), x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    single = made_layer(4, dtype=torch.float32)
    rounded = with_gradients(single, lambda x: single(x, where), x.float())
    for one, other in zip(rounded, expected, strict=True):
        largest = float(other.abs().max())
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-5 * max(largest, 1))
    with torch.inference_mode():
        torch.testing.assert_close(single(x.float(), where), rounded[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_exact_edges_in_half_precision(dtype):
    layer, sides = made_layer(4), (9, 6, 3)
    x = torch.randn(2, *sides, 8, dtype=torch.float64)
    expected = plain_attention(layer, x, 4, True)
    single, where = made_layer(4, dtype=torch.float32), windows(2, sides, 4, True, CPU)
    for training in (False, True):
        with torch.set_grad_enabled(training), torch.autocast("cpu", dtype):
            found = single(x.float(), where)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.05 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shifted", [False, True])
def test_nothing_depends_on_what_padding_holds(dtype, shifted):
    sides = (10, 6, 5)
    where = windows(1, sides, 4, shifted, CPU)
    assert len(where.padding)
    random = torch.Generator().manual_seed(4)
    rows = torch.randn(300, 24, generator=random, dtype=dtype)
    bias = torch.randn(2, 64, 64, generator=random, dtype=dtype)
    results = []
    for padding in (torch.zeros(24), torch.full((24,), 30.0), torch.randn(24, generator=random)):
        padding = padding.to(dtype).requires_grad_()
        leaves = [rows.clone().requires_grad_(), bias.clone().requires_grad_()]
        qkv = into_windows(leaves[0], padding, where).view(-1, 64, 3, 2, 4)
        found = out_of_windows(attention(qkv, leaves[1], where.groups).reshape(-1, 8), where)
        found.sin().sum().backward()
        # Padding as a query has weights, and as a key almost none: exp(-87) is all that is left.
        assert padding.grad.abs().max() < 1e-30
        results.append([found.detach(), *(leaf.grad for leaf in leaves)])
    assert all(torch.isfinite(each).all() for each in results[0])
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, same, rtol=1e-6, atol=1e-6)


def test_the_published_edges_are_other_biases_and_attention_to_padding():
    # A grid of 3^3 under windows of 7: few pairs of tokens take the entry of their own offset.
    published = made_layer(7, "reference").relative_position_index[:27, :27]
    places = np.array(list(itertools.product(range(3), repeat=3)))
    own = ((places[:, None] - places[None] + 6) * [169, 13, 1]).sum(-1)
    assert (published.numpy() == own).mean() < 0.2
    for sides, differ in [((3, 3, 3), True), ((9, 8, 8), True), ((8, 4, 12), False), ((4, 4, 4), False)]:
        x = torch.randn(1, *sides, 8, dtype=torch.float64)
        exact, reference = (
            made_layer(4, edges)(x, windows(1, sides, 4, True, CPU, edges))
            for edges in ("exact", "reference")
        )
        assert torch.allclose(exact, reference) != differ


def test_a_grid_first_seen_in_inference_mode_can_be_trained_on():
    stage = SwinStage(8, 2, 2, 5, PatchMergingV2(8))
    image = torch.randn(1, 8, 3, 4, 6)
    with torch.inference_mode():
        stage(image)
    stage(image).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in stage.parameters())


@settings(max_examples=40)
@given(st.tuples(*[st.integers(1, 11)] * 3), st.integers(2, 5), st.booleans())
def test_every_window_holds_a_token_and_no_token_sees_padding(sides, window, shifted):
    where = windows(2, sides, window, shifted, CPU)
    padded = torch.zeros(len(where.source), dtype=torch.bool).index_fill(0, where.padding, True)
    padded = padded.view(-1, where.tokens)
    assert not padded.all(1).any()
    assert [where.groups[0].start, where.groups[-1].stop] == [0, len(padded)]
    for start, stop, mask in where.groups:
        mask = torch.zeros(where.tokens, where.tokens) if mask is None else mask
        for hidden in padded[start:stop]:
            assert (mask[:, hidden] < -1000).all()
            assert (mask[:, ~hidden] >= -100).all()
            assert (mask[~hidden][:, ~hidden].diagonal() == 0).all()
