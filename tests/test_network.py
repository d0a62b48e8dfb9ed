"""The networks as functions: shapes, gradients, memory layouts, intensities, order of octants, logits."""

import copy
import itertools

import pytest
import torch
from torch import nn

from dae3d.errors import Dae3dError
from dae3d.models.network import FeatureEncoder, RepairNetwork, Segmenter
from dae3d.models.swin_unetr import ReferencePatchMerging, SwinArchitecture

pytestmark = pytest.mark.slow

TINY = {"embed_dim": 4, "depths": (1, 2, 1, 1), "heads": (1, 1, 2, 2), "window": 2}


def tiny_network(**changes):
    torch.manual_seed(0)
    return RepairNetwork(SwinArchitecture(**(TINY | changes)))


def gradients(network, image, **given):
    """Gradients of a loss that uses both outputs, by parameter."""
    network.zero_grad()
    repaired, features = network.repair(image, **given)
    (repaired.square().mean() + features.square().mean()).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def nearly(a, b, within):
    """Whether two tensors differ by less than `within` deviations of the first."""
    return (a - b).abs().max() < within * a.std()


# Shapes


@pytest.mark.parametrize("shape", [(32, 32, 32), (64, 64, 64), (32, 64, 96)])
@pytest.mark.parametrize("merging", ["straight", "reference"])
@torch.inference_mode()
def test_the_output_has_the_shape_of_the_input(shape, merging):
    network = tiny_network(patch_merging=merging).eval()
    image = torch.rand(2, 1, *shape)
    repaired, features = network.repair(image)
    assert repaired.shape == image.shape
    assert features.shape == (2, 16 * 4)
    hidden = network.encoder(image)
    assert [tuple(h.shape[1:]) for h in hidden] == [
        (4 * 2**i, *(side // 2 ** (i + 1) for side in shape)) for i in range(5)
    ]
    assert torch.isfinite(repaired).all()


@torch.inference_mode()
def test_samples_of_a_batch_do_not_touch_each_other():
    network = tiny_network().eval()
    images = torch.rand(3, 1, 32, 32, 32)
    together = network.repair(images)
    for i in range(3):
        alone = network.repair(images[i : i + 1])
        torch.testing.assert_close(together[0][i : i + 1], alone[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together[1][i : i + 1], alone[1], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_masked_channels_are_zero_behind_the_patch_embedding():
    network = tiny_network().eval()
    image = torch.rand(2, 1, 32, 32, 32)
    keep = torch.ones(2, 4, 1, 1, 1)
    keep[0, 1] = keep[1, 3] = 0
    plain, masked = network.encoder(image)[0], network.encoder(image, keep)[0]
    assert not masked[0, 1].any()
    assert not masked[1, 3].any()
    assert torch.equal(masked[0, [0, 2, 3]], plain[0, [0, 2, 3]])
    assert torch.equal(masked[1, [0, 1, 2]], plain[1, [0, 1, 2]])


@torch.inference_mode()
def test_the_mask_token_takes_the_place_of_masked_tokens():
    network = tiny_network().eval()
    image = torch.rand(1, 1, 32, 32, 32)
    mask = torch.zeros(1, 1, 16, 16, 16, dtype=torch.bool)
    mask[..., :8, 3, 5] = True
    plain, masked = network.encoder(image)[0], network.encoder(image, token_mask=mask)[0]
    token = network.encoder.mask_token.expand_as(masked)
    where = mask.expand_as(masked)
    assert torch.equal(masked[where], token[where])
    assert torch.equal(masked[~where], plain[~where])


# Gradients


@pytest.mark.parametrize("side", [32, 64])
def test_every_parameter_but_the_mask_token_has_a_gradient(side):
    # Distributed training waits for a gradient of every parameter.
    network = tiny_network()
    found = gradients(network, torch.rand(2, 1, side, side, side))
    assert [name for name, gradient in found.items() if gradient is None] == ["encoder.mask_token"]
    assert all(torch.isfinite(gradient).all() for gradient in found.values() if gradient is not None)
    zero = [name for name, gradient in found.items() if gradient is not None and not gradient.any()]
    # In a 32^3 crop the bottleneck is one voxel, and what instance norm leaves of one voxel is 0.
    bottleneck = [f"decoder.bottleneck.layer.conv{i}.conv.weight" for i in (1, 2)]
    assert zero == (bottleneck if side == 32 else [])


def test_the_mask_token_has_one_where_tokens_are_masked():
    mask = torch.zeros(1, 1, 16, 16, 16, dtype=torch.bool)
    mask[..., :4] = True
    found = gradients(tiny_network(), torch.rand(1, 1, 32, 32, 32), token_mask=mask)
    assert found["encoder.mask_token"].any()


@pytest.mark.parametrize("training", [True, False])
def test_checkpointed_activations_change_nothing(training):
    network = tiny_network().train(training)
    torch.manual_seed(0)
    thrifty = RepairNetwork(SwinArchitecture(**TINY), checkpoint_activations=True).train(training)
    image = torch.rand(1, 1, 32, 32, 64)
    keep = (torch.rand(1, 4, 1, 1, 1) > 0.3).float()
    expected = network.repair(image, keep)
    for ours, theirs in zip(thrifty.repair(image, keep), expected, strict=True):
        assert torch.equal(ours, theirs)
    found, wanted = gradients(thrifty, image, channel_keep=keep), gradients(network, image, channel_keep=keep)
    for name, gradient in wanted.items():
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


def test_what_sharded_training_gathers_holds_nearly_all_weights():
    network = RepairNetwork(SwinArchitecture())
    units = network.architecture.units
    held = {p for module in network.modules() if isinstance(module, units) for p in module.parameters()}
    for kind in units:
        assert any(type(module) is kind for module in network.modules())
    assert sum(p.numel() for p in held) > 0.98 * sum(p.numel() for p in network.parameters())


def test_channels_innermost_in_memory_give_the_same_numbers():
    network = tiny_network()
    turned = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)
    image = torch.rand(2, 1, 32, 32, 64)
    with torch.inference_mode():
        for ours, theirs in zip(turned.repair(image), network.repair(image), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    found, wanted = gradients(turned, image), gradients(network, image)
    for name, gradient in wanted.items():
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


# Intensities


@torch.inference_mode()
def test_with_restored_intensity_the_scale_of_the_input_is_that_of_the_output():
    # Every path from the image passes an instance norm, which takes a factor away; its epsilon of 1e-5 does
    # not count beside a variance of 900.
    network = tiny_network().eval()
    image = 30 * torch.randn(1, 1, 64, 64, 64)
    repaired, features = network.repair(image)
    for factor in (0.5, 3.0, 1000.0):
        scaled, same_features = network.repair(factor * image)
        assert nearly(repaired, scaled / factor, within=1e-4)
        torch.testing.assert_close(features, same_features, rtol=0, atol=1e-4)
    assert repaired.std() > 1


@torch.inference_mode()
def test_without_it_the_scale_is_forgotten():
    network = tiny_network(restore_intensity=False).eval()
    image = 10 * torch.randn(1, 1, 64, 64, 64)
    repaired = network(image)
    assert nearly(repaired, network(100 * image), within=1e-3)


@torch.inference_mode()
def test_a_shift_moves_the_output_along_but_for_the_zeros_around_the_crop():
    network = tiny_network().eval()
    image = 10 * torch.randn(1, 1, 64, 64, 64)
    # Convolutions pad with zeros, and a shifted image stands out against these: the equality is broken.
    shifted = network(image + 50) - 50
    assert not nearly(network(image), shifted, within=0.1)
    # Where the two convolutions that see the image repeat its edges instead, it holds.
    for convolution in (network.encoder.patch_embed.conv1.conv, network.decoder.skips["0"].layer.conv1.conv):
        convolution.padding_mode = "replicate"
    repaired = network(image)
    assert nearly(repaired, network(image + 50) - 50, within=1e-3)
    assert nearly(repaired, (network(3 * image - 20) + 20) / 3, within=1e-3)


@torch.inference_mode()
def test_the_mean_and_deviation_put_on_are_those_of_each_sample():
    restoring, plain = tiny_network().eval(), tiny_network(restore_intensity=False).eval()
    image = torch.rand(2, 1, 32, 32, 32) * torch.tensor([1.0, 900.0]).view(2, 1, 1, 1, 1) - 3
    expected = plain(image)
    for i in range(2):
        by_hand = expected[i].double() * image[i].double().std() + image[i].double().mean()
        torch.testing.assert_close(restoring(image)[i].double(), by_hand, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_constant_crop_stays_finite():
    repaired = tiny_network().eval()(torch.full((1, 1, 32, 32, 32), 0.25))
    torch.testing.assert_close(repaired, torch.full_like(repaired, 0.25))


# Segmentation


@pytest.mark.parametrize("patch_embed", ["conv", "linear"])
@pytest.mark.parametrize("deep", [True, False])
def test_logits_at_every_resolution(patch_embed, deep):
    network = Segmenter(
        SwinArchitecture(
            **TINY, in_channels=2, out_channels=5, patch_embed=patch_embed, deep_supervision=deep
        )
    )
    image = torch.rand(2, 2, 32, 64, 32)
    logits = network.all_logits(image)
    sides = [(32, 64, 32), (16, 32, 16), (8, 16, 8), (4, 8, 4)]
    assert [tuple(x.shape) for x in logits] == [(2, 5, *side) for side in sides[: 4 if deep else 1]]
    assert torch.equal(network(image), logits[0])
    sum(x.square().mean() for x in logits).backward()
    # Distributed training waits for a gradient of every parameter.
    assert all(parameter.grad is not None for parameter in network.parameters())


@torch.inference_mode()
def test_the_decoder_gets_feature_maps_normalised_over_channels():
    network = Segmenter(SwinArchitecture(**TINY, out_channels=3)).eval()
    encoder = FeatureEncoder(network.architecture).eval()
    encoder.load_state_dict({n: t for n, t in network.state_dict().items() if n.startswith("encoder.")})
    image = torch.rand(1, 1, 32, 32, 64)
    features = encoder(image)
    assert torch.equal(network(image), network.decoder(image, features))
    for feature in features:
        torch.testing.assert_close(
            feature.mean(dim=1), torch.zeros(()).expand(feature[:, 0].shape), rtol=0, atol=1e-5
        )
        # But for the epsilon of the norm, and tokens that have no variance.
        assert feature.var(dim=1, unbiased=False).max() == pytest.approx(1, abs=1e-2)


def test_sides_that_do_not_fit_are_named():
    with pytest.raises(Dae3dError, match="multiples of 32, not 32 x 48 x 32"):
        tiny_network()(torch.rand(1, 1, 32, 48, 32))
    swapped = RepairNetwork(SwinArchitecture(**TINY, axes="reference"))
    with pytest.raises(Dae3dError, match='8 x 8 x 8 voxels, not 32 x 32 x 32; load it with axes="straight"'):
        swapped(torch.rand(1, 1, 32, 32, 32))


# Patch merging


def octants_in_order(merging, tokens):
    """What a patch merging hands to its norm: (B, D/2, H/2, W/2, 8C)."""
    merging.norm, merging.reduction = nn.Identity(), nn.Identity()
    return merging(tokens)


def test_reference_patch_merging_is_that_of_the_published_order():
    # Offsets of the octants; two come twice, two never.
    published = ["000", "100", "010", "001", "101", "010", "001", "111"]
    tokens = torch.rand(2, 4, 6, 8, 3)
    merging = ReferencePatchMerging(dim=3)
    expected = torch.zeros(2, 2, 3, 4, 24)
    for b, d, h, w, place in itertools.product(range(2), range(2), range(3), range(4), range(8)):
        i, j, k = map(int, published[place])
        expected[b, d, h, w, 3 * place : 3 * place + 3] = tokens[b, 2 * d + i, 2 * h + j, 2 * w + k]
    full = merging.reduction(merging.norm(expected))
    torch.testing.assert_close(merging(tokens), full)
    assert full.shape == (2, 2, 3, 4, 6)
    assert torch.equal(octants_in_order(merging, tokens), expected)


def test_odd_sides_are_padded_with_zeros_at_the_end():
    merging = ReferencePatchMerging(dim=2)
    for sides in itertools.product((3, 4), repeat=3):
        tokens = torch.rand(1, *sides, 2)
        padded = torch.zeros(1, 4, 4, 4, 2)
        padded[:, : sides[0], : sides[1], : sides[2]] = tokens
        assert torch.equal(merging(tokens), merging(padded))


def test_straight_patch_merging_has_every_octant_once():
    merging = copy.deepcopy(tiny_network(patch_merging="straight").encoder.stages[0].downsample)
    dim = merging.dim
    tokens = torch.rand(1, 4, 4, 4, dim)
    merged = octants_in_order(merging, tokens)
    found = [merged[..., dim * place : dim * (place + 1)] for place in range(8)]
    offsets = []
    for octant in found:
        same = [
            (i, j, k)
            for i, j, k in itertools.product(range(2), repeat=3)
            if torch.equal(octant, tokens[:, i::2, j::2, k::2])
        ]
        offsets += same
    assert sorted(offsets) == list(itertools.product(range(2), repeat=3))


def test_the_setting_decides_the_order():
    straight, reference = (
        tiny_network(patch_merging=order).encoder.stages[0].downsample for order in ("straight", "reference")
    )
    assert isinstance(reference, ReferencePatchMerging)
    assert not isinstance(straight, ReferencePatchMerging)
