"""Peak memory of this process, and free memory."""

import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

# Of control groups, version 2 and 1.
_GROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def peak_memory() -> int:
    """Peak memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Unlike this, `getrusage` includes the peak of the process that started this one.
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory() -> int:
    """The bytes that this process may still use, by the free memory of the machine and its limits."""
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
