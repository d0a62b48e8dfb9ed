"""Training without a GPU."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST = -1, -3, 2**31 - 1


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
