"""A batch of crops on its way: voxels as stored, packed into one run of bytes, scaled where they arrive.

From a loader process that is one piece of shared memory, to a GPU one copy out of pinned memory, which
nothing waits for, and of a half or a quarter of the bytes that float32 takes.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch

from dae3d.store.boxes import Triple
from dae3d.store.native import NativeCrop, Unscaled

Sample = dict[str, torch.Tensor]
# "voxels" (uint8), "parts" (a list of `Part`) and, of each crop, "modality" and "sample" (int64).
Packed = dict[str, Any]

_ALIGNMENT = 16  # bytes


class Part(NamedTuple):
    """A crop's voxels among the bytes of a batch, and what is to become of them."""

    first_byte: int
    last_byte: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: Triple
    unscaled: Unscaled | None


class NumberedCrop(NamedTuple):
    """A crop with the number of its modality and of its sample."""

    crop: NativeCrop
    modality: int
    sample: int


def pack(crops: Sequence[NumberedCrop]) -> Packed:
    """Put crops together into a batch."""
    arrays = [numbered.crop.voxels for numbered in crops]
    firsts = [0, *accumulate(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays)]
    voxels = torch.empty(firsts[-1], dtype=torch.uint8)
    parts = []
    for numbered, array, first in zip(crops, arrays, firsts, strict=False):
        source = torch.from_numpy(np.ascontiguousarray(array))
        last = first + array.nbytes
        voxels[first:last].view(source.dtype).view(source.shape).copy_(source)
        crop = numbered.crop
        part = Part(first, last, source.dtype, tuple(source.shape), crop.start, crop.unscaled)
        parts.append(part)
    return {
        "voxels": voxels,
        "parts": parts,
        "modality": torch.tensor([numbered.modality for numbered in crops]),
        "sample": torch.tensor([numbered.sample for numbered in crops]),
    }


def unpack(batch: Packed, roi: int) -> Sample:
    """The batch that the network gets: "image" (B, 1, roi, roi, roi) float32, "modality", "sample" (B,)."""
    voxels: torch.Tensor = batch["voxels"]
    image = torch.zeros((len(batch["parts"]), 1, roi, roi, roi), device=voxels.device)
    for part, crop in zip(batch["parts"], image, strict=True):
        box = tuple(slice(s, s + n) for s, n in zip(part.start, part.shape, strict=True))
        inside = crop[0][box]
        inside.copy_(voxels[part.first_byte : part.last_byte].view(part.dtype).view(part.shape))
        if part.unscaled is not None:
            _scale(inside, part.unscaled)
    return {"image": image, "modality": batch["modality"], "sample": batch["sample"]}


def _scale(image: torch.Tensor, unscaled: Unscaled) -> None:
    """Scale in place, to the bit as `dae3d.store.intensity.normalise` does."""
    shift, scale, clips = unscaled.figures
    image += unscaled.intercept
    if unscaled.padding is not None:
        image.masked_fill_(image <= unscaled.padding, unscaled.background)
    zeros = None if clips else image == 0
    image -= shift
    # By a number from the CPU, CUDA would not divide but multiply by its reciprocal, which rounds twice.
    image /= torch.full((), scale, device=image.device)
    if zeros is None:
        image.clamp_(0, 1)
    else:
        image.masked_fill_(zeros, 0)
