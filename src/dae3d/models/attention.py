"""Attention within windows, with a bias that learns, that keeps no attention matrix."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dae3d.models import aten
from dae3d.models.windows import Group

# Scores made at a time in the backward pass: what fits a core's cache.
_CACHED = 1 << 18
# exp of less is a subnormal number, and takes sixteen times as long.
_LEAST = -87.0


def attention(qkv: Tensor, bias: Tensor, groups: Sequence[Group]) -> Tensor:
    """Scaled dot-product attention among the tokens of each window.

    Args:
        qkv: (windows, n, 3, heads, channels of a head), queries, keys and values.
        bias: (heads, n, n), added to the scores of every window.
        groups: the windows by their mask, which is added too; together they hold all windows.

    Returns:
        (windows, n, heads, channels of a head).
    """
    on_cpu = qkv.device.type == "cpu" and qkv.dtype != torch.float64 and torch.is_grad_enabled()
    if on_cpu and aten.flash_attention is not None:
        return _CpuAttention.apply(qkv, bias, groups)
    parts = []
    # Slices would each come back as a gradient of the whole.
    for group, part in zip(groups, qkv.split([group.stop - group.start for group in groups]), strict=True):
        q, k, v = part.permute(2, 0, 3, 1, 4).unbind(0)
        mask = _masked(bias, group).to(qkv.dtype)[None]
        parts.append(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    return torch.cat(parts).transpose(1, 2)


def _masked(bias: Tensor, group: Group) -> Tensor:
    return bias if group.mask is None else bias + group.mask


class _CpuAttention(torch.autograd.Function):
    """Flash attention forward; backward some windows at a time, their scores made again within the cache.

    PyTorch's flash attention takes no bias that needs a gradient, and would keep all scores instead.
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
    """The gradient of some windows' attention: into `grad_qkv`, and that of the bias (heads, n, n)."""
    count, n, _, heads, width = qkv.shape
    scale = width**-0.5
    # (windows * heads, n, channels of a head)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, count * heads, n, width).unbind(0)
    incoming = gradient.transpose(1, 2).reshape(count * heads, n, width)
    q = q * scale
    scores = torch.bmm(q, k.transpose(1, 2)).view(count, heads, n, n)
    logits = scores.add_(bias).sub_(sums.unsqueeze(-1)).clamp_(min=_LEAST)
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
