"""Instance norm that keeps the channels-last layout on a CPU, and takes a single voxel too."""

import math
from typing import Any

import torch
from torch import Tensor, nn

# Values worked on at a time: what fits a core's cache.
_CACHED = 1 << 18
# Values in a row: enough to fill the processor's vectors.
_WIDE = 512


class InstanceNorm(nn.InstanceNorm3d):
    """As PyTorch's, which turns every volume into the contiguous layout and the convolution after it back.

    (With a channels-last gradient of a batch of one, PyTorch's also gives a wrong gradient: seen in 2.13.)
    A single voxel, whose deviation from its own mean is zero, becomes zero.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to the same shape, mean 0 and deviation 1 over space before an affine map."""
        if x[0, 0].numel() == 1:
            return x * 0
        if x.device.type != "cpu" or x.dtype == torch.float64 or not _is_channels_last(x):
            return super().forward(x)
        normal = _ChannelsLast.apply(x, self.eps)
        if self.weight is None:
            return normal
        return normal * self.weight.view(-1, 1, 1, 1) + self.bias.view(-1, 1, 1, 1)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()


def _rows(x: Tensor) -> Tensor:
    """(B, C, D, H, W) in channels-last layout as (B, D * H * W / k, k * C), k voxels side by side.

    Operations on rows of few channels would not fill the processor's vectors.
    """
    rows = x.contiguous(memory_format=torch.channels_last_3d).permute(0, 2, 3, 4, 1).flatten(1, 3)
    beside = math.gcd(rows.shape[1], max(1, _WIDE // rows.shape[2]))
    return rows.view(len(rows), rows.shape[1] // beside, -1)


class _ChannelsLast(torch.autograd.Function):
    """Passes over the volume in pieces that stay in the cache from one operation to the next."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        out, channels, voxels = torch.empty_like(x), x.shape[1], x[0, 0].numel()
        means, scales = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
        for sample, mean, scale, into in zip(_rows(x), means, scales, _rows(out), strict=True):
            beside = sample.shape[1] // channels
            total, squares = scale.new_zeros(2, sample.shape[1])
            for piece in _pieces(sample):
                total += piece.sum(0, dtype=torch.float32)
            mean.copy_(total.view(-1, channels).sum(0) / voxels)
            wide_mean = mean.repeat(beside)
            for piece in _pieces(sample):
                squares += (piece - wide_mean).square_().sum(0)
            torch.rsqrt(squares.view(-1, channels).sum(0) / voxels + eps, out=scale)
            wide_scale = scale.repeat(beside)
            shift = -wide_mean * wide_scale
            for piece, normal in zip(_pieces(sample), _pieces(into), strict=True):
                normal.copy_(torch.addcmul(shift, piece.float(), wide_scale))
        ctx.save_for_backward(x, means, scales)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, means, scales = ctx.saved_tensors
        grad, channels, voxels = torch.empty_like(x), x.shape[1], x[0, 0].numel()
        volumes = (_rows(x), _rows(gradient), _rows(grad))
        for sample, given, into, mean, scale in zip(*volumes, means, scales, strict=True):
            beside = sample.shape[1] // channels
            wide_scale = scale.repeat(beside)
            wide_shift = (-mean * scale).repeat(beside)
            total, along = torch.zeros_like(wide_scale), torch.zeros_like(wide_scale)
            for piece, given_piece in zip(_pieces(sample), _pieces(given), strict=True):
                total += given_piece.sum(0, dtype=torch.float32)
                along += torch.addcmul(wide_shift, piece.float(), wide_scale).mul_(given_piece).sum(0)
            # scale * (given - mean of given - normal * mean of given * normal), where normal is
            # piece * scale + shift.
            mean_given, mean_along = (
                sums.view(-1, channels).sum(0).div_(voxels).repeat(beside) for sums in (total, along)
            )
            slope = wide_scale.square() * mean_along
            offset = -wide_scale * (mean_given + mean_along * wide_shift)
            for piece, given_piece, into_piece in zip(
                _pieces(sample), _pieces(given), _pieces(into), strict=True
            ):
                change = torch.addcmul(offset, given_piece.float(), wide_scale)
                into_piece.copy_(change.addcmul_(piece.float(), slope, value=-1))
        return grad, None


def _pieces(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(max(1, _CACHED // rows.shape[1]))
