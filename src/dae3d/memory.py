"""How much memory this process has held."""

import resource
import sys


def peak_memory() -> int:
    """The most bytes that this process has held at one time."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
