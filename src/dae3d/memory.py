"""How much memory this process has held, and how much more it may take."""

import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

# Of the control group that the process is in: version 2, version 1.
_GROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


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


def free_memory() -> int:
    """The bytes that this process may still take: no more than the machine has free and its limits allow."""
    return min(_limits())


def _limits() -> Iterator[int]:
    machine = Path("/proc/meminfo")
    if machine.is_file():
        free = dict(re.findall(r"^(MemAvailable|SwapFree):\s*(\d+) kB", machine.read_text(), re.MULTILINE))
        yield sum(map(int, free.values())) * 1024
    else:
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for group in _GROUP_LIMITS:
        if group.is_file() and (text := group.read_text().strip()).isdecimal():
            yield int(text)
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            yield limit
