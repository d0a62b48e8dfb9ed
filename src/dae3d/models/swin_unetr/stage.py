"""The stages of the Swin transformer (Liu et al., arXiv 2103.14030) in 3D.

Parameters and their names are those of MONAI's `BasicLayer`; with edges "reference" the results are the same
too. The implementation differs: tokens stay channels-last from stage to stage, one gather partitions them
into windows and another one reverses it, and attention takes the windows of one mask at a time
(`attention.py`).

At the edges of a volume, MONAI and the published network do two things that edges "exact" avoids. If a window
is cut because the grid is smaller, tokens get biases of wrong offsets: the first entries of the whole
window's. And tokens attend to the padding of the last windows.
"""

from functools import lru_cache

import torch
from monai.networks.blocks.mlp import MLPBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dae3d.models.swin_unetr.attention import attention
from dae3d.models.swin_unetr.windows import Sides, WindowEdges, Windows, into_windows, out_of_windows, windows


class SwinStage(nn.Module):
    """Transformer blocks with regular and shifted windows in turn, then patch merging.

    Args:
        dim: channels of a token.
        depth: number of blocks.
        heads: attention heads.
        window: side of a window in tokens.
        merging: halves the grid, (B, D, H, W, dim) to (B, D/2, H/2, W/2, 2 * dim).
        checkpoint_activations: recompute a block's activations in the backward pass.
        edges: handling of the volume's edges: "exact", or "reference" as published.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        window: int,
        merging: nn.Module,
        checkpoint_activations: bool = False,
        edges: WindowEdges = "exact",
    ) -> None:
        super().__init__()
        self.window, self.edges = window, edges
        self.checkpoint_activations = checkpoint_activations
        self.blocks = nn.ModuleList(SwinBlock(dim, heads, window, edges) for _ in range(depth))
        self.downsample = merging

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, D, H, W) to (B, 2 * dim, D/2, H/2, W/2); both are fastest in channels-last layout."""
        x = x.movedim(1, -1)
        batch, depth, height, width = x.shape[:4]
        for i, block in enumerate(self.blocks):
            where = windows(batch, (depth, height, width), self.window, i % 2 == 1, x.device, self.edges)
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, where, use_reentrant=False)
            else:
                x = block(x, where)
        return self.downsample(x).movedim(-1, 1)


class SwinBlock(nn.Module):
    """Pre-norm window attention and MLP, with residual connections."""

    def __init__(self, dim: int, heads: int, window: int, edges: WindowEdges = "exact") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window, edges)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, 4 * dim, dropout_mode="swin")

    def forward(self, x: Tensor, where: Windows) -> Tensor:
        """(B, D, H, W, dim) to the same shape."""
        x = x + self.attn(self.norm1(x), where)
        return x + self.mlp(self.norm2(x))


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learnt bias for every offset between two tokens."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int, edges: WindowEdges = "exact") -> None:
        super().__init__()
        self.heads, self.window, self.edges = heads, window, edges
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 3, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", _offsets(window, (window, window, window)))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, where: Windows) -> Tensor:
        """(B, D, H, W, dim) to the same shape; `where` must have the same `edges` as this layer."""
        dim, n = x.shape[-1], where.tokens
        # In the published network padding is zero before this layer and equals its bias after it; with exact
        # edges it is masked.
        padding_row = self.qkv.bias if self.edges == "reference" else None
        placed = into_windows(self.qkv(x).flatten(0, -2), padding_row, where)
        qkv = placed.view(-1, n, 3, self.heads, dim // self.heads)
        offsets = self._offsets_within(where).reshape(-1)
        bias = self.relative_position_bias_table.index_select(0, offsets).view(n, n, self.heads)
        attended = attention(qkv, bias.permute(2, 0, 1).contiguous(), where.groups)
        return self.proj(out_of_windows(attended.reshape(-1, dim), where)).view(x.shape)

    def _offsets_within(self, where: Windows) -> Tensor:
        """(n, n) indices into the bias table for the n tokens of a window."""
        n = where.tokens
        if self.edges == "reference" or n == len(self.relative_position_index):
            # A smaller window uses the first offsets, as published.
            return self.relative_position_index[:n, :n]
        return _offsets_on(self.window, where.sides, self.relative_position_index.device)


@lru_cache(maxsize=64)
def _offsets_on(window: int, sides: Sides, device: torch.device) -> Tensor:
    # A tensor made in inference mode could not be saved for a later backward pass.
    with torch.inference_mode(False):
        return _offsets(window, sides).to(device)


def _offsets(window: int, sides: Sides) -> Tensor:
    """(n, n) indices of the offsets between the n tokens of a window with these `sides`.

    They index the bias table of the full `window`.
    """
    axes = [torch.arange(side) for side in sides]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    offsets = places[:, :, None] - places[:, None, :] + window - 1
    side = 2 * window - 1
    return (offsets[0] * side + offsets[1]) * side + offsets[2]
