"""PyTorch operators below the public functions, in one place.

Public functions cannot write into a given tensor, or compute a gradient without autograd. The operators
without a leading underscore are the ones that PyTorch's own autograd calls. Checked with PyTorch 2.6 and
2.13.
"""

from typing import Any

import torch

_aten = torch.ops.aten

batch_norm_into = _aten.native_batch_norm.out
batch_norm_statistics = _aten.batch_norm_update_stats
batch_norm_backward = _aten.native_batch_norm_backward
convolution_backward = _aten.convolution_backward
leaky_relu_backward = _aten.leaky_relu_backward
leaky_relu_backward_into = _aten.leaky_relu_backward.grad_input
# What a GPU selects for attention with a bias; used to count its memory without a GPU.
efficient_attention: Any = getattr(_aten, "_scaled_dot_product_efficient_attention", None)
