"""The Swin transformer's stages (Liu et al., arXiv 2103.14030), in three dimensions.

Parameters, their names and results are those of MONAI's `BasicLayer`; the way there is another: tokens stay
channels-last from stage to stage, one gather brings them into windows and one takes them back, and attention
keeps no matrix of scores (`attention.py`).
"""

import torch
from monai.networks.blocks.mlp import MLPBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dae3d.models.attention import attention
from dae3d.models.blocks import with_our_layers
from dae3d.models.linear import Linear
from dae3d.models.windows import Windows, into_windows, out_of_windows, windows


class SwinStage(nn.Module):
    """Blocks of windows and shifted windows in turn, then patch merging.

    Args:
        dim: channels of a token.
        depth: number of blocks.
        heads: attention heads.
        window: side of a window in tokens.
        merging: halves the grid, (B, D, H, W, dim) to (B, D/2, H/2, W/2, 2 * dim).
        checkpoint_activations: recompute a block's activations in the backward pass.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        window: int,
        merging: nn.Module,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.window = window
        self.checkpoint_activations = checkpoint_activations
        self.blocks = nn.ModuleList(SwinBlock(dim, heads, window) for _ in range(depth))
        self.downsample = merging

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, D, H, W) to (B, 2 * dim, D/2, H/2, W/2); both are fastest in channels-last layout."""
        x = x.movedim(1, -1)
        batch, depth, height, width = x.shape[:4]
        for i, block in enumerate(self.blocks):
            where = windows(batch, (depth, height, width), self.window, i % 2 == 1, x.device)
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, where, use_reentrant=False)
            else:
                x = block(x, where)
        return self.downsample(x).movedim(-1, 1)


class SwinBlock(nn.Module):
    """Attention within windows, and a perceptron of two layers, each with its norm and a way around it."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = with_our_layers(MLPBlock(dim, 4 * dim, dropout_mode="swin"))

    def forward(self, x: Tensor, where: Windows) -> Tensor:
        """(B, D, H, W, dim) to the same shape."""
        x = x + self.attn(self.norm1(x), where)
        return x + self.mlp(self.norm2(x))


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learnt bias for every offset between two tokens."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 3, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", _offsets(window))
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, where: Windows) -> Tensor:
        """(B, D, H, W, dim) to the same shape."""
        dim, n = x.shape[-1], where.tokens
        # What the published network pads is zero before this layer, and its bias after.
        placed = into_windows(self.qkv(x).flatten(0, -2), self.qkv.bias, where)
        qkv = placed.view(-1, n, 3, self.heads, dim // self.heads)
        # A window of fewer tokens takes the first offsets, as published.
        offsets = self.relative_position_index[:n, :n].reshape(-1)
        bias = self.relative_position_bias_table.index_select(0, offsets).view(n, n, self.heads)
        attended = attention(qkv, bias.permute(2, 0, 1).contiguous(), where.groups)
        return self.proj(out_of_windows(attended.reshape(-1, dim), where)).view(x.shape)


def _offsets(window: int) -> Tensor:
    """(n, n) the number of the offset between any two of a window's n tokens."""
    axis = torch.arange(window)
    places = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).flatten(1)
    offsets = places[:, :, None] - places[:, None, :] + window - 1
    side = 2 * window - 1
    return (offsets[0] * side + offsets[1]) * side + offsets[2]
