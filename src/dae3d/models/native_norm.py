"""Instance norm by PyTorch's batch norm, in any memory layout, fused with the sum and activation after it.

PyTorch's instance norm makes every volume contiguous, and the convolution after it converts it back to
channels-last. It also returns a view, for which autograd copies the gradient of every sum or activation in
place.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dae3d.models import aten

Statistics = list[tuple[Tensor, Tensor]]


def layout(x: Tensor) -> torch.memory_format:
    """Channels-last for a volume (B, C, D, H, W) in that layout only, else contiguous."""
    last = x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
    return torch.channels_last_3d if last else torch.contiguous_format


class NativeNorm(torch.autograd.Function):
    """leaky_relu(norm(x) + residual), optionally with the residual normalised too; in the layout of `x`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, normalise_residual: bool, eps: float, slope: float
    ) -> Tensor:
        """Returns the shape of `x` (B, C, D, H, W); the residual has the same shape and layout."""
        x = x.contiguous(memory_format=layout(x))
        out, statistics = _normalised(x, eps)
        normalised, all_statistics = [x], [statistics]
        if residual is not None and normalise_residual:
            other, statistics = _normalised(residual, eps)
            normalised.append(residual)
            all_statistics.append(statistics)
            out += other
        elif residual is not None:
            out += residual
        if slope != 1:
            functional.leaky_relu_(out, slope)
        ctx.eps, ctx.slope, ctx.statistics = eps, slope, all_statistics
        ctx.raw_type = None if residual is None or normalise_residual else residual.dtype
        ctx.save_for_backward(out if slope != 1 else None, *normalised)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Gradients of `x`, and of the residual if there is one."""
        out, *normalised = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=layout(normalised[0]))
        if out is not None:
            gradient = aten.leaky_relu_backward(gradient, out, ctx.slope, True)
        grads = [
            _backward(gradient.to(term.dtype), term, statistics, ctx.eps)
            for term, statistics in zip(normalised, ctx.statistics, strict=True)
        ]
        if ctx.raw_type is not None:
            grads.append(gradient.to(ctx.raw_type))
        return (*grads, *[None] * (5 - len(grads)))


def _normalised(x: Tensor, eps: float) -> tuple[Tensor, Statistics]:
    """The norm of a volume, and the means and inverse deviations of each of its `_parts`."""
    out, statistics = torch.empty_like(x), []
    dtype = torch.promote_types(x.dtype, torch.float32)
    for part, into in zip(_parts(x), _parts(out), strict=True):
        mean, scale = torch.empty(2, part.shape[1], dtype=dtype, device=x.device)
        aten.batch_norm_into(
            part, _ones(scale), None, None, None, True, 0.0, eps, out=into, save_mean=mean, save_invstd=scale
        )
        statistics.append((mean, scale))
    return out, statistics


def _backward(gradient: Tensor, x: Tensor, statistics: Statistics, eps: float) -> Tensor:
    grads = [
        aten.batch_norm_backward(
            given, part, _ones(of_part[1]), None, None, *of_part, True, eps, [True, False, False]
        )[0]
        for given, part, of_part in zip(_parts(gradient), _parts(x), statistics, strict=True)
    ]
    if layout(x) == torch.contiguous_format:
        return grads[0].view(x.shape)
    rows = torch.stack(grads) if len(grads) > 1 else grads[0][None]
    return rows.unflatten(1, x.shape[2:]).movedim(-1, 1)


def _ones(scale: Tensor) -> Tensor | None:
    """Weights of 1: on a CPU, PyTorch needs weights to compute float32 statistics of half-precision input."""
    return torch.ones_like(scale) if scale.device.type == "cpu" else None


def _parts(x: Tensor) -> list[Tensor]:
    """Views of a volume (B, C, D, H, W), each to be normalised over all axes but the second.

    Channels-last: (D * H * W, C) for each sample. Contiguous: a single one, (1, B * C, D, H, W).
    """
    if layout(x) == torch.channels_last_3d:
        return [sample.flatten(0, 2) for sample in x.permute(0, 2, 3, 4, 1)]
    return [x.view(1, -1, *x.shape[2:])]
