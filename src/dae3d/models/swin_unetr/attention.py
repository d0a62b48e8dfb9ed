"""Window attention with a learnt bias."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dae3d.models.swin_unetr.windows import Group


def attention(qkv: Tensor, bias: Tensor, groups: Sequence[Group]) -> Tensor:
    """Scaled dot-product attention within each window.

    Args:
        qkv: (windows, n, 3, heads, head channels), the queries, keys and values of n tokens.
        bias: (heads, n, n), added to the scores of every window.
        groups: the windows grouped by mask, which is added too; together they cover all windows.

    Returns:
        (windows, n, heads, head channels).
    """
    parts = []
    # With slices, autograd would make a gradient of the size of `qkv` for each of them.
    for group, part in zip(groups, qkv.split([group.stop - group.start for group in groups]), strict=True):
        q, k, v = part.permute(2, 0, 3, 1, 4).unbind(0)
        mask = (bias if group.mask is None else bias + group.mask).to(qkv.dtype)[None]
        parts.append(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    return torch.cat(parts).transpose(1, 2)
