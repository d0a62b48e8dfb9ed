"""Self-supervised pre-training for 3D medical images by disruption and repair."""

from typing import Any

from dae3d.commands import VERBS, load_verb
from dae3d.version import __version__

# A verb of two words, such as `store check`, is a function of one: `store_check`.
_FUNCTIONS = {verb.replace(" ", "_"): verb for verb in VERBS}

__all__ = ["__version__", "load", *_FUNCTIONS]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return load_verb(_FUNCTIONS[name])
    if name == "load":
        from dae3d.models.loading import load

        return load
    raise AttributeError(f"module 'dae3d' has no attribute {name!r}")
