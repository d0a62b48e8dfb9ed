"""Self-supervised pre-training for 3D medical images by disruption and repair."""

from typing import Any

from dae3d.commands import COMMANDS, load_command
from dae3d.version import __version__

# The command `store check` is the function `store_check`.
_FUNCTIONS = {command.replace(" ", "_").replace("-", "_"): command for command in COMMANDS}

__all__ = ["__version__", "load", *_FUNCTIONS]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return load_command(_FUNCTIONS[name])
    if name == "load":
        from dae3d.models.loading import load

        return load
    raise AttributeError(f"module 'dae3d' has no attribute {name!r}")
