"""Measurements, each in a process of its own, so that none finds what another left in memory."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from dae3d.errors import Dae3dError


def in_new_process(measure: Callable[..., dict[str, float]], **arguments: Any) -> dict[str, float]:
    """Call a function of a module with plain arguments in a new process, and give its figures.

    Raises:
        Dae3dError: with the last line it printed, where it failed.
    """
    call = json.dumps([measure.__module__, measure.__qualname__, arguments])
    command = [sys.executable, "-m", "dae3d.benchmarking.process", call]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise Dae3dError(f"{measure.__name__} {arguments}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    module, name, arguments = json.loads(sys.argv[1])
    print(json.dumps(getattr(importlib.import_module(module), name)(**arguments)))
