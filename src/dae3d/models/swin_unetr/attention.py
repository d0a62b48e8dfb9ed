"""Window attention with a learnt bias that does not store the attention matrix."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dae3d.models.kernels import aten
from dae3d.models.swin_unetr.windows import Group

# Scores computed at a time in the backward pass: as many as fit a core's cache.
_CACHED = 1 << 18
# Below this, exp returns subnormal numbers, which take sixteen times as long.
_MIN_LOGIT = -87.0


def attention(qkv: Tensor, bias: Tensor, groups: Sequence[Group]) -> Tensor:
    """Scaled dot-product attention within each window.

    Args:
        qkv: (windows, n, 3, heads, head channels), the queries, keys and values of n tokens.
        bias: (heads, n, n), added to the scores of every window.
        groups: the windows grouped by mask, which is added too; together they cover all windows.

    Returns:
        (windows, n, heads, head channels).
    """
    on_cpu = qkv.device.type == "cpu" and qkv.dtype != torch.float64 and torch.is_grad_enabled()
    if on_cpu and aten.flash_attention is not None:
        return _CpuAttention.apply(qkv, bias, groups)
    parts = []
    # With slices, autograd would make a gradient of the size of `qkv` for each of them.
    for group, part in zip(groups, qkv.split([group.stop - group.start for group in groups]), strict=True):
        q, k, v = part.permute(2, 0, 3, 1, 4).unbind(0)
        mask = _masked(bias, group).to(qkv.dtype)[None]
        parts.append(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    return torch.cat(parts).transpose(1, 2)


def _masked(bias: Tensor, group: Group) -> Tensor:
    return bias if group.mask is None else bias + group.mask


class _CpuAttention(torch.autograd.Function):
    """Flash attention; the backward pass recomputes the scores, a few windows at a time.

    PyTorch's flash attention does not accept a bias that requires a gradient; the public function would fall
    back to storing all scores.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, groups: Sequence[Group]) -> Tensor:
        out = torch.empty_like(qkv[:, :, 0])
        sums = bias.new_empty(qkv.shape[0], qkv.shape[3], qkv.shape[1])
        for group in groups:
            part = slice(group.start, group.stop)
            q, k, v = qkv[part].float().permute(2, 0, 3, 1, 4).unbind(0)
            mask = _masked(bias, group)[None]
            attended, sums[part] = aten.flash_attention(q, k, v, attn_mask=mask)
            out[part] = attended.transpose(1, 2)
        ctx.save_for_backward(qkv, bias, out, sums)
        ctx.groups = groups
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        qkv, bias, out, sums = ctx.saved_tensors
        grad_qkv, grad_bias = torch.empty_like(qkv), torch.zeros_like(bias)
        delta = (gradient * out).sum(-1, dtype=torch.float32).transpose(1, 2)
        step = max(1, _CACHED // bias.numel())
        for group in ctx.groups:
            masked = _masked(bias, group)
            for start in range(group.start, group.stop, step):
                part = slice(start, min(start + step, group.stop))
                grad_bias += _backward(
                    qkv[part].float(), masked, sums[part], delta[part], gradient[part].float(), grad_qkv[part]
                )
        return grad_qkv, grad_bias, None


def _backward(
    qkv: Tensor, bias: Tensor, sums: Tensor, delta: Tensor, gradient: Tensor, grad_qkv: Tensor
) -> Tensor:
    """Write the gradient of some windows' `qkv` into `grad_qkv`; return that of the bias (heads, n, n)."""
    count, n, _, heads, width = qkv.shape
    scale = width**-0.5
    # (windows * heads, n, head channels)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, count * heads, n, width).unbind(0)
    incoming = gradient.transpose(1, 2).reshape(count * heads, n, width)
    q = q * scale
    scores = torch.bmm(q, k.transpose(1, 2)).view(count, heads, n, n)
    logits = scores.add_(bias).sub_(sums.unsqueeze(-1)).clamp_(min=_MIN_LOGIT)
    weights = logits.exp_().view(-1, n, n)
    grad_scores = torch.bmm(incoming, v.transpose(1, 2)).sub_(delta.reshape(-1, n, 1)).mul_(weights)
    # Few rows times a square matrix is several times faster than a square matrix times few columns.
    grads = (
        torch.bmm(k.transpose(1, 2), grad_scores.transpose(1, 2)).mul_(scale),
        torch.bmm(q.transpose(1, 2), grad_scores),
        torch.bmm(incoming.transpose(1, 2), weights),
    )
    for i, grad in enumerate(grads):
        grad_qkv[:, :, i] = grad.view(count, heads, width, n).permute(0, 3, 1, 2)
    grad_bias = grad_scores.view(count, heads, n, n)
    return grad_bias.sum(0) if count > 1 else grad_bias[0]
