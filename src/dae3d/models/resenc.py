"""nnU-Net's residual encoder U-Net (Isensee et al., arXiv 2404.09556), with its names of parameters.

The same as `ResidualEncoderUNet` of dynamic-network-architectures, which registers each convolution and norm
twice; here each has its first name. Layers are ours (`blocks.py`, `norm.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dae3d.models.blocks import Convolution
from dae3d.models.norm import InstanceNorm

Triple = tuple[int, int, int]

_SLOPE = 0.01  # of the leaky ReLU, below zero


@dataclass(frozen=True)
class ResEncArchitecture:
    """Sizes of the network; lists have an entry for each stage, the one of the finest resolution first.

    Attributes:
        channels: of each stage's feature map.
        strides: of each stage against the one before; of the first against the image.
        kernels: sides of each stage's convolutions.
        blocks: residual blocks of each stage.
        decoder_convolutions: of each stage but the last.
    """

    channels: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    strides: tuple[Triple, ...] = ((1, 1, 1), *[(2, 2, 2)] * 5)
    kernels: tuple[Triple, ...] = ((3, 3, 3),) * 6
    blocks: tuple[int, ...] = (1, 3, 4, 6, 6, 6)
    decoder_convolutions: tuple[int, ...] = (1,) * 5
    in_channels: int = 1
    out_channels: int = 1


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
        out = self.norm(self.conv(*parts))
        return functional.leaky_relu(out, _SLOPE) if self.activates else out


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

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to (B, C', D', H', W')."""
        return functional.leaky_relu(self.conv2(self.conv1(x)) + self.skip(x), _SLOPE)


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
        architecture: sizes.
        checkpoint_activations: recompute a stage's activations in the backward pass.
    """

    def __init__(self, architecture: ResEncArchitecture, checkpoint_activations: bool = False) -> None:
        super().__init__()
        a = architecture
        self.checkpoint_activations = checkpoint_activations
        self.stem = Convolutions(a.in_channels, a.channels[0], 1, a.kernels[0])
        widths = (a.channels[0], *a.channels)
        self.stages = nn.Sequential(
            *(
                Stage(widths[i], widths[i + 1], a.blocks[i], a.kernels[i], a.strides[i])
                for i in range(len(a.channels))
            )
        )

    def forward(self, image: Tensor, channel_keep: Tensor | None = None) -> list[Tensor]:
        """Feature maps of all stages, the finest first.

        Args:
            image: (B, C, D, H, W); sides are multiples of the product of the strides along their axis.
            channel_keep: factor on the channels of the stem, broadcastable to its shape (B, C', D, H, W).
        """
        x = self.stem(image)
        if channel_keep is not None:
            x = x * channel_keep
        maps = []
        for stage in self.stages:
            x = _run(stage, self.checkpoint_activations and self.training, x)
            maps.append(x)
        return maps


class ResEncDecoder(nn.Module):
    """Transposed convolutions and convolutions up to the finest resolution, with a head at each.

    Args:
        architecture: sizes.
        checkpoint_activations: recompute a stage's activations in the backward pass.
    """

    def __init__(self, architecture: ResEncArchitecture, checkpoint_activations: bool = False) -> None:
        super().__init__()
        a = architecture
        self.checkpoint_activations = checkpoint_activations
        coarsest_first = range(len(a.channels) - 1, 0, -1)
        self.transpconvs = nn.ModuleList(
            nn.ConvTranspose3d(a.channels[i], a.channels[i - 1], a.strides[i], a.strides[i])
            for i in coarsest_first
        )
        self.stages = nn.ModuleList(
            Convolutions(2 * a.channels[i - 1], a.channels[i - 1], count, a.kernels[i - 1])
            for i, count in zip(coarsest_first, a.decoder_convolutions, strict=True)
        )
        self.seg_layers = nn.ModuleList(
            Convolution(a.channels[i - 1], a.out_channels, (1, 1, 1)) for i in coarsest_first
        )

    def features(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What the heads see, the finest first, and the encoder's last map at the end."""
        features = [maps[-1]]
        for up, stage, skip in zip(self.transpconvs, self.stages, reversed(maps[:-1]), strict=True):
            x = _run(stage, self.checkpoint_activations and self.training, up(features[0]), skip)
            features.insert(0, x)
        return features

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Logits (B, classes, ...) at the resolution of each stage but the last, the finest first."""
        heads = reversed(list(self.seg_layers))
        return [head(feature) for head, feature in zip(heads, self.features(maps), strict=False)]


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
    if saves_memory:
        made: Tensor = checkpoint(module, *inputs, use_reentrant=False)
        return made
    return torch.as_tensor(module(*inputs))
