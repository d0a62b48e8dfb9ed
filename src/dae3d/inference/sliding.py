"""Segment whole scans window by window, and hand the result on slab by slab, so that it is never held whole.

Windows are blended as by MONAI's `sliding_window_inference(mode="gaussian")`, but along the scan's longest
axis only as many planes are held as a window is deep. What is held is then the image and, for each network,
K x A x B x roi float32 logits, with K classes and A and B the scan's two shorter sides.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from monai.data.utils import compute_importance_map
from torch import Tensor

# Takes windows (B, C, roi, roi, roi) and gives logits (B, K, roi, roi, roi).
Network = Callable[[Tensor], Tensor]

_FLIPS = [axes for count in range(4) for axes in itertools.combinations((2, 3, 4), count)]


@dataclass(frozen=True)
class Slab:
    """Class probabilities (K, X, Y, Z) float32 of the planes [start, stop) along `axis`."""

    axis: int
    start: int
    stop: int
    probabilities: Tensor


def segment(
    networks: Sequence[Network],
    image: Tensor,
    roi: int,
    overlap: float = 0.5,
    window_batch: int = 1,
    device: torch.device | None = None,
    mirror: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """The most probable class of each voxel: (X, Y, Z) uint8 indices of classes, on the CPU.

    Arguments are those of `probability_slabs`; `device` is the image's by default.
    """
    classes = torch.empty(image.shape[1:], dtype=torch.uint8)
    device = device or image.device
    for slab in probability_slabs(networks, image, roi, overlap, window_batch, device, mirror, progress):
        planes = classes.narrow(slab.axis, slab.start, slab.stop - slab.start)
        planes.copy_(slab.probabilities.argmax(dim=0))
    return classes


@torch.no_grad()
def probability_slabs(
    networks: Sequence[Network],
    image: Tensor,
    roi: int,
    overlap: float,
    window_batch: int,
    device: torch.device,
    mirror: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Iterator[Slab]:
    """Class probabilities of a whole scan, in slabs along its longest axis, each as soon as it is finished.

    A network's logits are averaged over the windows that cover a voxel, with Gaussian weights, and then made
    probabilities; several networks' probabilities are averaged.

    Args:
        networks: in eval mode, on `device`, all of the same classes.
        image: (C, X, Y, Z) normalised, of any size; where it is smaller than a window, zeros surround it.
        roi: side of the windows.
        overlap: share of a window that the next one covers too, in [0, 1).
        window_batch: number of windows that go through a network together.
        device: where the networks run and logits are kept.
        mirror: average a window's logits over its eight mirror images.
        progress: called with the number of windows done since the last call.

    Yields:
        Slabs without gap or overlap, their probabilities on `device`.
    """
    shape = image.shape[1:]
    before = [max(roi - side, 0) // 2 for side in shape]
    after = [max(roi - side, 0) - front for side, front in zip(shape, before, strict=True)]
    if any(after):
        image = torch.nn.functional.pad(
            image, [p for ends in zip(reversed(before), reversed(after), strict=True) for p in ends]
        )
    axis = max(range(3), key=lambda a: image.shape[a + 1])
    starts = [_starts(side, roi, overlap) for side in image.shape[1:]]
    blend = _Blend(image.shape[1:], axis, roi, device)
    for start, stop in zip(starts[axis], [*starts[axis][1:], image.shape[axis + 1]], strict=True):
        layer = list(itertools.product(*(s if a != axis else [start] for a, s in enumerate(starts))))
        for first in range(0, len(layer), window_batch):
            corners = layer[first : first + window_batch]
            windows = torch.stack([image[(slice(None), *_box(c, roi))] for c in corners]).to(device)
            blend.add(corners, [_logits(network, windows, mirror) for network in networks])
            if progress:
                progress(len(corners))
        probabilities = blend.take(stop - start)
        for a in set(range(3)) - {axis}:
            probabilities = probabilities.narrow(a + 1, before[a], shape[a])
        # Along the axis there are zeros around the scan only where one layer is all there is.
        first, last = max(start - before[axis], 0), min(stop - before[axis], shape[axis])
        inside = probabilities.narrow(axis + 1, first + before[axis] - start, last - first)
        yield Slab(axis, first, last, inside)


def window_count(shape: Sequence[int], roi: int, overlap: float) -> int:
    """The number of windows that cover a scan of `shape`."""
    x, y, z = (len(_starts(max(side, roi), roi, overlap)) for side in shape)
    return x * y * z


class _Blend:
    """Weighted sums of logits over as many planes along `axis` as a window is deep."""

    def __init__(self, shape: Sequence[int], axis: int, roi: int, device: torch.device) -> None:
        self.axis, self.roi = axis, roi
        self.window = compute_importance_map((roi,) * 3, mode="gaussian", sigma_scale=0.125, device=device)
        held = [roi if a == axis else side for a, side in enumerate(shape)]
        self.weights = torch.zeros(held, device=device)
        self.sums: list[Tensor] = []  # (K, *held) of each network

    def add(self, corners: Sequence[tuple[int, ...]], logits: Sequence[Tensor]) -> None:
        """Take in the logits (B, K, roi, roi, roi) of each network for the windows at `corners`."""
        if not self.sums:
            self.sums = [self.weights.new_zeros((own.shape[1], *self.weights.shape)) for own in logits]
        for number, corner in enumerate(corners):
            box = _box([0 if a == self.axis else side for a, side in enumerate(corner)], self.roi)
            self.weights[box] += self.window
            for sums, own in zip(self.sums, logits, strict=True):
                sums[(slice(None), *box)].addcmul_(own[number].float(), self.window)

    def take(self, count: int) -> Tensor:
        """The mean probabilities (K, ...) of the first `count` planes, which are then no longer held."""
        weights = self.weights.narrow(self.axis, 0, count)
        networks = ((s.narrow(self.axis + 1, 0, count) / weights).softmax(dim=0) for s in self.sums)
        mean = next(networks)
        for probabilities in networks:
            mean += probabilities
        for tensor, along in [(self.weights, self.axis), *((s, self.axis + 1) for s in self.sums)]:
            kept = tensor.narrow(along, count, self.roi - count).clone()
            tensor.zero_().narrow(along, 0, self.roi - count).copy_(kept)
        return mean / len(self.sums)


def _starts(side: int, roi: int, overlap: float) -> list[int]:
    """Where windows start: as far apart as `overlap` wants it, the last one flush with the end."""
    step = max(int(roi * (1 - overlap)), 1)
    return [*range(0, side - roi, step), side - roi]


def _box(corner: Sequence[int], roi: int) -> tuple[slice, ...]:
    return tuple(slice(start, start + roi) for start in corner)


def _logits(network: Network, windows: Tensor, mirror: bool) -> Tensor:
    if not mirror:
        return network(windows)
    total = network(windows).float()
    for axes in _FLIPS[1:]:
        total = total + network(windows.flip(axes)).float().flip(axes)
    return total / len(_FLIPS)
