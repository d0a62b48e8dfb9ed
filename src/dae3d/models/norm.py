"""Instance norm that keeps the channels-last layout on a CPU, and takes a single voxel too."""

from typing import Any

import torch
from torch import Tensor, nn

# Values worked on at a time: what fits a core's cache.
_CACHED = 1 << 16


class InstanceNorm(nn.InstanceNorm3d):
    """As PyTorch's, which turns every volume into the contiguous layout and the convolution after it back.

    (With a channels-last gradient of a batch of one, PyTorch's also gives a wrong gradient: seen in 2.13.)
    A single voxel, whose deviation from its own mean is zero, becomes zero.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to the same shape, mean 0 and deviation 1 over space before an affine map."""
        if x[0, 0].numel() == 1:
            return x * 0
        if x.device.type != "cpu" or x.dtype != torch.float32 or not _is_channels_last(x):
            return super().forward(x)
        normal = _ChannelsLast.apply(x, self.eps)
        if self.weight is None:
            return normal
        return normal * self.weight.view(-1, 1, 1, 1) + self.bias.view(-1, 1, 1, 1)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()


def _rows(x: Tensor) -> Tensor:
    """(B, C, D, H, W) in channels-last layout as (B, D * H * W, C)."""
    return x.contiguous(memory_format=torch.channels_last_3d).permute(0, 2, 3, 4, 1).flatten(1, 3)


class _ChannelsLast(torch.autograd.Function):
    """Passes over the volume in pieces that stay in the cache from one operation to the next."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        rows, out = _rows(x), torch.empty_like(x)
        means = rows.mean(1)
        scales = torch.empty_like(means)
        for sample, mean, scale, into in zip(rows, means, scales, _rows(out), strict=True):
            squares = torch.zeros_like(mean)
            for piece in _pieces(sample):
                squares += (piece - mean).square_().sum(0)
            torch.rsqrt(squares / len(sample) + eps, out=scale)
            for piece, normal in zip(_pieces(sample), _pieces(into), strict=True):
                torch.addcmul(-mean * scale, piece, scale, out=normal)
        ctx.save_for_backward(x, means, scales)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, means, scales = ctx.saved_tensors
        grad = torch.empty_like(x)
        volumes = (_rows(x), _rows(gradient), _rows(grad))
        for sample, given, into, mean, scale in zip(*volumes, means, scales, strict=True):
            shift = -mean * scale
            total, along = torch.zeros_like(mean), torch.zeros_like(mean)
            for piece, given_piece in zip(_pieces(sample), _pieces(given), strict=True):
                total += given_piece.sum(0)
                along += torch.addcmul(shift, piece, scale).mul_(given_piece).sum(0)
            # scale * (given - mean of given - normal * mean of given * normal), where normal is
            # piece * scale + shift.
            slope = scale.square() * along / len(sample)
            offset = -scale * (total + along * shift) / len(sample)
            for piece, given_piece, into_piece in zip(
                _pieces(sample), _pieces(given), _pieces(into), strict=True
            ):
                torch.addcmul(offset, given_piece, scale, out=into_piece)
                into_piece.addcmul_(piece, slope, value=-1)
        return grad, None


def _pieces(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(max(1, _CACHED // rows.shape[1]))
