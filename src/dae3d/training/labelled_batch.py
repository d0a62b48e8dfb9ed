"""Transfer of a batch of labelled crops, in the same slots of shared memory as in pre-training."""

import math
from collections.abc import Sequence

import torch

from dae3d.store.boxes import Triple
from dae3d.training.batch import Packed, Part, Sample, aligned, slot_of_this_process
from dae3d.training.slots import Slots

_TENSORS = ("image", "label")


class LabelledBatch(Packed):
    """Its two parts are the images and the labels of the whole batch; `numbers` (B,) are the samples."""

    def unpack(self, roi: Triple) -> Sample:
        """Returns "image" (B, C, *roi) float32, "label" (B, 1, ...) uint8, "sample" (B,)."""
        made = {}
        for name, part in zip(_TENSORS, self.parts, strict=True):
            tensor = self.voxels[part.first_byte : part.last_byte].view(part.dtype).view(part.shape)
            made[name] = tensor if self.slot is None else tensor.clone()
        self._leave_slot()
        return made | {"sample": self.numbers}


def pack_labelled(samples: Sequence[Sample], slots: Slots | None = None) -> LabelledBatch:
    """Pack labelled crops into a batch; a loader process uses one of its slots if one is free."""
    parts, size = [], 0
    for name in _TENSORS:
        first = samples[0][name]
        last = size + len(samples) * first.nbytes
        parts.append(Part(size, last, first.dtype, (len(samples), *first.shape), (0, 0, 0), None))
        size = aligned(last)
    slot = slot_of_this_process(slots)
    voxels = slot.bytes(size) if slot else torch.empty(size, dtype=torch.uint8)
    for name, part in zip(_TENSORS, parts, strict=True):
        there = voxels[part.first_byte : part.last_byte].view(part.dtype).view(part.shape)
        torch.stack([sample[name] for sample in samples], out=there)
    sample = torch.stack([sample["sample"] for sample in samples])
    return LabelledBatch(voxels, parts, sample, slot)


def labelled_slot_bytes(batch_size: int, channels: int, roi: Triple) -> int:
    """Size in bytes of a batch of crops with these sides: `channels` float32 and a uint8 label."""
    voxels = batch_size * math.prod(roi)
    return aligned(channels * 4 * voxels) + aligned(voxels)
