"""Affine instance norm of small volumes on a CPU, fused with the sum and the activation after it.

`CpuNorm` takes samples and pieces of a volume one after another, which for small volumes is mostly overhead.
Here each operation is over the whole batch.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dae3d.models.kernels import aten

# Values of a sample up to which this is faster.
MOST = 1 << 17


class SmallNorm(torch.autograd.Function):
    """leaky_relu(norm(x) + residual), optionally with the residual normalised too; all tensors channels-last.

    Weights and biases (C,) follow the other arguments: those of `x`, then those of the residual.
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
        terms = [x] if residual is None else [x, residual]
        normalised = terms if normalise_residual else terms[:1]
        out = torch.empty_like(x)
        total: Tensor | None = None
        statistics: list[Tensor] = []
        for term, weight, bias in zip(normalised, affine[::2], affine[1::2], strict=True):
            rows = _rows(term).float()
            mean = rows.mean(1, keepdim=True)
            centred = rows - mean
            scale = torch.rsqrt(centred.square().mean(1, keepdim=True) + eps)
            statistics += [mean, scale]
            total = torch.addcmul(bias if total is None else total + bias, centred, scale * weight)
        assert total is not None
        if len(terms) > len(normalised):
            total += _rows(terms[-1])
        if slope != 1:
            functional.leaky_relu_(total, slope)
        _rows(out).copy_(total)
        ctx.slope, ctx.raw_type = slope, terms[-1].dtype if len(terms) > len(normalised) else None
        ctx.save_for_backward(out if slope != 1 else None, *statistics, *affine[::2], *normalised)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Gradients of `x`, of the residual if there is one, and of weights and biases."""
        out, *saved = ctx.saved_tensors
        count = len(saved) // 4  # a mean, a scale, a weight and a volume for each norm
        statistics, weights, normalised = saved[: 2 * count], saved[2 * count : 3 * count], saved[3 * count :]
        given = _rows(gradient.contiguous(memory_format=torch.channels_last_3d)).float()
        if out is not None:
            before = torch.empty_like(given)
            aten.leaky_relu_backward_into(given, _rows(out).float(), ctx.slope, True, grad_input=before)
            given = before
        mean_given = given.mean(1, keepdim=True)
        grads, of_affine = [], []
        for term, mean, scale, weight in zip(
            normalised, statistics[::2], statistics[1::2], weights, strict=True
        ):
            normal = (_rows(term).float() - mean).mul_(scale)
            along = (given * normal).mean(1, keepdim=True)
            of_affine += [along.sum((0, 1)) * given.shape[1], mean_given.sum((0, 1)) * given.shape[1]]
            step = scale * weight
            change = torch.addcmul(given - mean_given, normal, along, value=-1).mul_(step)
            grads.append(torch.empty_like(term))
            _rows(grads[-1]).copy_(change)
        if ctx.raw_type is not None:
            grads.append(torch.empty_like(normalised[0], dtype=ctx.raw_type))
            _rows(grads[-1]).copy_(given)
        return (*grads, *[None] * (5 - len(grads)), *of_affine)


def _rows(x: Tensor) -> Tensor:
    """A channels-last (B, C, D, H, W) as (B, D * H * W, C), without a copy."""
    return x.permute(0, 2, 3, 4, 1).flatten(1, 3)
