"""Memory of a training step, calculated without making it.

Forward and backward pass run on PyTorch's meta device, whose tensors have sizes and no values, as they would
on a GPU or a CPU. The bytes of all tensors alive at once are counted, and those that operations read and
write. Assumed: autocast's lists of operations, contiguous volumes, and of attention with a learnt bias the
kind that PyTorch selects: memory-efficient on a GPU, on a CPU the one that stores the scores. Not counted:
memory within an operation (cuDNN's workspace, a second read), fragmentation, and what CUDA, Python and the
loader processes take.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dae3d.models.kernels import aten
from dae3d.planning.size import Accelerator

META = torch.device("meta")
_AUTOCAST = {
    "linear": torch.bfloat16,
    "conv3d": torch.bfloat16,
    "conv_transpose3d": torch.bfloat16,
    "scaled_dot_product_attention": torch.bfloat16,
    "layer_norm": torch.float32,
}
_ALIGNMENT = 16  # of the rows of a bias, in the memory-efficient attention
_MOMENTS = 2  # that Adam keeps of each parameter


@dataclass(frozen=True)
class StepMemory:
    """Bytes on the device during a training step.

    Attributes:
        weights: of all parameters and buffers, the moving average and loss heads included.
        gradients: of all trained parameters.
        optimiser: of Adam's two moments of each trained parameter.
        batch: of the crops and what belongs to them.
        activations: the most of all other tensors that are alive at once while gradients are made, less these
            gradients.
        total: the highest sum of them at any time.
    """

    weights: int
    gradients: int
    optimiser: int
    batch: int
    activations: int
    total: int


@contextmanager
def as_on(kind: Accelerator, bf16: bool) -> Iterator[None]:
    """Autocast, and the choice of attention, as on a GPU or a CPU."""
    ways: dict[str, Any] = {name: getattr(functional, name) for name in _AUTOCAST}
    if kind == "gpu":
        ways["scaled_dot_product_attention"] = _efficient_attention
    if bf16:
        ways = {name: _casting(ways[name], dtype) for name, dtype in _AUTOCAST.items()}
    with patch.multiple(functional, **ways):
        yield


class Counted(TorchDispatchMode):
    """Counts bytes of tensors: `moved` by operations so far, and `peak` of those alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = self.peak = 0
        self._known: set[int] = set()
        self._found: dict[int, tuple[StorageWeakRef, int]] = {}
        self._at_most = 0  # bytes alive, if no tensor has been freed since the last count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given, returned = (
            [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
            for tree in ((args, kwargs), made)
        )
        name = func.overloadpacket.__name__
        if not (func.is_view or name == "_unsafe_view" or "empty" in name):
            # An expanded tensor has less storage than its size.
            self.moved += sum(min(t.nbytes, t.untyped_storage().nbytes()) for t in (*given, *returned))
        self._note(returned)
        return made

    def alive(self) -> int:
        """Bytes of the tensors alive now."""
        # A weak reference keeps its address from being used again.
        self._found = {at: found for at, found in self._found.items() if not found[0].expired()}
        self._at_most = sum(size for _, size in self._found.values())
        return self._at_most

    def known(self, tensors: Iterable[Tensor]) -> None:
        """Do not count these tensors, which exist already and stay."""
        self._known |= {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in tensors}

    def _note(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference.cdata not in self._known and reference.cdata not in self._found:
                self._found[reference.cdata] = (reference, storage.nbytes())
                self._at_most += storage.nbytes()
        # Asking every tensor whether it is alive takes long, so only where the peak may have been passed.
        if self._at_most > self.peak:
            self.peak = max(self.peak, self.alive())


def step_memory(
    module: nn.Module,
    loss: Callable[[dict[str, Tensor]], Tensor],
    batch: dict[str, Tensor],
    kind: Accelerator,
    bf16: bool,
) -> StepMemory:
    """The memory of one step with AdamW.

    Gradients of the step before are alive during the forward pass, as with Lightning, which frees them just
    before the backward pass.

    Args:
        module: on the meta device; holds all parameters.
        loss: maps the batch to a scalar; uses `module`.
        batch: tensors on the meta device.
        kind: of the device.
        bf16: whether autocast to bfloat16 is on, as in "bf16-mixed".
    """
    module.zero_grad(set_to_none=True)
    with _no_autocast(), as_on(kind, bf16), Counted() as counted:
        counted.known([*module.parameters(), *module.buffers(), *batch.values()])
        made = loss(batch)
        forward = counted.peak
        made.backward()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = sum(parameter.grad.nbytes for parameter in trained if parameter.grad is not None)
    module.zero_grad(set_to_none=True)
    weights = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    optimiser = _MOMENTS * sum(parameter.nbytes for parameter in trained)
    of_batch = sum(tensor.nbytes for tensor in batch.values())
    highest = max(forward + gradients, counted.peak)
    return StepMemory(
        weights=weights,
        gradients=gradients,
        optimiser=optimiser,
        batch=of_batch,
        activations=max(0, highest - gradients),
        total=weights + optimiser + of_batch + highest,
    )


@contextmanager
def _no_autocast() -> Iterator[None]:
    """The meta device has no autocast, so that regions that turn it off need nothing."""
    with patch.object(torch, "autocast", lambda *_, **__: nullcontext()):
        yield


def _casting(function: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    return lambda *args, **kwargs: function(*map(cast, args), **{name: cast(x) for name, x in kwargs.items()})


def _efficient_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
    n = k.shape[2]
    rows = functional.pad(attn_mask, (0, -n % _ALIGNMENT))[..., :n].expand(*q.shape[:2], n, n)
    out: Tensor = aten.efficient_attention(q, k, v, rows, True)[0]
    return out
