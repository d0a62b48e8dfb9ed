"""Whole scans window by window: the same numbers as MONAI's, and no more held than a window's depth."""

import itertools
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers.utils import sliding_window_inference
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dae3d.inference.sliding import device_with_memory, probability_slabs, segment, window_count

CPU = torch.device("cpu")
ROI = 8


class PlaceAware(torch.nn.Module):
    """Logits that depend on where in its window a voxel lies, and on the axes' order."""

    def __init__(self, seed, channels=1, classes=3, roi=(ROI,) * 3):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.mix = torch.randn(classes, channels, generator=random)
        self.place = torch.randn(classes, *roi, generator=random)
        self.batches = []

    def forward(self, windows):
        self.batches.append(len(windows))
        return torch.einsum("kc,bcxyz->bkxyz", self.mix, windows) + self.place


def scan(shape, channels=1, seed=0):
    return torch.randn(channels, *shape, generator=torch.Generator().manual_seed(seed))


def kept(slabs):
    """Copies: a slab is overwritten when the next one is asked for."""
    return [replace(slab, probabilities=slab.probabilities.clone()) for slab in slabs]


def whole(networks, image, overlap=0.5, window_batch=3, roi=(ROI,) * 3, **options):
    """The slabs put together, each checked to start where the last one stopped."""
    slabs = kept(probability_slabs(networks, image, roi, overlap, window_batch, CPU, **options))
    assert slabs[0].start == 0
    assert slabs[-1].stop == image.shape[slabs[0].axis + 1]
    assert all(after.start == before.stop for before, after in itertools.pairwise(slabs))
    assert all(s.probabilities.shape[s.axis + 1] == s.stop - s.start for s in slabs)
    return torch.cat([slab.probabilities for slab in slabs], dim=slabs[0].axis + 1)


def by_monai(network, image, overlap, roi=(ROI,) * 3):
    logits = sliding_window_inference(image[None], roi, 1, network, overlap, mode="gaussian")
    return logits[0].softmax(dim=0)


@settings(max_examples=30)
@given(
    shape=st.tuples(*[st.integers(1, 21)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.9]),
    window_batch=st.integers(1, 5),
)
def test_probabilities_are_those_of_monais_sliding_windows(shape, overlap, window_batch):
    network, image = PlaceAware(1, channels=2), scan(shape, channels=2)
    expected = by_monai(network, image, overlap)
    torch.testing.assert_close(whole([network], image, overlap, window_batch), expected, rtol=0, atol=2e-6)


@settings(max_examples=40)
@given(
    shape=st.tuples(*[st.integers(1, 25)] * 3),
    roi=st.tuples(*[st.integers(4, 12)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.9]),
)
def test_windows_need_not_be_cubes(shape, roi, overlap):
    network, image = PlaceAware(1, roi=roi), scan(shape)
    expected = by_monai(network, image, overlap, roi)
    counted = len(network.batches)
    torch.testing.assert_close(whole([network], image, overlap, 1, roi), expected, rtol=0, atol=2e-6)
    assert len(network.batches) - counted == counted == window_count(shape, roi, overlap)
    assert segment([network], image, roi, overlap).shape == shape


def test_slabs_are_along_the_axis_of_which_a_window_covers_the_least():
    slabs = kept(
        probability_slabs([PlaceAware(2, roi=(16, 8, 4))], scan((40, 32, 20)), (16, 8, 4), 0.5, 1, CPU)
    )
    assert {slab.axis for slab in slabs} == {2}
    assert max(slab.stop - slab.start for slab in slabs) == 2


@pytest.mark.parametrize("longest", [0, 1, 2])
def test_every_axis_can_be_the_longest(longest):
    shape = [11, 10, 9]
    shape[longest] = 27
    network, image = PlaceAware(2), scan(shape)
    slabs = kept(probability_slabs([network], image, (ROI,) * 3, 0.5, 1, CPU))
    assert {slab.axis for slab in slabs} == {longest}
    assert max(slab.stop - slab.start for slab in slabs) <= ROI // 2  # the last ones too
    torch.testing.assert_close(whole([network], image), by_monai(network, image, 0.5), rtol=0, atol=2e-6)


def test_a_slab_comes_as_soon_as_its_windows_are_done():
    """Of 12 layers of windows along the longest axis, the first slab needs one."""
    network, image = PlaceAware(3), scan((10, 52, 8))
    done = []
    next(probability_slabs([network], image, (ROI,) * 3, 0.5, 1, CPU, progress=done.append))
    layers = 12
    assert len(network.batches) == window_count(image.shape[1:], (ROI,) * 3, 0.5) / layers == sum(done) == 2


def test_progress_counts_every_window():
    done, image = [], scan((20, 11, 5))
    whole([PlaceAware(3)], image, progress=done.append)
    assert sum(done) == window_count(image.shape[1:], (ROI,) * 3, 0.5) == 4 * 2 * 1


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
    torch.testing.assert_close(
        whole([network], image, mirror=(0, 1, 2)), mean.softmax(dim=0), rtol=0, atol=2e-6
    )


def test_mirroring_makes_a_mirrored_scan_a_mirrored_result():
    # Sides of whole steps, so that the windows themselves lie symmetrically.
    network, image = PlaceAware(9), scan((12, 8, 16))
    straight = whole([network], image, mirror=(0, 1, 2))
    torch.testing.assert_close(whole([network], image.flip(1), mirror=(0, 1, 2)).flip(1), straight)


def test_segment_is_the_most_probable_class():
    network, image = PlaceAware(10, classes=5), scan((13, 9, 18))
    classes = segment([network], image, (ROI,) * 3)
    assert classes.dtype == torch.uint8
    assert classes.tolist() == by_monai(network, image, 0.5).argmax(dim=0).tolist()


def test_segment_with_several_networks_takes_the_mean_of_their_probabilities():
    networks, image = [PlaceAware(seed, classes=4) for seed in (11, 12)], scan((9, 20, 12))
    mean = sum(by_monai(network, image, 0.5) for network in networks) / 2
    assert segment(networks, image, (ROI,) * 3).tolist() == mean.argmax(dim=0).tolist()


class Live(TorchDispatchMode):
    """The bytes of tensors made within, at most at a time."""

    def __init__(self):
        super().__init__()
        self.sizes, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in [leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]:
            storage = tensor.untyped_storage()
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata)
                self.peak = max(self.peak, sum(self.sizes.values()))
        return made


@pytest.mark.parametrize("networks", [1, 2])
def test_no_more_is_held_than_as_many_planes_of_logits_as_a_window_is_deep(networks):
    """By counting every tensor: a scan 6.5 windows long takes little more than one window's depth."""
    image = scan((40, 40, 52))
    several = [PlaceAware(seed, classes=12) for seed in range(networks)]
    sums = networks * 12 * 40 * 40 * ROI * 4
    with Live() as live:
        for _ in probability_slabs(several, image, (ROI,) * 3, 0.5, 1, CPU):
            pass
    assert sums < live.peak - image.nbytes < 1.3 * sums


def test_sums_are_kept_on_a_gpu_with_room_for_them_and_a_slab():
    gpu = torch.device("cuda:1")
    assert device_with_memory(gpu, 10 * 2**30, 24 * 2**30) == gpu
    assert device_with_memory(gpu, 14 * 2**30, 24 * 2**30) == CPU


def test_sums_can_be_kept_elsewhere_than_where_networks_run():
    """The meta device, which holds nothing, stands for the other one."""
    image = scan((8, 8, 20))
    elsewhere = torch.device("meta")
    for slab in probability_slabs([PlaceAware(1)], image, (ROI,) * 3, 0.5, 1, CPU, blend_device=elsewhere):
        assert slab.probabilities.device == elsewhere


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
    for slab in probability_slabs([network], scan((8, 8, 20)), (ROI,) * 3, 0.5, 1, CPU):
        assert not slab.probabilities.requires_grad
        assert torch.is_grad_enabled()
