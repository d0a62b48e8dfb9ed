"""The encoder of Swin UNETR: patch embedding, Swin transformer stages and patch merging."""

from typing import TYPE_CHECKING

import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock
from monai.networks.nets.swin_unetr import PatchMergingV2
from torch import Tensor, nn

from dae3d.errors import Dae3dError
from dae3d.models.kernels.convolution import our_convolution
from dae3d.models.swin_unetr.blocks import with_our_layers
from dae3d.models.swin_unetr.stage import SwinStage
from dae3d.store.boxes import by_axis

if TYPE_CHECKING:
    from dae3d.models.swin_unetr import SwinArchitecture


class SwinEncoder(nn.Module):
    """Patch embedding (stride 2) and four Swin transformer stages, each halving the grid.

    Args:
        architecture: sizes.
        checkpoint_activations: recompute activations in the backward pass instead of storing them.
        repairs: whether it is that of pre-training, which has a mask token.
    """

    def __init__(
        self, architecture: "SwinArchitecture", checkpoint_activations: bool = False, repairs: bool = False
    ) -> None:
        super().__init__()
        self.axes = architecture.axes
        dim = architecture.embed_dim
        self.patch_embed = _patch_embedding(architecture)
        if repairs:
            self.mask_token = nn.Parameter(torch.empty(1, dim, 1, 1, 1))
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        merging = PatchMerging if architecture.patch_merging == "straight" else ReferencePatchMerging
        self.stages = nn.ModuleList(
            SwinStage(
                dim * 2**i,
                depth,
                heads,
                architecture.window,
                with_our_layers(merging(dim * 2**i)),
                checkpoint_activations,
                architecture.window_edges,
            )
            for i, (depth, heads) in enumerate(zip(architecture.depths, architecture.heads, strict=True))
        )

    def forward(
        self, image: Tensor, channel_keep: Tensor | None = None, token_mask: Tensor | None = None
    ) -> list[Tensor]:
        """Five feature maps: the tokens (B, C, D/2, ...), then each stage's (B, C * 2^i, D/2^(i+1), ...).

        Raises:
            Dae3dError: if the sides of the image do not fit.
        """
        if any(side % 32 for side in image.shape[2:]):
            raise Dae3dError(f"the sides of an image must be multiples of 32, not {by_axis(image.shape[2:])}")
        tokens = self.patch_embed(image)
        if token_mask is not None:
            tokens = torch.where(token_mask, self.mask_token.to(tokens.dtype), tokens)
        if self.axes == "reference":
            if len(set(tokens.shape[1:])) > 1:
                side = 2 * tokens.shape[1]
                raise Dae3dError(
                    f'with axes "reference" the network needs {by_axis((side, side, side))} voxels, not '
                    f'{by_axis(image.shape[2:])}; load it with axes="straight" for other sizes'
                )
            tokens = tokens.permute(0, 2, 3, 4, 1).contiguous()
        if channel_keep is not None:
            tokens = tokens * channel_keep
        hidden = [tokens]
        for stage in self.stages:
            hidden.append(stage(hidden[-1]))
        return hidden


def _patch_embedding(architecture: "SwinArchitecture") -> nn.Module:
    channels, dim = architecture.in_channels, architecture.embed_dim
    if architecture.patch_embed == "linear":
        return our_convolution(nn.Conv3d(channels, dim, kernel_size=2, stride=2))
    norm = ("instance", {"affine": True})
    return with_our_layers(UnetBasicBlock(3, channels, dim, kernel_size=3, stride=2, norm_name=norm))


class PatchMerging(PatchMergingV2):
    """MONAI's, with a single copy; for eight slices autograd would make eight gradients of the whole."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) to (B, D/2, H/2, W/2, 2C)."""
        pairs = _even(x).unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        return self.reduction(self.norm(pairs.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)))


class ReferencePatchMerging(PatchMergingV2):
    """Patch merging in the published order of octants, in which (1, 1, 0) and (0, 1, 1) are missing."""

    OCTANTS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) to (B, D/2, H/2, W/2, 2C)."""
        x = _even(x)
        octants = [x[:, i::2, j::2, k::2] for i, j, k in self.OCTANTS]
        return self.reduction(self.norm(torch.cat(octants, dim=-1)))


def _even(x: Tensor) -> Tensor:
    """(B, D, H, W, C) with odd sides padded by a layer of zeros at the end."""
    return nn.functional.pad(x, (0, 0, *(side % 2 * end for side in x.shape[3:0:-1] for end in (0, 1))))
