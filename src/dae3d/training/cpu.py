"""Training without a GPU."""

import ctypes
import platform
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST = -1, -3, 2**31 - 1


def emulates_bf16() -> bool:
    """Whether this processor has no bfloat16, so that PyTorch computes it in software."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2")


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step.

    By default glibc returns every large activation to the operating system and requests it again in the next
    step, page by page. Keeping it halves the time of a step of the small network (benchmarks/NOTES.md).
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST)
            libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
