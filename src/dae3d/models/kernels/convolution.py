"""Convolutions in the layouts that are fast on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Convolution(nn.Conv3d):
    """PyTorch's convolution; on a CPU in channels-last layout, and as a 2D convolution where 3D is slow.

    One group, no dilation.
    """

    def forward(self, *parts: Tensor) -> Tensor:
        """(B, C, D, H, W), as one tensor or split along channels, to (B, C', D', H', W').

        Split inputs are not concatenated: their outputs are summed.
        """
        if len(parts) == 1:
            return self._convolved(parts[0], self.weight, self.bias)
        weights = self.weight.split([part.shape[1] for part in parts], dim=1)
        out = self._convolved(parts[0], weights[0], self.bias)
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            out = out + self._convolved(part, weight, None)
        return out

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.device.type != "cpu" or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return self._conv_forward(x, weight, bias)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if set(self.kernel_size) | set(self.stride) == {1}:
            if 1 in weight.shape[:2]:
                return functional.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
            return self._in_planes(x.transpose(1, 2).flatten(0, 1), weight[:, :, 0], bias, len(x))
        if weight.shape[1] == 1:
            (margin, *_), (depth, *_), (step, *_) = self.padding, self.kernel_size, self.stride
            # Neighbouring slices become the input channels of a 2D convolution.
            slices = functional.pad(x[:, 0], (0, 0, 0, 0, margin, margin)).unfold(1, depth, step)
            planes = slices.contiguous().flatten(0, 1).movedim(-1, 1)
            return self._in_planes(planes, weight[:, 0], bias, len(x))
        if x.shape[2] == 2 and self.padding[0]:
            # Otherwise PyTorch 2.13 computes the bfloat16 weight gradient from uninitialised memory.
            margin, *others = self.padding
            x = functional.pad(x, (0, 0, 0, 0, margin, margin))
            return functional.conv3d(x, weight, bias, self.stride, (0, *others))
        return self._conv_forward(x, weight, bias)

    def _in_planes(self, planes: Tensor, weight: Tensor, bias: Tensor | None, batch: int) -> Tensor:
        """(B * D', C, H, W) to (B, C', D', H', W')."""
        made = functional.conv2d(planes, weight, bias, self.stride[1:], self.padding[1:])
        return made.unflatten(0, (batch, -1)).transpose(1, 2)


def our_convolution(theirs: nn.Conv3d) -> Convolution:
    """Our convolution with the parameters of PyTorch's, which must have one group and no dilation."""
    ours = nn.utils.skip_init(
        Convolution,
        theirs.in_channels,
        theirs.out_channels,
        theirs.kernel_size,
        theirs.stride,
        theirs.padding,
        bias=theirs.bias is not None,
    )
    ours.weight, ours.bias = theirs.weight, theirs.bias
    return ours
