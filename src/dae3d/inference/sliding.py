"""Segment whole scans window by window, and hand the result on slab by slab, so that it is never held whole.

Windows are blended as by MONAI's `sliding_window_inference(mode="gaussian")`, but along the scan's longest
axis only as many planes are held as a window is deep: for each network K x A x B x roi float32 sums of
logits, with K classes and A and B the scan's two shorter sides. Probabilities are made in their place, and
`segment` needs 1.25 times that at most, `interpolate_slabs` as much and 0.7 times one network's (14 classes,
windows of 64; measured), beside the image and what the networks need.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from monai.data.utils import compute_importance_map
from torch import Tensor

# Takes windows (B, C, roi, roi, roi) and gives logits (B, K, roi, roi, roi).
Predictor = Callable[[Tensor], Tensor]

# Makes scores (K, ...) of each network's sums (K, ...) of weighted logits and of the weights' sums (...).
Combine = Callable[[Sequence[Tensor], Tensor], Tensor]

_ROOM = 2  # what is held at most, in sizes of the sums: they themselves, and what a caller makes of a slab
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Slab:
    """Class probabilities (K, X, Y, Z) float32 of the planes [start, stop) along `axis`.

    They are overwritten when the next slab is asked for.
    """

    axis: int
    start: int
    stop: int
    probabilities: Tensor


def segment(
    networks: Sequence[Predictor],
    image: Tensor,
    roi: int,
    overlap: float = 0.5,
    window_batch: int = 1,
    device: torch.device | None = None,
    mirror: Sequence[int] = (),
    progress: Callable[[int], object] | None = None,
    blend_device: torch.device | None = None,
) -> Tensor:
    """The most probable class of each voxel: (X, Y, Z) uint8 indices of classes, on the CPU.

    Arguments are those of `probability_slabs`; `device` is the image's by default.
    """
    classes = torch.empty(image.shape[1:], dtype=torch.uint8)
    blend = _Blend(roi, device or image.device, blend_device)
    # Of one network, the largest sum of logits is that of the most probable class.
    combine = _mean_probabilities if len(networks) > 1 else _sums
    for slab in _slabs(combine, networks, image, overlap, window_batch, mirror, progress, blend):
        planes = classes.narrow(slab.axis, slab.start, slab.stop - slab.start)
        planes.copy_(slab.probabilities.argmax(dim=0))
    return classes


def probability_slabs(
    networks: Sequence[Predictor],
    image: Tensor,
    roi: int,
    overlap: float,
    window_batch: int,
    device: torch.device,
    mirror: Sequence[int] = (),
    progress: Callable[[int], object] | None = None,
    blend_device: torch.device | None = None,
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
        device: where the networks run.
        mirror: spatial axes, 0 to 2: a window's logits are averaged over its mirror images along any of them.
        progress: called with the number of windows done since the last call.
        blend_device: where logits are kept; by default where the networks run, or, if that is a GPU without
            room for them, the CPU.

    Yields:
        Slabs without gap or overlap, no deeper than windows are apart, their probabilities on `blend_device`.
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
    """Slabs of what `combine` makes of the blended logits."""
    roi, shape = blend.roi, image.shape[1:]
    before = [max(roi - side, 0) // 2 for side in shape]
    after = [max(roi - side, 0) - front for side, front in zip(shape, before, strict=True)]
    if any(after):
        image = torch.nn.functional.pad(
            image, [p for ends in zip(reversed(before), reversed(after), strict=True) for p in ends]
        )
    axis = max(range(3), key=lambda a: image.shape[a + 1])
    blend.begin(image.shape[1:], axis)
    starts = [_starts(side, roi, overlap) for side in image.shape[1:]]
    for start, end in zip(starts[axis], [*starts[axis][1:], image.shape[axis + 1]], strict=True):
        layer = list(itertools.product(*(s if a != axis else [start] for a, s in enumerate(starts))))
        for number in range(0, len(layer), window_batch):
            corners = layer[number : number + window_batch]
            windows = torch.stack([image[(slice(None), *_box(c, roi))] for c in corners]).to(blend.device)
            blend.add(corners, [_logits(network, windows, mirror) for network in networks])
            if progress:
                progress(len(corners))
        # The last layer is finished to its full depth.
        for first in range(start, end, _step(roi, overlap)):
            count = min(_step(roi, overlap), end - first)
            scores = combine(*blend.first(count))
            for a in set(range(3)) - {axis}:
                scores = scores.narrow(a + 1, before[a], shape[a])
            # Along the axis there are zeros around the scan only where one layer is all there is.
            low, high = max(first - before[axis], 0), min(first + count - before[axis], shape[axis])
            if low < high:
                yield Slab(axis, low, high, scores.narrow(axis + 1, low + before[axis] - first, high - low))
            blend.drop(count)


def window_count(shape: Sequence[int], roi: int, overlap: float) -> int:
    """The number of windows that cover a scan of `shape`."""
    x, y, z = (len(_starts(max(side, roi), roi, overlap)) for side in shape)
    return x * y * z


def roomy_device(device: torch.device, needed: int, free: int) -> torch.device:
    """Where to keep sums of `needed` bytes: on `device` where `free` bytes are enough, else on the CPU."""
    return device if _ROOM * needed <= free else _CPU


class _Blend:
    """Weighted sums of logits over as many planes along `axis` as a window is deep.

    Networks run on `device`; the sums are kept on `kept_on`, which is decided with the first logits if it is
    None: then the memory that networks need is taken already.
    """

    def __init__(self, roi: int, device: torch.device, kept_on: torch.device | None) -> None:
        self.roi, self.device, self.kept_on = roi, device, kept_on

    def begin(self, shape: Sequence[int], axis: int) -> None:
        """Blend a scan of that shape along that axis."""
        self.axis = axis
        self.held = [self.roi if a == axis else side for a, side in enumerate(shape)]
        self.sums: list[Tensor] = []  # (K, *held) of each network

    def add(self, corners: Sequence[tuple[int, ...]], logits: Sequence[Tensor]) -> None:
        """Take in the logits (B, K, roi, roi, roi) of each network for the windows at `corners`."""
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
            device = roomy_device(device, needed, torch.cuda.mem_get_info(device)[0])
        window = compute_importance_map((self.roi,) * 3, mode="gaussian", sigma_scale=0.125)
        self.window = window.to(device)
        self.weights = torch.zeros(self.held, device=device)
        self.sums = [self.weights.new_zeros((count, *self.held)) for count in classes]

    def first(self, count: int) -> tuple[list[Tensor], Tensor]:
        """Each network's sums (K, ...), and the weights' (...), of the first `count` planes, not copied."""
        sums = [own.narrow(self.axis + 1, 0, count) for own in self.sums]
        return sums, self.weights.narrow(self.axis, 0, count)

    def drop(self, count: int) -> None:
        """Move on by `count` planes."""
        for tensor, along in [(self.weights, self.axis), *((s, self.axis + 1) for s in self.sums)]:
            # In steps that do not overlap, so that nothing is copied aside.
            for to in range(0, self.roi - count, count):
                depth = min(count, self.roi - count - to)
                tensor.narrow(along, to, depth).copy_(tensor.narrow(along, to + count, depth))
            tensor.narrow(along, self.roi - count, count).zero_()


def _sums(sums: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The only network's sums, which rank classes as probabilities do."""
    return sums[0]


def _mean_probabilities(sums: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The mean of the networks' probabilities, in the place of the sums."""
    for own in sums:
        own.div_(weights)
        own.sub_(own.amax(dim=0)).exp_()
        own.div_(own.sum(dim=0))
    mean, *others = sums
    for probabilities in others:
        mean.add_(probabilities)
    return mean.div_(len(sums))


def _starts(side: int, roi: int, overlap: float) -> list[int]:
    """Where windows start: as far apart as `overlap` wants it, the last one flush with the end."""
    return [*range(0, side - roi, _step(roi, overlap)), side - roi]


def _step(roi: int, overlap: float) -> int:
    return max(int(roi * (1 - overlap)), 1)


def _box(corner: Sequence[int], roi: int) -> tuple[slice, ...]:
    return tuple(slice(start, start + roi) for start in corner)


def _logits(network: Predictor, windows: Tensor, mirror: Sequence[int]) -> Tensor:
    if not mirror:
        return network(windows)
    axes = [axis + 2 for axis in mirror]
    flips = [flip for count in range(len(axes) + 1) for flip in itertools.combinations(axes, count)]
    total = network(windows).float()
    for flip in flips[1:]:
        total = total + network(windows.flip(flip)).float().flip(flip)
    return total / len(flips)
