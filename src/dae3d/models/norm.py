"""Instance norm, with the sum and the activation after it, that keeps the channels-last layout."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dae3d.models.cpu_norm import CpuNorm
from dae3d.models.native_norm import NativeNorm, layout


class InstanceNorm(nn.InstanceNorm3d):
    """As PyTorch's, which turns every volume into the contiguous layout and the convolution after it back.

    (With a channels-last gradient of a batch of one, PyTorch's also gives a wrong gradient: seen in 2.13.)
    A single voxel, whose deviation from its own mean is zero, becomes zero.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to the same shape, mean 0 and deviation 1 over space before an affine map."""
        normal = _instance_norm(x, self.eps)
        if self.weight is None:
            return normal
        return normal * self.weight.view(-1, 1, 1, 1) + self.bias.view(-1, 1, 1, 1)


class NormActivation(nn.Module):
    """The leaky ReLU of an instance norm, to which a residual may be added before.

    Args:
        slope: of the leaky ReLU below zero.
        eps: added to the variance.
    """

    def __init__(self, slope: float, eps: float = 1e-5) -> None:
        super().__init__()
        self.slope = slope
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None, normalise_residual: bool = False) -> Tensor:
        """Of `x` (B, C, D, H, W) and a residual of its shape, taken as it is or its norm, to that shape."""
        if x[0, 0].numel() == 1:
            # Times zero, so that whatever made it has a gradient all the same.
            added = 0 if residual is None else residual * 0 if normalise_residual else residual
            return functional.leaky_relu(x * 0 + added, self.slope)
        if residual is not None:
            residual = residual.contiguous(memory_format=layout(x))
        return _way(x).apply(x, residual, normalise_residual, self.eps, self.slope)


def _instance_norm(x: Tensor, eps: float) -> Tensor:
    if x[0, 0].numel() == 1:
        return x * 0
    return _way(x).apply(x, None, False, eps, 1.0)


def _way(x: Tensor) -> Any:
    last = layout(x) == torch.channels_last_3d
    return CpuNorm if last and x.device.type == "cpu" and x.dtype != torch.float64 else NativeNorm
