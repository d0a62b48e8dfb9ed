"""Memory that a sample takes and moves in a training step on a GPU, calculated because no GPU was available.

Forward and backward pass run on PyTorch's meta device, whose tensors have sizes and no values, as they would
on a GPU. It counts the bytes of all tensors alive at once, and of the inputs and outputs of operations. The
growth from one sample to two is a sample's, so that weights, their gradients and the optimiser cancel.
Assumed: autocast's lists of operations, PyTorch's memory-efficient attention, which it selects if a bias is
added, and contiguous volumes. Not counted: memory within an operation (cuDNN's workspace, a second read), and
fragmentation.

    python benchmarks/gpu_memory.py [--embed-dim 48] [--heads 3 6 12 24] [--window 7] [--roi 96]

`--check` runs MONAI's network in float32 on the CPU too, one sample and two, and compares.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dae3d.benchmarking.model import make_network, training_step
from dae3d.benchmarking.process import in_new_process
from dae3d.store.boxes import Triple

_AUTOCAST = {
    "linear": torch.bfloat16,
    "conv3d": torch.bfloat16,
    "conv_transpose3d": torch.bfloat16,
    "scaled_dot_product_attention": torch.bfloat16,
    "layer_norm": torch.float32,
}
_ALIGNMENT = 16  # of the rows of a bias, in the memory-efficient attention
# Name, MONAI's or ours, bf16, activation checkpointing
WAYS = (
    ("MONAI, float32", "monai", False, False),
    ("MONAI, float32, checkpointing", "monai", False, True),
    ("dae3d, float32", "dae3d", False, False),
    ("dae3d, bf16", "dae3d", True, False),
    ("dae3d, bf16, checkpointing", "dae3d", True, True),
)


@contextmanager
def gpu(bf16: bool) -> Iterator[None]:
    """Autocast, and the choice of attention, as on a GPU."""
    ways = {"scaled_dot_product_attention": _efficient_attention}
    ways = {name: ways.get(name) or getattr(functional, name) for name in _AUTOCAST}
    if bf16:
        ways = {name: _casting(ways[name], dtype) for name, dtype in _AUTOCAST.items()}
    with patch.multiple(functional, **ways):
        yield


class Counted(TorchDispatchMode):
    """Counts bytes of tensors: `moved` by operations so far, and `peak` of those alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = self.peak = 0
        self._found: dict[int, tuple[StorageWeakRef, int]] = {}

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
        self._found = {at: found for at, found in self._found.items() if not found[0].expired()}
        return sum(size for _, size in self._found.values())

    def _note(self, tensors: Iterable[Tensor]) -> None:
        before = len(self._found)
        for tensor in tensors:
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            self._found.setdefault(reference.cdata, (reference, storage.nbytes()))
        if len(self._found) > before:
            self.peak = max(self.peak, self.alive())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--embed-dim", type=int, default=48)
    parser.add_argument("--heads", type=int, nargs=4, default=[3, 6, 12, 24])
    parser.add_argument("--window", type=int, default=7)
    parser.add_argument("--roi", type=int, default=96)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    sizes = (given.embed_dim, tuple(given.heads), given.window)
    roi = (given.roi,) * 3
    print("| MiB per sample | kept for the backward pass | of MONAI's | peak | of MONAI's |", end="")
    print(" moved | of MONAI's |\n|---|---:|---:|---:|---:|---:|---:|")
    theirs = None
    for name, whose, bf16, thrifty in WAYS:
        one, two = (step(make_network(whose, *sizes, thrifty), n, roi, bf16) for n in (1, 2))
        found = [(b - a) / 2**20 for a, b in zip(one, two, strict=True)]
        theirs = theirs or found
        cells = [f"{mine:.0f} | {mine / their:.2f}" for mine, their in zip(found, theirs, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if given.check:
        one, two = (measured(*sizes, roi, n) for n in (1, 2))
        print(f"\nMONAI, float32, measured on the CPU: {(two - one) / 2**20:.0f} MiB per sample")


def step(model: nn.Module, batch: int, roi: Triple, bf16: bool) -> tuple[int, int, int]:
    """Bytes alive between forward and backward pass, at the peak, and moved."""
    model = model.to("meta")
    image = torch.empty(batch, 1, *roi, device="meta")
    with gpu(bf16), Counted() as counted:
        loss = functional.l1_loss(model(image).float(), image)
        kept = counted.alive()
        loss.backward()
    return kept, counted.peak, counted.moved


def measured(embed_dim: int, heads: tuple[int, int, int, int], window: int, roi: Triple, batch: int) -> float:
    """Peak memory in bytes of a process that takes steps with MONAI's network."""
    sizes = {"embed_dim": embed_dim, "heads": heads, "window": window, "roi": roi, "batch_size": batch}
    ways = {"bf16": False, "tuned": False, "checkpoint_activations": False, "compiled": False}
    done = in_new_process(training_step, network="monai", device="cpu", steps=1, **sizes, **ways)
    return done["peak_bytes"]


def _casting(function: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    return lambda *args, **kwargs: function(*map(cast, args), **{name: cast(x) for name, x in kwargs.items()})


def _efficient_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
    n = k.shape[2]
    rows = functional.pad(attn_mask, (0, -n % _ALIGNMENT))[..., :n].expand(*q.shape[:2], n, n)
    attend: Any = torch.ops.aten._scaled_dot_product_efficient_attention
    out: Tensor = attend(q, k, v, rows, True)[0]
    return out


if __name__ == "__main__":
    main()
