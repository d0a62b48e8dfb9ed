"""Sliding-window segmentation of whole scans that returns the result slab by slab to bound memory.

Windows are blended like in MONAI's `sliding_window_inference(mode="gaussian")`, but along one axis only as
many planes are kept as a window is deep: K x A x B x D float32 sums of logits per network, for K classes, the
scan's sides A and B along the other axes, and windows D deep. It is the axis along which a window covers the
smallest part of the scan; the longest, if windows are cubes. Probabilities are computed in place. In addition
to the image and the networks, `segment` needs at most 1.25 times that memory; `interpolate_slabs` needs 0.7
times that of one network more (measured with 14 classes and windows of 64).
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from monai.data.utils import compute_importance_map
from torch import Tensor

from dae3d.store.boxes import Triple

# Maps windows (B, C, *roi) to logits (B, K, *roi).
Predictor = Callable[[Tensor], Tensor]

# Maps the sums of weighted logits (K, ...) of each network and the sums of weights (...) to scores (K, ...).
Combine = Callable[[Sequence[Tensor], Tensor], Tensor]

_MEMORY_FACTOR = 2  # peak memory in multiples of the sums: the sums, and what a caller makes of a slab
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Slab:
    """Class probabilities (K, X, Y, Z) float32 of the planes [start, stop) along `axis`.

    The probabilities are overwritten when the next slab is requested.
    """

    axis: int
    start: int
    stop: int
    probabilities: Tensor


def segment(
    networks: Sequence[Predictor],
    image: Tensor,
    roi: Triple,
    overlap: float = 0.5,
    window_batch: int = 1,
    device: torch.device | None = None,
    mirror: Sequence[int] = (),
    progress: Callable[[int], object] | None = None,
    blend_device: torch.device | None = None,
) -> Tensor:
    """The most probable class of each voxel: (X, Y, Z) uint8 indices of classes, on the CPU.

    Arguments as for `probability_slabs`; `device` defaults to the device of the image.
    """
    classes = torch.empty(image.shape[1:], dtype=torch.uint8)
    blend = _Blend(roi, device or image.device, blend_device)
    # With one network, the largest sum of logits is that of the most probable class.
    combine = _mean_probabilities if len(networks) > 1 else _sums
    for slab in _slabs(combine, networks, image, overlap, window_batch, mirror, progress, blend):
        planes = classes.narrow(slab.axis, slab.start, slab.stop - slab.start)
        planes.copy_(slab.probabilities.argmax(dim=0))
    return classes


def probability_slabs(
    networks: Sequence[Predictor],
    image: Tensor,
    roi: Triple,
    overlap: float,
    window_batch: int,
    device: torch.device,
    mirror: Sequence[int] = (),
    progress: Callable[[int], object] | None = None,
    blend_device: torch.device | None = None,
) -> Iterator[Slab]:
    """Class probabilities of a whole scan, in slabs along one axis, each as soon as it is complete.

    For each network, logits are averaged over the windows that cover a voxel, with Gaussian weights, followed
    by a softmax. The probabilities of the networks are averaged.

    Args:
        networks: in eval mode, on `device`, with the same classes.
        image: (C, X, Y, Z) normalised, of any size; zero-padded if smaller than a window.
        roi: sides of the windows in voxels.
        overlap: overlap of neighbouring windows as a share of their sides, in [0, 1).
        window_batch: windows per forward pass.
        device: where the networks run.
        mirror: spatial axes, 0 to 2, for test-time augmentation: logits are averaged over all combinations of
            mirroring along them.
        progress: called with the number of windows done since the last call.
        blend_device: where logits are accumulated; by default `device`, or the CPU if that is a GPU with too
            little free memory.

    Yields:
        Slabs without gaps or overlaps, at most one window step deep, with probabilities on `blend_device`.
    """
    blend = _Blend(roi, device, blend_device)
    yield from _slabs(_mean_probabilities, networks, image, overlap, window_batch, mirror, progress, blend)


@torch.no_grad()
def _slabs(
    combine: Combine,
    networks: Sequence[Predictor],
    image: Tensor,
    overlap: float,
    window_batch: int,
    mirror: Sequence[int],
    progress: Callable[[int], object] | None,
    blend: "_Blend",
) -> Iterator[Slab]:
    """Slabs of the scores that `combine` computes from the blended logits."""
    roi, shape = blend.roi, image.shape[1:]
    missing = [max(size - side, 0) for size, side in zip(roi, shape, strict=True)]
    before = [count // 2 for count in missing]
    after = [count - front for count, front in zip(missing, before, strict=True)]
    if any(after):
        image = torch.nn.functional.pad(
            image, [p for ends in zip(reversed(before), reversed(after), strict=True) for p in ends]
        )
    # Along this axis a window covers the smallest part of the scan, so that the least is held.
    axis = min(range(3), key=lambda a: roi[a] / image.shape[a + 1])
    blend.begin(image.shape[1:], axis)
    starts = [_starts(side, size, overlap) for side, size in zip(image.shape[1:], roi, strict=True)]
    step = _step(roi[axis], overlap)
    for start, end in zip(starts[axis], [*starts[axis][1:], image.shape[axis + 1]], strict=True):
        layer = list(itertools.product(*(s if a != axis else [start] for a, s in enumerate(starts))))
        for number in range(0, len(layer), window_batch):
            corners = layer[number : number + window_batch]
            windows = torch.stack([image[(slice(None), *_box(c, roi))] for c in corners]).to(blend.device)
            blend.add(corners, [_logits(network, windows, mirror) for network in networks])
            if progress:
                progress(len(corners))
        # After the last layer, all remaining planes are complete.
        for first in range(start, end, step):
            count = min(step, end - first)
            scores = combine(*blend.first(count))
            for a in set(range(3)) - {axis}:
                scores = scores.narrow(a + 1, before[a], shape[a])
            # Along this axis the scan is padded only if there is a single layer.
            low, high = max(first - before[axis], 0), min(first + count - before[axis], shape[axis])
            if low < high:
                yield Slab(axis, low, high, scores.narrow(axis + 1, low + before[axis] - first, high - low))
            blend.drop(count)


def window_count(shape: Sequence[int], roi: Triple, overlap: float) -> int:
    """The number of windows for a scan of `shape`."""
    x, y, z = (len(_starts(max(side, size), size, overlap)) for side, size in zip(shape, roi, strict=True))
    return x * y * z


def device_with_memory(device: torch.device, needed: int, free: int) -> torch.device:
    """The device for sums of `needed` bytes: `device` if its `free` bytes suffice, else the CPU."""
    return device if _MEMORY_FACTOR * needed <= free else _CPU


class _Blend:
    """Weighted sums of logits over as many planes along `axis` as a window is deep.

    Networks run on `device`; the sums are kept on `kept_on`. If that is None, it is chosen when the first
    logits arrive, because the memory of the networks is allocated by then.
    """

    def __init__(self, roi: Triple, device: torch.device, kept_on: torch.device | None) -> None:
        self.roi, self.device, self.kept_on = roi, device, kept_on

    def begin(self, shape: Sequence[int], axis: int) -> None:
        """Start a scan of a shape along an axis."""
        self.axis, self.depth = axis, self.roi[axis]
        self.held = [self.depth if a == axis else side for a, side in enumerate(shape)]
        self.sums: list[Tensor] = []  # (K, *held) of each network

    def add(self, corners: Sequence[tuple[int, ...]], logits: Sequence[Tensor]) -> None:
        """Add the logits (B, K, *roi) of each network for the windows at `corners`."""
        if not self.sums:
            self._allocate([own.shape[1] for own in logits])
        for number, corner in enumerate(corners):
            box = _box([0 if a == self.axis else side for a, side in enumerate(corner)], self.roi)
            self.weights[box] += self.window
            for sums, own in zip(self.sums, logits, strict=True):
                window = own[number].to(self.weights.device, torch.float32)
                sums[(slice(None), *box)].addcmul_(window, self.window)

    def _allocate(self, classes: Sequence[int]) -> None:
        device = self.kept_on or self.device
        if self.kept_on is None and device.type == "cuda":
            needed = 4 * sum(classes) * math.prod(self.held)
            device = device_with_memory(device, needed, torch.cuda.mem_get_info(device)[0])
        window = compute_importance_map(self.roi, mode="gaussian", sigma_scale=0.125)
        self.window = window.to(device)
        self.weights = torch.zeros(self.held, device=device)
        self.sums = [self.weights.new_zeros((count, *self.held)) for count in classes]

    def first(self, count: int) -> tuple[list[Tensor], Tensor]:
        """Views of the first `count` planes: sums (K, ...) of each network, and sums of weights (...)."""
        sums = [own.narrow(self.axis + 1, 0, count) for own in self.sums]
        return sums, self.weights.narrow(self.axis, 0, count)

    def drop(self, count: int) -> None:
        """Drop the first `count` planes and append empty ones."""
        for tensor, along in [(self.weights, self.axis), *((s, self.axis + 1) for s in self.sums)]:
            # Copy in steps without overlap, which needs no temporary copy.
            for to in range(0, self.depth - count, count):
                planes = min(count, self.depth - count - to)
                tensor.narrow(along, to, planes).copy_(tensor.narrow(along, to + count, planes))
            tensor.narrow(along, self.depth - count, count).zero_()


def _sums(sums: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The sums of the only network; they rank classes like probabilities."""
    return sums[0]


def _mean_probabilities(sums: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The mean probabilities of the networks, computed in place."""
    for own in sums:
        own.div_(weights)
        own.sub_(own.amax(dim=0)).exp_()
        own.div_(own.sum(dim=0))
    mean, *others = sums
    for probabilities in others:
        mean.add_(probabilities)
    return mean.div_(len(sums))


def _starts(side: int, size: int, overlap: float) -> list[int]:
    """Start positions along an axis of windows of a `size`; the last one ends at the end of the axis."""
    return [*range(0, side - size, _step(size, overlap)), side - size]


def _step(size: int, overlap: float) -> int:
    return max(int(size * (1 - overlap)), 1)


def _box(corner: Sequence[int], roi: Triple) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(corner, roi, strict=True))


def _logits(network: Predictor, windows: Tensor, mirror: Sequence[int]) -> Tensor:
    if not mirror:
        return network(windows)
    axes = [axis + 2 for axis in mirror]
    flips = [flip for count in range(len(axes) + 1) for flip in itertools.combinations(axes, count)]
    total = network(windows).float()
    for flip in flips[1:]:
        total = total + network(windows.flip(flip)).float().flip(flip)
    return total / len(flips)
