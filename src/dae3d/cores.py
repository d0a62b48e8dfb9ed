"""The number of processor cores that this process may use, and PyTorch's number of threads."""

import os
from pathlib import Path

THREADS = (
    "CPU threads (default: OMP_NUM_THREADS, else the cores that this process may use); "
    "on a machine shared with other jobs, fewer are faster"
)


def usable_cores() -> int:
    """The number of processor cores that batch systems and containers let this process use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, int(min(len(os.sched_getaffinity(0)), cgroup_quota())))
    return os.cpu_count() or 1


def use_threads(count: int | None) -> None:
    """Set PyTorch's number of CPU threads.

    None means PyTorch's default (OMP_NUM_THREADS, or all cores of the machine), limited to `usable_cores`:
    additional threads would wait for each other in every operation.
    """
    import torch

    torch.set_num_threads(count or min(torch.get_num_threads(), usable_cores()))


def cgroup_quota(root: Path = Path("/")) -> float:
    """The number of cores that the control groups of this process allow (Docker's --cpus), or infinity.

    Args:
        root: the folder of `proc` and `sys`.
    """
    quotas = [float("inf")]
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return quotas[0]
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            files = [folder / "cpu.max" for folder in _upwards(mounted, path)]
        elif "cpu" in controllers.split(","):  # version 1
            files = [folder / "cpu.cfs_quota_us" for folder in _upwards(mounted / "cpu", path)]
        else:
            continue
        quotas += [quota for file in files if (quota := _quota(file)) is not None]
    return min(quotas)


def _upwards(mounted: Path, path: str) -> list[Path]:
    """A group's folder and its parents; in a container, its own group is mounted at the top."""
    parts = [part for part in path.split("/") if part]
    return [mounted.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _quota(file: Path) -> float | None:
    try:
        words = file.read_text().split()
        if file.name == "cpu.cfs_quota_us":
            words.append((file.parent / "cpu.cfs_period_us").read_text().strip())
        quota, period = float(words[0]), float(words[1])
    except (OSError, ValueError, IndexError):
        return None  # "max", or no such file
    return quota / period if quota > 0 and period > 0 else None
