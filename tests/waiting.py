"""Waiting for what another process does, however busy the machine is."""

import subprocess
import time
from collections.abc import Callable


def until(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Wait for a condition; fails where the process that is to bring it about ends before, or hangs."""
    end = time.monotonic() + 600
    while not condition():
        assert process is None or process.poll() is None, "it ended before"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
