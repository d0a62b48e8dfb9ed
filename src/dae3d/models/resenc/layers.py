"""Layers, encoder and decoder of nnU-Net's residual encoder U-Net.

The same as `ResidualEncoderUNet` of dynamic-network-architectures, which registers each convolution and norm
twice; here each has its first name. Layers are ours (`models/kernels`).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dae3d.errors import Dae3dError
from dae3d.models.architecture import RepairFrom
from dae3d.models.kernels.convolution import Convolution
from dae3d.models.kernels.norm import InstanceNorm, norm_activation
from dae3d.models.repair_heads import RepairHeads
from dae3d.store.boxes import Triple, by_axis

_SLOPE = 0.01  # of the leaky ReLU, below zero


class ConvNorm(nn.Module):
    """Convolution and affine instance norm, then a leaky ReLU unless `activates` is false."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: Triple,
        stride: Triple = (1, 1, 1),
        bias: bool = True,
        activates: bool = True,
    ) -> None:
        super().__init__()
        depth, height, width = ((side - 1) // 2 for side in kernel)
        self.conv = Convolution(channels_in, channels_out, kernel, stride, (depth, height, width), bias=bias)
        self.norm = InstanceNorm(channels_out, affine=True)
        self.activates = activates

    def forward(self, *parts: Tensor) -> Tensor:
        """(B, C, D, H, W), given whole or in parts of its channels, to (B, C', D', H', W')."""
        return norm_activation(self.conv(*parts), self.norm, _SLOPE if self.activates else 1.0)


class ResidualBlock(nn.Module):
    """Two convolutions; the residual is average-pooled and projected where sizes change (ResNet-D)."""

    def __init__(self, channels_in: int, channels_out: int, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels_in, channels_out, kernel, stride)
        self.conv2 = ConvNorm(channels_out, channels_out, kernel, activates=False)
        skip: list[nn.Module] = []
        if max(stride) > 1:
            skip.append(nn.AvgPool3d(stride, stride))
        if channels_in != channels_out:
            skip.append(ConvNorm(channels_in, channels_out, (1, 1, 1), bias=False, activates=False))
        self.skip = nn.Sequential(*skip)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to (B, C', D', H', W')."""
        residual, residual_norm = x, None
        projection = self.skip[-1] if len(self.skip) else None
        # The pooling before a projection is part of it; its module only keeps the library's names.
        if isinstance(projection, ConvNorm):
            residual, residual_norm = pooled_projection(x, projection.conv, self.stride), projection.norm
        elif projection is not None:
            residual = projection(x)
        out = self.conv2.conv(self.conv1(x))
        return norm_activation(out, self.conv2.norm, _SLOPE, residual, residual_norm)


def pooled_projection(x: Tensor, projection: Convolution, stride: Triple) -> Tensor:
    """A 1^3 convolution without bias of the means of blocks of `stride` voxels, as one convolution.

    PyTorch's pooling works in float32 and in another layout; on a CPU it takes five times as long.
    """
    if max(stride) == 1:
        return torch.as_tensor(projection(x))
    weight = (projection.weight / math.prod(stride)).expand(-1, -1, *stride)
    return functional.conv3d(x, weight, stride=stride)


class Stage(nn.Module):
    """Residual blocks, of which the first lowers the resolution."""

    def __init__(
        self, channels_in: int, channels_out: int, blocks: int, kernel: Triple, stride: Triple
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            ResidualBlock(channels_in, channels_out, kernel, stride),
            *(ResidualBlock(channels_out, channels_out, kernel, (1, 1, 1)) for _ in range(blocks - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to (B, C', D', H', W')."""
        return self.blocks(x)


class Convolutions(nn.Module):
    """Convolutions with norm and activation, one after another."""

    def __init__(self, channels_in: int, channels_out: int, count: int, kernel: Triple) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            ConvNorm(channels_in, channels_out, kernel),
            *(ConvNorm(channels_out, channels_out, kernel) for _ in range(count - 1)),
        )

    def forward(self, *parts: Tensor) -> Tensor:
        """(B, C, D, H, W), given whole or in parts of its channels, to (B, C', D, H, W)."""
        first, *rest = self.convs
        out = first(*parts)
        for convolution in rest:
            out = convolution(out)
        return out


class ResEncEncoder(nn.Module):
    """A stem at full resolution and stages, each a feature map.

    Args:
        in_channels: of the image.
        channels: of each stage, as all lists the finest first.
        strides: of each stage against the one before.
        kernels: sides of the convolutions of each stage.
        blocks: residual blocks of each stage.
        checkpoint_activations: recompute a stage's activations in the backward pass.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        strides: Sequence[Triple],
        kernels: Sequence[Triple],
        blocks: Sequence[int],
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.multiple = [math.prod(axis) for axis in zip(*strides, strict=True)]
        self.stem = Convolutions(in_channels, channels[0], 1, kernels[0])
        widths = (channels[0], *channels)
        self.stages = nn.Sequential(
            *(
                Stage(widths[i], widths[i + 1], blocks[i], kernels[i], strides[i])
                for i in range(len(channels))
            )
        )
        initialise(self)

    def forward(
        self, image: Tensor, channel_keep: Tensor | None = None, token_mask: Tensor | None = None
    ) -> list[Tensor]:
        """Feature maps of all stages, the finest first.

        Args:
            image: (B, C, D, H, W); sides are multiples of the product of the strides along their axis.
            channel_keep: factor on the channels of the stem, broadcastable to its shape (B, C', D, H, W).
            token_mask: not used: a masked voxel is zero, and there is no token to replace.

        Raises:
            Dae3dError: if the sides of the image do not fit.
        """
        if any(side % unit for side, unit in zip(image.shape[2:], self.multiple, strict=True)):
            multiples = by_axis(self.multiple)
            raise Dae3dError(
                f"the sides of an image must be multiples of {multiples}, not {by_axis(image.shape[2:])}"
            )
        x = self.stem(image)
        if channel_keep is not None:
            x = x * channel_keep
        maps = []
        for stage in self.stages:
            x = _run(stage, self.checkpoint_activations and self.training, x)
            maps.append(x)
        return maps


class ResEncDecoder(nn.Module):
    """Transposed convolutions and convolutions from the coarsest feature map up.

    Args:
        channels: of each stage of the encoder, the finest first.
        strides: of each stage.
        kernels: of each stage.
        convolutions: of each stage of the decoder, the coarsest first.
        out_channels: of the output.
        checkpoint_activations: recompute a stage's activations in the backward pass.
        repair_from: the features that the output is computed from, as in `Architecture`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[Triple],
        kernels: Sequence[Triple],
        convolutions: Sequence[int],
        out_channels: int,
        checkpoint_activations: bool = False,
        repair_from: RepairFrom = "full",
    ) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        finest = 0 if repair_from == "full" else 1
        coarsest_first = range(len(channels) - 1, finest, -1)
        self.transpconvs = nn.ModuleList(
            nn.ConvTranspose3d(channels[i], channels[i - 1], strides[i], strides[i]) for i in coarsest_first
        )
        self.stages = nn.ModuleList(
            Convolutions(2 * channels[i - 1], channels[i - 1], count, kernels[i - 1])
            for i, count in zip(coarsest_first, convolutions, strict=False)
        )
        if repair_from == "full":
            self.head: nn.Module = head(channels[0], out_channels)
        else:
            coarse = channels[2:] if repair_from == "pyramid" else channels[2:4]
            heads = [
                head(channels[1], math.prod(strides[1]) * out_channels),
                *(head(width, out_channels) for width in coarse),
            ]
            self.repair_heads = RepairHeads(heads, strides[1], repair_from == "pyramid")
        initialise(self)

    def features(self, image: Tensor, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Inputs of the heads, the finest first, and the encoder's last map at the end."""
        features = [hidden[-1]]
        for up, stage, skip in zip(self.transpconvs, self.stages, reversed(hidden[:-1]), strict=False):
            x = _run(stage, self.checkpoint_activations and self.training, up(features[0]), skip)
            features.insert(0, x)
        return features

    def images(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of the heads: (B, out_channels, ...) at full resolution, then at lower resolutions."""
        return self.repair_heads(features) if hasattr(self, "repair_heads") else [self.head(features[0])]


def head(channels: int, out_channels: int) -> Convolution:
    """A 1^3 convolution."""
    return Convolution(channels, out_channels, (1, 1, 1))


def initialise(network: nn.Module) -> None:
    """Random weights as in nnU-Net: He's for a leaky ReLU, and residual blocks that begin as identities."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=_SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.conv2.norm.weight)
            nn.init.zeros_(module.conv2.norm.bias)


def _run(module: nn.Module, saves_memory: bool, *inputs: Tensor) -> Tensor:
    made: Any = checkpoint(module, *inputs, use_reentrant=False) if saves_memory else module(*inputs)
    return torch.as_tensor(made)
