"""Linear layers as 1 x 1 convolutions by oneDNN, which is twice as fast on a CPU."""

from typing import Any

import torch
from torch import Tensor, nn

from dae3d.models.kernels import aten


class Linear(nn.Linear):
    """As PyTorch's, which uses a slower library for many tokens with few channels."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C')."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if x.device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
            return super().forward(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        made: Tensor = _Convolved.apply(rows, self.weight.to(dtype), bias)
        return made.view(*x.shape[:-1], -1)


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        rows, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if wanted[0] else None,
            _weight_gradient(rows, gradient) if wanted[1] else None,
            gradient.sum(0) if wanted[2] else None,
        )


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.conv2d(_plane(rows), weight[:, :, None, None], bias).permute(0, 2, 3, 1)[0, 0]


def _weight_gradient(rows: Tensor, gradient: Tensor) -> Tensor:
    """(C', C), from the rows (N, C) and the gradient (N, C')."""
    if rows.shape[1] > gradient.shape[1]:
        # From many channels to few takes four times as long as from few to many.
        return _weight_gradient(gradient, rows).t()
    weight = rows.new_empty(gradient.shape[1], rows.shape[1], 1, 1)
    rest = (None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (False, True, False))
    return aten.convolution_backward(_plane(gradient), _plane(rows), weight, *rest)[1][:, :, 0, 0]


def _plane(rows: Tensor) -> Tensor:
    """(N, C) as a volume (1, C, 1, N) in channels-last layout."""
    return rows.reshape(1, 1, *rows.shape).permute(0, 3, 1, 2)
