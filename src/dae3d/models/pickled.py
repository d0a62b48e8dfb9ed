"""Files that `torch.save` wrote, read without running anything that is in them."""

import argparse
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dae3d.errors import Dae3dError

# Trainers put a mean of NumPy's, or their command line, beside the tensors.
_KINDS = {type(np.dtype(code)) for code in "?bhilqBHILQefdFDSU"}
_NOT_ALLOWED = re.compile(r"GLOBAL (\S+) was not an allowed global|Unsupported (?:class|global) (\S+)")


def read_pickled(path: Path) -> Any:
    """What a file of PyTorch holds: tensors and plain values, NumPy's scalars and `argparse.Namespace`.

    Raises:
        Dae3dError: where it cannot be read, or holds anything else.
    """
    allowed: list[Any] = [
        (_scalar, "numpy.core.multiarray.scalar"),
        (_scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *_KINDS,
        argparse.Namespace,
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise Dae3dError(f"{path}: {_why(error)}") from None


def _scalar(kind: np.dtype, data: bytes) -> Any:
    """A number or text of NumPy's as Python's own, in place of the function that a file names."""
    if type(kind) not in _KINDS:
        raise ValueError(f"a NumPy scalar of type {kind}")
    return np.frombuffer(data, kind)[0].item()


def _why(error: Exception) -> str:
    message = str(error)
    if named := _NOT_ALLOWED.search(message):
        return (
            f"not read, because it holds more than tensors and plain values: {named[1] or named[2]}. Where "
            "you trust it, load it in the program that made it, and save the network's state dict alone"
        )
    if isinstance(error, pickle.UnpicklingError) or not message:
        # PyTorch's words recommend to run what is in the file.
        return "damaged, or not a file of weights that torch.save wrote"
    first = message.splitlines()[0].split(". ")[0]
    return f"damaged, or not a file of weights that torch.save wrote: {first}"
