"""Run each measurement in a new process, so that memory use is independent of earlier ones."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from dae3d.errors import Dae3dError


def in_new_process(measure: Callable[..., dict[str, float]], **arguments: Any) -> dict[str, float]:
    """Call a module-level function with JSON arguments in a new process and return its result.

    Raises:
        Dae3dError: with the last line printed, if it fails.
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
