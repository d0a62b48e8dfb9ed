"""How much memory this process has held."""

import re
import resource
import sys
from pathlib import Path


def peak_memory() -> int:
    """The most bytes that this process has held at one time."""
    status = Path("/proc/self/status")
    if status.is_file():
        # What `getrusage` says begins with the peak of the process that started this one.
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
