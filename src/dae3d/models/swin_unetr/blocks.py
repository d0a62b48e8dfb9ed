"""MONAI's convolution blocks, with the same parameters but forward passes that are fast on a CPU."""

from typing import Any

from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.networks.blocks.unetr_block import UnetrUpBlock
from torch import Tensor, nn

from dae3d.models.kernels.convolution import our_convolution
from dae3d.models.kernels.norm import InstanceNorm, NormActivation


def with_our_layers(block: nn.Module) -> Any:
    """Replace residual blocks, convolutions and instance norms of a MONAI block by ours.

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
