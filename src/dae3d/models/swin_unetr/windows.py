"""Maps tokens to attention windows: pads, shifts and partitions a volume of tokens in a single gather."""

from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Sides = tuple[int, int, int]
WindowEdges = Literal["exact", "reference"]

# Added to the scores of tokens that share a window but are not neighbours in the volume, as published.
_APART = -100.0
# Added to the scores of masked padding. Finite, because some kernels see only part of a row at a time, which
# may be all padding; and within the range of float16.
_PADDING = -10_000.0


class Group(NamedTuple):
    """Windows `start` to `stop`, which share an attention `mask` (n, n); None if nothing is masked."""

    start: int
    stop: int
    mask: Tensor | None


class Windows(NamedTuple):
    """The partition of a batch into windows with these `sides`, of `tokens` tokens each.

    `source` (windows * tokens) is the index of the token at each place, and arbitrary at the places in
    `padding`; `place` (B * D * H * W) is where each token goes. Windows with the same mask are adjacent.
    """

    source: Tensor
    padding: Tensor
    place: Tensor
    groups: tuple[Group, ...]
    tokens: int
    sides: Sides


@lru_cache(maxsize=64)
def windows(
    batch: int,
    sides: Sides,
    window: int,
    shifted: bool,
    device: torch.device,
    edges: WindowEdges = "exact",
) -> Windows:
    """The windows of a batch of volumes with `sides` tokens, optionally `shifted` by half a window.

    A window is no larger than the volume, and is not shifted along sides that it fills. Volumes are padded at
    the end to whole windows. Padding is masked, except with `edges` "reference", as published. Every window
    holds a token, because the padding of a side is less than a window.
    """
    sizes = (min(sides[0], window), min(sides[1], window), min(sides[2], window))
    shifts = tuple(window // 2 if shifted and side > window else 0 for side in sides)
    counts = tuple(-(-side // size) for side, size in zip(sides, sizes, strict=True))
    places = [np.arange(count * size) for count, size in zip(counts, sizes, strict=True)]
    numbers = np.pad(
        np.arange(prod(sides)).reshape(sides),
        [(0, len(axis) - side) for axis, side in zip(places, sides, strict=True)],
        constant_values=-1,
    )
    numbers = np.roll(numbers, [-shift for shift in shifts], (0, 1, 2))
    # After a shift, the last window along an axis holds tokens from both ends.
    ends = [axis >= len(axis) - shift for axis, shift in zip(places, shifts, strict=True)]
    regions = ends[0][:, None, None] * 4 + ends[1][:, None] * 2 + ends[2]
    members = _partitioned(numbers, counts, sizes)
    # Windows with the same pattern of regions and masked padding share a mask. A token's kind is twice its
    # region, plus one for masked padding.
    masked = (members < 0) & (edges == "exact")
    each = 2 * _partitioned(regions, counts, sizes) + masked
    kinds, kind_of = np.unique(each, axis=0, return_inverse=True)
    order = np.argsort(kind_of, kind="stable")
    bounds = np.searchsorted(kind_of[order], np.arange(len(kinds) + 1))
    groups = tuple(
        Group(start * batch, stop * batch, _mask(kind, device))
        for kind, (start, stop) in zip(kinds, pairwise(bounds.tolist()), strict=True)
    )
    # Window by window, each for the whole batch, so that groups are contiguous.
    offsets = np.arange(batch)[:, None] * prod(sides)
    source = np.where(members[order, None] < 0, -1, members[order, None] + offsets).reshape(-1)
    place = np.empty(batch * prod(sides), np.int64)
    taken = np.flatnonzero(source >= 0)
    place[source[taken]] = taken
    return Windows(
        torch.from_numpy(source.clip(0)).to(device),
        torch.from_numpy(np.flatnonzero(source < 0)).to(device),
        torch.from_numpy(place).to(device),
        groups,
        prod(sizes),
        sizes,
    )


def _partitioned(volume: np.ndarray, counts: tuple[int, ...], sizes: tuple[int, ...]) -> np.ndarray:
    """(D, H, W) to (windows, tokens of a window)."""
    parts = volume.reshape(counts[0], sizes[0], counts[1], sizes[1], counts[2], sizes[2])
    return parts.transpose(0, 2, 4, 1, 3, 5).reshape(prod(counts), prod(sizes))


def _mask(kinds: np.ndarray, device: torch.device) -> Tensor | None:
    """What is added to the attention scores (n, n) of a window, by the kinds of its tokens."""
    regions, padding = kinds // 2, kinds % 2 == 1
    if (regions == regions[0]).all() and not padding.any():
        return None
    added = np.where(regions[:, None] == regions, 0, _APART)
    added[:, padding] = _PADDING
    return torch.from_numpy(added.astype(np.float32)).to(device)


def into_windows(rows: Tensor, padding_row: Tensor | None, where: Windows) -> Tensor:
    """Rows of tokens (B * D * H * W, C) to (windows * tokens, C).

    Places without a token get `padding_row` (C), or zeros.
    """
    return _IntoWindows.apply(rows, padding_row, where)


def out_of_windows(placed: Tensor, where: Windows) -> Tensor:
    """Rows (windows * tokens, C) back to (B * D * H * W, C)."""
    return _OutOfWindows.apply(placed, where)


# A token has one place, so that the backward pass is a gather too; autograd would use a scatter-add.
class _IntoWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, padding_row: Tensor | None, where: Windows) -> Tensor:
        ctx.where, ctx.has_row = where, padding_row is not None
        placed = rows.index_select(0, where.source)
        if len(where.padding):
            placed[where.padding] = 0 if padding_row is None else padding_row.to(rows.dtype)
        return placed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        padding = gradient.index_select(0, ctx.where.padding).sum(0) if ctx.has_row else None
        return gradient.index_select(0, ctx.where.place), padding, None


class _OutOfWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, placed: Tensor, where: Windows) -> Tensor:
        ctx.where = where
        return placed.index_select(0, where.place)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        placed = gradient.index_select(0, ctx.where.source)
        if len(ctx.where.padding):
            placed[ctx.where.padding] = 0
        return placed, None
