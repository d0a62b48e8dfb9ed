"""Whole scans window by window: the same numbers as MONAI's, and no more held than a window's depth."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers.utils import sliding_window_inference

from dae3d.inference.sliding import probability_slabs, segment, window_count

CPU = torch.device("cpu")
ROI = 8


class PlaceAware(torch.nn.Module):
    """Logits that depend on where in its window a voxel lies, and on the axes' order."""

    def __init__(self, seed, channels=1, classes=3, roi=ROI):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.mix = torch.randn(classes, channels, generator=random)
        self.place = torch.randn(classes, roi, roi, roi, generator=random)
        self.batches = []

    def forward(self, windows):
        self.batches.append(len(windows))
        return torch.einsum("kc,bcxyz->bkxyz", self.mix, windows) + self.place


def scan(shape, channels=1, seed=0):
    return torch.randn(channels, *shape, generator=torch.Generator().manual_seed(seed))


def whole(networks, image, overlap=0.5, window_batch=3, **options):
    """The slabs put together, each checked to start where the last one stopped."""
    slabs = list(probability_slabs(networks, image, ROI, overlap, window_batch, CPU, **options))
    assert slabs[0].start == 0
    assert slabs[-1].stop == image.shape[slabs[0].axis + 1]
    assert all(after.start == before.stop for before, after in itertools.pairwise(slabs))
    assert all(s.probabilities.shape[s.axis + 1] == s.stop - s.start for s in slabs)
    return torch.cat([slab.probabilities for slab in slabs], dim=slabs[0].axis + 1)


def by_monai(network, image, overlap):
    logits = sliding_window_inference(image[None], ROI, 1, network, overlap, mode="gaussian")
    return logits[0].softmax(dim=0)


@settings(deadline=None, max_examples=30)
@given(
    shape=st.tuples(*[st.integers(1, 21)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.9]),
    window_batch=st.integers(1, 5),
)
def test_probabilities_are_those_of_monais_sliding_windows(shape, overlap, window_batch):
    network, image = PlaceAware(1, channels=2), scan(shape, channels=2)
    expected = by_monai(network, image, overlap)
    torch.testing.assert_close(whole([network], image, overlap, window_batch), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("longest", [0, 1, 2])
def test_every_axis_can_be_the_longest(longest):
    shape = [11, 10, 9]
    shape[longest] = 27
    network, image = PlaceAware(2), scan(shape)
    slabs = list(probability_slabs([network], image, ROI, 0.5, 1, CPU))
    assert {slab.axis for slab in slabs} == {longest}
    assert max(slab.stop - slab.start for slab in slabs) <= ROI
    torch.testing.assert_close(whole([network], image), by_monai(network, image, 0.5), rtol=0, atol=2e-6)


def test_a_slab_comes_as_soon_as_its_windows_are_done():
    """Of 12 layers of windows along the longest axis, the first slab needs one."""
    network, image = PlaceAware(3), scan((10, 52, 8))
    done = []
    next(probability_slabs([network], image, ROI, 0.5, 1, CPU, progress=done.append))
    layers = 12
    assert len(network.batches) == window_count(image.shape[1:], ROI, 0.5) / layers == sum(done) == 2


def test_progress_counts_every_window():
    done, image = [], scan((20, 11, 5))
    whole([PlaceAware(3)], image, progress=done.append)
    assert sum(done) == window_count(image.shape[1:], ROI, 0.5) == 4 * 2 * 1


def test_windows_are_batched():
    network = PlaceAware(4)
    whole([network], scan((8, 16, 24)), overlap=0.0, window_batch=2)
    assert network.batches == [2, 2, 2]


def test_several_networks_give_the_mean_of_their_probabilities():
    networks, image = [PlaceAware(seed) for seed in (5, 6, 7)], scan((9, 14, 12))
    expected = sum(by_monai(network, image, 0.5) for network in networks) / 3
    torch.testing.assert_close(whole(networks, image), expected, rtol=0, atol=2e-6)


def test_mirroring_is_the_mean_of_the_logits_of_all_eight_mirror_images():
    network, image = PlaceAware(8), scan((8, 8, 8))
    flips = [axes for n in range(4) for axes in itertools.combinations((2, 3, 4), n)]
    assert len(flips) == 8
    mean = torch.stack([network(image[None].flip(f)).flip(f) for f in flips]).mean(dim=0)[0]
    torch.testing.assert_close(whole([network], image, mirror=True), mean.softmax(dim=0), rtol=0, atol=2e-6)


def test_mirroring_makes_a_mirrored_scan_a_mirrored_result():
    # Sides of whole steps, so that the windows themselves lie symmetrically.
    network, image = PlaceAware(9), scan((12, 8, 16))
    straight = whole([network], image, mirror=True)
    torch.testing.assert_close(whole([network], image.flip(1), mirror=True).flip(1), straight)


def test_segment_is_the_most_probable_class():
    network, image = PlaceAware(10, classes=5), scan((13, 9, 18))
    classes = segment([network], image, ROI)
    assert classes.dtype == torch.uint8
    assert classes.tolist() == by_monai(network, image, 0.5).argmax(dim=0).tolist()


def test_under_autocast_sums_stay_exact():
    """The network alone computes in half precision; 64 overlapping windows must not lose digits."""

    class Steps(torch.nn.Module):
        def forward(self, windows):
            return torch.cat([windows, -windows], dim=1).to(torch.bfloat16)

    image = scan((12, 12, 12)).to(torch.bfloat16).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        probabilities = whole([Steps()], image, overlap=0.75)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities[0], torch.sigmoid(2 * image[0]), rtol=0, atol=1e-6)


def test_gradients_are_not_kept_and_the_callers_mode_stays():
    network = torch.nn.Conv3d(1, 2, 1)
    for slab in probability_slabs([network], scan((8, 8, 20)), ROI, 0.5, 1, CPU):
        assert not slab.probabilities.requires_grad
        assert torch.is_grad_enabled()
