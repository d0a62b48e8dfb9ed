"""Amounts of memory: as text, and what a device has."""

import re
from typing import Literal

import torch

from dae3d.errors import Dae3dError
from dae3d.memory import free_memory

Accelerator = Literal["cpu", "gpu"]

MARGIN = 0.1  # share of the memory that is left free, for what a calculation does not count
_UNITS = {"": 1, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_bytes(text: str) -> int:
    """The bytes of a size: "24GB" (powers of 1000), "80GiB" (powers of 1024), "500 MB".

    Raises:
        ValueError: for anything else, or 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGT])(I?)B\s*", text.upper())
    size = 0
    if found:
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** _UNITS[found[2]])
    if not size:
        raise ValueError("must be a size with its unit, such as 24GB or 80GiB")
    return size


def accelerator(asked: str) -> Accelerator:
    """Where a run with this `accelerator` takes place; "auto" is the GPU if there is one."""
    if asked == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    return "gpu" if asked == "gpu" else "cpu"


def uses_bf16(kind: Accelerator, precision: str = "auto") -> bool:
    """Whether a run computes in bfloat16; a GPU that is not here is assumed to support it."""
    if precision != "auto":
        return precision == "bf16-mixed"
    here = torch.cuda.is_available()
    return kind == "gpu" and (not here or torch.cuda.is_bf16_supported(including_emulation=False))


def device_memory(kind: Accelerator, processes: int = 1) -> int:
    """Bytes that a run on this machine may use: the free memory of the GPU, or of the machine.

    With several processes each must find the same: the memory of the smallest GPU, whatever is in use.

    Raises:
        Dae3dError: if there is no GPU but one is asked for, or several processes share a CPU.
    """
    if kind == "gpu":
        if not torch.cuda.is_available():
            raise Dae3dError("memory: give that of the GPU, such as 24GB, because PyTorch finds none here")
        devices = range(torch.cuda.device_count())
        if processes > 1:
            return min(torch.cuda.get_device_properties(device).total_memory for device in devices)
        return int(torch.cuda.mem_get_info()[0])
    if processes > 1:
        raise Dae3dError(
            "batch_size: auto is not possible for several processes on CPUs, which could find different free "
            "memory; give a number"
        )
    return free_memory()
