"""Instance norm that keeps the channels-last layout, optionally fused with a sum and an activation."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dae3d.models.kernels.cpu_norm import CpuNorm
from dae3d.models.kernels.native_norm import NativeNorm, layout
from dae3d.models.kernels.small_norm import MOST, SmallNorm


class InstanceNorm(nn.InstanceNorm3d):
    """As PyTorch's, which makes every volume contiguous, so that the next convolution has to convert it back.

    (PyTorch 2.13 also returns a wrong gradient for a channels-last gradient with a batch of one.) A single
    voxel becomes zero, because it equals its own mean.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to the same shape, mean 0 and deviation 1 over space before an affine map."""
        normal = _instance_norm(x, self.eps)
        if self.weight is None:
            return normal
        return normal * self.weight.view(-1, 1, 1, 1) + self.bias.view(-1, 1, 1, 1)


class NormActivation(nn.Module):
    """Instance norm and leaky ReLU, with an optional residual added in between.

    Args:
        slope: of the leaky ReLU below zero.
        eps: added to the variance.
    """

    def __init__(self, slope: float, eps: float = 1e-5) -> None:
        super().__init__()
        self.slope = slope
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None, normalise_residual: bool = False) -> Tensor:
        """leaky_relu(norm(x) + residual), the residual optionally normalised too; all (B, C, D, H, W)."""
        if x[0, 0].numel() == 1:
            # Multiplied by zero, so that the layers before still get a gradient.
            added = 0 if residual is None else residual * 0 if normalise_residual else residual
            return functional.leaky_relu(x * 0 + added, self.slope)
        if residual is not None:
            residual = residual.contiguous(memory_format=layout(x))
        return _implementation(x).apply(x, residual, normalise_residual, self.eps, self.slope)


def norm_activation(
    x: Tensor,
    norm: InstanceNorm,
    slope: float,
    residual: Tensor | None = None,
    residual_norm: InstanceNorm | None = None,
) -> Tensor:
    """leaky_relu(norm(x) + residual) of affine norms, in one pass.

    Args:
        x: (B, C, D, H, W).
        norm: affine.
        slope: of the leaky ReLU below zero; 1 for none.
        residual: of the same shape.
        residual_norm: affine, with the same eps; the residual is normalised too.
    """
    norms = [norm] if residual_norm is None else [norm, residual_norm]
    if x[0, 0].numel() == 1:
        out = norm(x)
        if residual is not None:
            out = out + (residual if residual_norm is None else residual_norm(residual))
        return functional.leaky_relu(out, slope)
    if residual is not None:
        residual = residual.contiguous(memory_format=layout(x))
    affine = [parameter for each in norms for parameter in (each.weight, each.bias)]
    given = (x, residual, residual_norm is not None, norm.eps, slope)
    implementation = _implementation(x)
    if implementation is CpuNorm and x[0].numel() <= MOST:
        implementation = SmallNorm
    return implementation.apply(*given, *affine)


def _instance_norm(x: Tensor, eps: float) -> Tensor:
    if x[0, 0].numel() == 1:
        return x * 0
    return _implementation(x).apply(x, None, False, eps, 1.0)


def _implementation(x: Tensor) -> Any:
    last = layout(x) == torch.channels_last_3d
    return CpuNorm if last and x.device.type == "cpu" and x.dtype != torch.float64 else NativeNorm
