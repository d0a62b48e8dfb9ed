"""Instance norm by PyTorch's batch norm, in any memory layout, fused with the sum and activation after it.

PyTorch's instance norm makes every volume contiguous, and the convolution after it converts it back to
channels-last. It also returns a view, for which autograd copies the gradient of every sum or activation in
place.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dae3d.models.kernels import aten

Statistics = list[tuple[Tensor, Tensor]]


def layout(x: Tensor) -> torch.memory_format:
    """Channels-last for a volume (B, C, D, H, W) in that layout only, else contiguous."""
    last = x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
    return torch.channels_last_3d if last else torch.contiguous_format


class NativeNorm(torch.autograd.Function):
    """leaky_relu(norm(x) + residual), optionally with the residual normalised too; in the layout of `x`.

    Norms may have weights and biases (C,), which follow the other arguments: those of `x`, then those of the
    residual.
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
        x = x.contiguous(memory_format=layout(x))
        out, statistics = _normalised(x, eps, *affine[:2])
        normalised, all_statistics = [x], [statistics]
        if residual is not None and normalise_residual:
            other, statistics = _normalised(residual, eps, *affine[2:])
            normalised.append(residual)
            all_statistics.append(statistics)
            out += other
        elif residual is not None:
            out += residual
        if slope != 1:
            functional.leaky_relu_(out, slope)
        ctx.eps, ctx.slope, ctx.statistics = eps, slope, all_statistics
        ctx.raw_type = None if residual is None or normalise_residual else residual.dtype
        ctx.save_for_backward(out if slope != 1 else None, *affine[::2], *normalised)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Gradients of `x`, of the residual if there is one, and of weights and biases."""
        out, *saved = ctx.saved_tensors
        terms = len(ctx.statistics)
        weights, normalised = saved[:-terms] or [None] * terms, saved[-terms:]
        gradient = gradient.contiguous(memory_format=layout(normalised[0]))
        if out is not None:
            gradient = aten.leaky_relu_backward(gradient, out, ctx.slope, True)
        found = [
            _backward(gradient.to(term.dtype), term, statistics, ctx.eps, weight)
            for term, statistics, weight in zip(normalised, ctx.statistics, weights, strict=True)
        ]
        grads = [of_term[0] for of_term in found]
        if ctx.raw_type is not None:
            grads.append(gradient.to(ctx.raw_type))
        of_affine = [each for of_term in found for each in of_term[1:]]
        return (*grads, *[None] * (5 - len(grads)), *of_affine)


def _normalised(
    x: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Statistics]:
    """The norm of a volume, and the means and inverse deviations of each of its `_parts`."""
    out, statistics = torch.empty_like(x), []
    dtype = torch.promote_types(x.dtype, torch.float32)
    for part, into in zip(_parts(x), _parts(out), strict=True):
        mean, scale = torch.empty(2, part.shape[1], dtype=dtype, device=x.device)
        factor, offset = (_over_parts(each, scale) for each in (weight, bias))
        factor = _ones(scale) if factor is None else factor
        rest = (None, None, True, 0.0, eps)
        aten.batch_norm_into(part, factor, offset, *rest, out=into, save_mean=mean, save_invstd=scale)
        statistics.append((mean, scale))
    return out, statistics


def _backward(
    gradient: Tensor, x: Tensor, statistics: Statistics, eps: float, weight: Tensor | None
) -> tuple[Tensor, ...]:
    """Gradients of the volume and, if there is a weight, of weight and bias (C,)."""
    wanted = [True, weight is not None, weight is not None]
    found = []
    for given, part, of_part in zip(_parts(gradient), _parts(x), statistics, strict=True):
        factor = _ones(of_part[1]) if weight is None else _over_parts(weight, of_part[1])
        found.append(aten.batch_norm_backward(given, part, factor, None, None, *of_part, True, eps, wanted))
    grads = [each[0] for each in found]
    of_affine: tuple[Tensor, ...] = ()
    if weight is not None:
        of_affine = tuple(
            torch.stack([each[i].view(-1, len(weight)).sum(0) for each in found]).sum(0) for i in (1, 2)
        )
    if layout(x) == torch.contiguous_format:
        return grads[0].view(x.shape), *of_affine
    rows = torch.stack(grads) if len(grads) > 1 else grads[0][None]
    return rows.unflatten(1, x.shape[2:]).movedim(-1, 1), *of_affine


def _over_parts(values: Tensor | None, scale: Tensor) -> Tensor | None:
    """(C,) in the type and, for contiguous volumes, repeated to the length of the statistics of a part."""
    return None if values is None else values.to(scale.dtype).repeat(len(scale) // len(values))


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
