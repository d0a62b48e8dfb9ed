"""Instance norm on a CPU in channels-last layout, fused with the sum and the activation after it.

Sums are computed by PyTorch's batch norm, which adds up rows one after another. It is called on pieces of the
volume, so that float32 sums lose no digits. Several voxels are put into one row, so that few channels still
fill the processor's vector registers.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dae3d.models.kernels import aten

# Values processed at a time: as many as fit a core's cache.
_CACHED = 1 << 19
# Rows added up one after another: few enough for float32.
_SUMMED = 2048
# Values in a row: enough to fill the processor's vector registers.
_WIDE = 512


class Map(NamedTuple):
    """The norm of a sample as x * scale + shift, and its means; each (k * C,), as wide as a row."""

    scale: Tensor
    shift: Tensor
    mean: Tensor


class CpuNorm(torch.autograd.Function):
    """leaky_relu(norm(x) + residual), optionally with the residual normalised too; all tensors channels-last.

    Norms may have weights and biases (C,), which follow the other arguments: those of `x`, then those of the
    residual. The volume is processed in pieces that stay in the cache from one operation to the next. The
    norm is a map x * scale + shift for every sample and channel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        normalise_residual: bool,
        eps: float,
        slope: float,
        *affine: Tensor,
    ) -> Tensor:
        """Returns the shape of `x` (B, C, D, H, W); the residual has the same shape and layout."""
        out = torch.empty_like(x)
        terms = [x] if residual is None else [x, residual]
        normalised = terms if normalise_residual else terms[:1]
        volumes = [_rows(term) for term in terms]
        maps = [_norm_maps(rows, x.shape[1], eps) for rows in volumes[: len(normalised)]]
        weights, biases = affine[::2], affine[1::2]
        for i, into in enumerate(_rows(out)):
            of_sample = [of_term[i] for of_term in maps]
            if affine:
                of_sample = [_weighted(*each) for each in zip(of_sample, weights, biases, strict=True)]
            _forward([volume[i] for volume in volumes], of_sample, into, slope)
        ctx.slope, ctx.maps, ctx.raw_type = slope, maps, None
        if len(terms) > len(normalised):
            ctx.raw_type = terms[-1].dtype
        ctx.save_for_backward(out if slope != 1 else None, *weights, *normalised)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Gradients of `x`, of the residual if there is one, and of weights and biases."""
        out, *saved = ctx.saved_tensors
        weights, normalised = saved[: -len(ctx.maps)], saved[-len(ctx.maps) :]
        grads = [torch.empty_like(term) for term in normalised]
        if ctx.raw_type is not None:
            grads.append(torch.empty_like(normalised[0], dtype=ctx.raw_type))
        given, volumes = _rows(gradient), [_rows(term) for term in normalised]
        intos = [_rows(grad) for grad in grads]
        of_affine = [torch.zeros(normalised[0].shape[1]) for _ in range(2 * len(weights))]
        for i, given_rows in enumerate(given):
            before = given_rows
            if out is not None:
                # An unnormalised residual has the gradient of the sum; the gradients of other terms overwrite
                # it.
                before = intos[-1][i]
                _activation_backward(given_rows, _rows(out)[i], before, ctx.slope)
            elif ctx.raw_type is not None:
                intos[-1][i].copy_(given_rows)
            _norms_backward(
                before,
                [volume[i] for volume in volumes],
                [of_term[i] for of_term in ctx.maps],
                [into[i] for into in intos[: len(volumes)]],
                normalised[0].shape[1],
                weights,
                of_affine,
            )
        return (*grads, *[None] * (5 - len(grads)), *of_affine)


def _rows(x: Tensor) -> Tensor:
    """(B, C, D, H, W) in channels-last layout as (B, D * H * W / k, k * C), with k voxels in a row."""
    rows = x.contiguous(memory_format=torch.channels_last_3d).permute(0, 2, 3, 4, 1).flatten(1, 3)
    most = max(1, _WIDE // rows.shape[2])
    beside = next(k for k in range(most, 0, -1) if rows.shape[1] % k == 0)
    return rows.view(len(rows), rows.shape[1] // beside, -1)


def _pieces(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(max(1, _CACHED // rows.shape[1]))


def _mean(sums: Tensor, channels: int, voxels: int) -> Tensor:
    """From column sums of the rows, the means over voxels, repeated to the width of a row."""
    return sums.view(-1, channels).sum(0).div_(voxels).repeat(len(sums) // channels)


def _norm_maps(volume: Tensor, channels: int, eps: float) -> list[Map]:
    """The norm of every sample of a volume given as rows (B, D * H * W / k, k * C)."""
    # With float32 running statistics, which momentum 0 leaves unchanged, PyTorch computes float32 statistics
    # of bfloat16 input.
    running = torch.zeros(2, volume.shape[2])
    maps = []
    for rows in volume:
        pieces = rows.split(_SUMMED)
        found = [aten.batch_norm_statistics(piece, *running, 0.0) for piece in pieces]
        means, variances = (
            torch.stack(each).view(len(pieces), -1, channels) for each in zip(*found, strict=True)
        )
        shares = torch.tensor([len(piece) / len(rows) for piece in pieces]).view(-1, 1, 1)
        mean = (means * shares).sum(0).mean(0)
        variance = ((variances + (means - mean).square_()) * shares).sum(0).mean(0)
        scale = torch.rsqrt(variance + eps)
        wide = rows.shape[1] // channels
        maps.append(Map(*(each.repeat(wide) for each in (scale, -mean * scale, mean))))
    return maps


def _weighted(found: Map, weight: Tensor, bias: Tensor) -> Map:
    """The map of a norm with a weight and a bias (C,)."""
    weight, bias = (_wide(each, found.scale) for each in (weight, bias))
    return Map(found.scale * weight, found.shift * weight + bias, found.mean)


def _wide(values: Tensor, row: Tensor) -> Tensor:
    """(C,) repeated to the width of a row."""
    return values.float().repeat(len(row) // len(values))


def _forward(terms: list[Tensor], maps: list[Map], into: Tensor, slope: float) -> None:
    shift = torch.stack([each.shift for each in maps]).sum(0)
    for into_piece, *pieces in zip(_pieces(into), *map(_pieces, terms), strict=True):
        value = (
            into_piece
            if into_piece.dtype == torch.float32
            else torch.empty_like(into_piece, dtype=torch.float32)
        )
        torch.addcmul(shift, pieces[0].float(), maps[0].scale, out=value)
        if len(maps) == 2:
            value.addcmul_(pieces[1].float(), maps[1].scale)
        elif len(pieces) == 2:
            value.add_(pieces[1])
        if slope != 1:
            functional.leaky_relu_(value, slope)
        if value is not into_piece:
            into_piece.copy_(value)


def _activation_backward(given: Tensor, out: Tensor, into: Tensor, slope: float) -> None:
    for given_piece, out_piece, into_piece in zip(*map(_pieces, (given, out, into)), strict=True):
        aten.leaky_relu_backward_into(given_piece, out_piece, slope, True, grad_input=into_piece)


def _norms_backward(
    before: Tensor,
    terms: list[Tensor],
    maps: list[Map],
    intos: list[Tensor],
    channels: int,
    weights: list[Tensor],
    of_affine: list[Tensor],
) -> None:
    """From the gradient of a sum of norms to those of their inputs; the last may overwrite `before`.

    The gradients of weights and biases, in turn, are added to `of_affine`.
    """
    voxels = before.numel() // channels
    sums = [_sums(before, term, of_term) for term, of_term in zip(terms, maps, strict=True)]
    mean = _mean(sums[0][0], channels, voxels)
    # scale * (before - mean of before - normal * mean of before * normal), normal = piece * scale + shift
    steps: list[tuple[Tensor, ...]] = []
    for (scale, shift, _), (_, along) in zip(maps, sums, strict=True):
        mean_along = _mean(along, channels, voxels)
        steps.append((scale, scale.square() * mean_along, -scale * (mean + mean_along * shift)))
    for i, weight in enumerate(weights):
        weighted = _wide(weight, steps[i][0])
        steps[i] = tuple(each * weighted for each in steps[i])
        of_affine[2 * i] += sums[i][1].view(-1, channels).sum(0)
        of_affine[2 * i + 1] += sums[i][0].view(-1, channels).sum(0)
    for before_piece, *rest in zip(_pieces(before), *map(_pieces, [*terms, *intos]), strict=True):
        gradient = before_piece.float()
        for i, (scale, slope, offset) in enumerate(steps):
            change = torch.addcmul(offset, gradient, scale)
            torch.addcmul(change, rest[i].float(), slope, value=-1, out=rest[len(terms) + i])


def _sums(before: Tensor, term: Tensor, of_term: Map) -> tuple[Tensor, Tensor]:
    """(k * C,) each: column sums of a gradient, and of its products with the normalised values."""
    dtype = torch.promote_types(before.dtype, term.dtype)
    ones = torch.ones_like(of_term.scale)
    given = (ones, None, None, of_term.mean, of_term.scale, True, 0.0, (False, True, True))
    found = [
        aten.batch_norm_backward(before_piece.to(dtype), piece.to(dtype), *given)
        for before_piece, piece in zip(before.split(_SUMMED), term.split(_SUMMED), strict=True)
    ]
    total, along = (torch.stack([each[i] for each in found]).sum(0) for i in (2, 1))
    return total, along
