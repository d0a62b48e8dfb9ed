"""Transfer of a batch of crops: voxels as stored, packed into one byte array, scaled on the device.

A loader process fills a slot of shared memory. A GPU gets a single asynchronous copy from pinned memory, of a
half or a quarter of the bytes that float32 takes.
"""

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from dae3d.store.boxes import Triple
from dae3d.store.stored_crop import PendingScaling, StoredCrop
from dae3d.training.slots import Slot, Slots

Sample = dict[str, Tensor]

_ALIGNMENT = 16  # bytes


class Part(NamedTuple):
    """Where a crop's voxels are among the bytes of a batch, and how to unpack them."""

    first_byte: int
    last_byte: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: Triple
    pending: PendingScaling | None


class NumberedCrop(NamedTuple):
    """A crop with its modality and sample numbers, and its first voxel in the scan."""

    crop: StoredCrop
    modality: int
    sample: int
    origin: Triple = (0, 0, 0)


@dataclass
class Packed:
    """`voxels` (bytes), the `parts` of them that are crops, and by crop, int64, `numbers` (B, 5).

    Numbers are the modality, the sample, and the first voxel of the crop in its scan.

    Voxels in a slot can be used only once: pinned, moved to another device or unpacked.
    """

    voxels: Tensor
    parts: list[Part]
    numbers: Tensor
    slot: Slot | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A tensor sent to another process takes a file in /dev/shm, where Docker allows only 64 MiB.
        voxels = self.voxels.numpy() if self.slot is None else len(self.voxels)
        return {"parts": self.parts, "slot": self.slot, "voxels": voxels, "numbers": self.numbers.tolist()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.numbers = torch.tensor(state["numbers"])
        if self.slot is None:
            self.voxels = torch.from_numpy(state["voxels"])
        else:
            self.voxels = self.slot.bytes(state["voxels"])
            # Run once: when the voxels have been used, or never will be.
            self._empty_slot = weakref.finalize(self, self.slot.empty)

    def pin_memory(self) -> "Packed":
        """The batch in pinned memory."""
        return self._moved(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Packed":
        """The batch on a device."""
        if self.voxels.device == device:
            return self
        return self._moved(lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))

    def unpack(self, roi: Triple) -> Sample:
        """The input of the network.

        "image" (B, 1, *roi) float32; "inside" of that shape, bool, false where a crop extends beyond
        the scan; "modality" and "sample" (B,); "origin" (B, 3), the first voxel in the scan.
        """
        image = torch.zeros((len(self.parts), 1, *roi), device=self.voxels.device)
        inside = torch.zeros_like(image, dtype=torch.bool)
        for part, crop, covered in zip(self.parts, image, inside, strict=True):
            box = tuple(slice(s, s + n) for s, n in zip(part.start, part.shape, strict=True))
            voxels = crop[0][box]
            voxels.copy_(self.voxels[part.first_byte : part.last_byte].view(part.dtype).view(part.shape))
            if part.pending is not None:
                _scale(voxels, part.pending)
            covered[0][box] = True
        self._leave_slot()
        modality, sample, origin = self.numbers[:, 0], self.numbers[:, 1], self.numbers[:, 2:]
        return {"image": image, "inside": inside, "modality": modality, "sample": sample, "origin": origin}

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "Packed":
        moved = type(self)(move(self.voxels), self.parts, move(self.numbers))
        self._leave_slot()
        return moved

    def _leave_slot(self) -> None:
        if self.slot is not None:
            self.voxels = self.voxels.new_empty(0)
            self._empty_slot()


def pack(crops: Sequence[NumberedCrop], slots: Slots | None = None) -> Packed:
    """Pack crops into a batch; a loader process uses one of its slots if one is free."""
    arrays = [numbered.crop.voxels for numbered in crops]
    firsts = [0, *accumulate(map(aligned, (array.nbytes for array in arrays)))]
    slot = slot_of_this_process(slots)
    voxels = slot.bytes(firsts[-1]) if slot else torch.empty(firsts[-1], dtype=torch.uint8)
    parts = []
    for numbered, array, first in zip(crops, arrays, firsts, strict=False):
        source = torch.from_numpy(np.ascontiguousarray(array))
        last = first + array.nbytes
        voxels[first:last].view(source.dtype).view(source.shape).copy_(source)
        crop = numbered.crop
        part = Part(first, last, source.dtype, tuple(source.shape), crop.start, crop.pending)
        parts.append(part)
    numbers = torch.tensor([[crop.modality, crop.sample, *crop.origin] for crop in crops])
    return Packed(voxels, parts, numbers, slot)


def slot_of_this_process(slots: Slots | None) -> Slot | None:
    """A free slot of this loader process; None if there is none, or in another process."""
    worker = get_worker_info()
    return slots.fill(worker.id) if slots and worker else None


def slot_bytes(batch_size: int, roi: Triple) -> int:
    """Size in bytes of the largest batch of crops with these sides, all float32."""
    return batch_size * aligned(4 * math.prod(roi))


def aligned(size: int) -> int:
    """Size in bytes of one part of a batch, rounded up to the alignment of the next."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _scale(image: Tensor, pending: PendingScaling) -> None:
    """Scale in place, bit-identical to `dae3d.store.intensity.normalise`."""
    shift, scale, clips = pending.normalisation
    image += pending.intercept
    if pending.padding is not None:
        image.masked_fill_(image <= pending.padding, pending.background)
    zeros = None if clips else image == 0
    image -= shift
    # Dividing by a number from the CPU, CUDA would multiply by the reciprocal, which rounds twice.
    image /= torch.full((), scale, device=image.device)
    if zeros is None:
        image.clamp_(0, 1)
    else:
        image.masked_fill_(zeros, 0)
