"""MONAI's convolution blocks, with the same parameters but forward passes that are fast on a CPU."""

from typing import Any

import torch
from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.networks.blocks.unetr_block import UnetrUpBlock
from torch import Tensor, nn
from torch.nn import functional

from dae3d.models.linear import Linear
from dae3d.models.norm import InstanceNorm, NormActivation


def with_our_layers(block: nn.Module) -> Any:
    """Replace residual blocks, convolutions, instance norms and linear layers of a MONAI block by ours.

    Parameters and their names stay the same.
    """
    if isinstance(block, UnetrUpBlock):
        block = UpBlock(block)
    for name, module in list(block.named_modules()):
        if isinstance(module, UnetResBlock):
            block.set_submodule(name, ResidualBlock(module))
    for name, module in list(block.named_modules()):
        if type(module) is nn.Conv3d:
            block.set_submodule(name, our_convolution(module))
        elif type(module) is nn.InstanceNorm3d:
            block.set_submodule(name, InstanceNorm(module.num_features, module.eps, affine=module.affine))
        elif type(module) is nn.Linear:
            block.set_submodule(name, _our_linear(module))
    return block


class UpBlock(nn.Module):
    """Upsamples a feature map by 2 and merges it with a skip connection.

    Args:
        block: MONAI's block, whose parameters are taken over.
    """

    def __init__(self, block: UnetrUpBlock) -> None:
        super().__init__()
        self.transp_conv, self.conv_block = block.transp_conv, block.conv_block

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, C, D, H, W) and (B, C', 2D, 2H, 2W) to (B, C', 2D, 2H, 2W)."""
        return self.conv_block(self.transp_conv(x), skip)


class ResidualBlock(nn.Module):
    """Two convolutions with instance norms and a residual connection; norm, sum and leaky ReLU are fused.

    Args:
        block: MONAI's block, whose convolutions are taken over.
    """

    def __init__(self, block: UnetResBlock) -> None:
        super().__init__()
        self.conv1, self.conv2 = block.conv1, block.conv2
        if block.downsample:
            self.conv3 = block.conv3
        self.norm1 = NormActivation(block.lrelu.negative_slope, block.norm1.eps)
        self.norm2 = NormActivation(block.lrelu.negative_slope, block.norm2.eps)

    def forward(self, *parts: Tensor) -> Tensor:
        """(B, C, D, H, W), as one tensor or split along channels, to (B, C', D, H, W)."""
        out = self.conv2.conv(self.norm1(self.conv1.conv(*parts)))
        if hasattr(self, "conv3"):
            return self.norm2(out, self.conv3.conv(*parts), normalise_residual=True)
        (residual,) = parts
        return self.norm2(out, residual)


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


def _our_linear(theirs: nn.Linear) -> Linear:
    ours = nn.utils.skip_init(Linear, theirs.in_features, theirs.out_features, bias=theirs.bias is not None)
    ours.weight, ours.bias = theirs.weight, theirs.bias
    return ours
