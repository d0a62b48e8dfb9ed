"""Reads files written by `torch.save`, without running code that is in them."""

import argparse
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dae3d.errors import Dae3dError

# Trainers save NumPy scalars, or their command line, next to the tensors.
_KINDS = {type(np.dtype(code)) for code in "?bhilqBHILQefdFDSU"}
_NOT_ALLOWED = re.compile(r"GLOBAL (\S+) was not an allowed global|Unsupported (?:class|global) (\S+)")


def read_pickled(path: Path) -> Any:
    """The contents of a PyTorch file: tensors, plain values, NumPy scalars and `argparse.Namespace`.

    Raises:
        Dae3dError: if it cannot be read, or holds anything else.
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
    """A NumPy scalar as a plain Python value, in place of the function that the file names."""
    if type(kind) not in _KINDS:
        raise ValueError(f"a NumPy scalar of type {kind}")
    return np.frombuffer(data, kind)[0].item()


def _why(error: Exception) -> str:
    message = str(error)
    if named := _NOT_ALLOWED.search(message):
        return (
            f"not read, because it holds more than tensors and plain values: {named[1] or named[2]}. If "
            "you trust it, load it in the program that wrote it, and save only the network's state dict"
        )
    if isinstance(error, pickle.UnpicklingError) or not message:
        # PyTorch's message recommends running the code in the file.
        return "damaged, or not a weights file written by torch.save"
    first = message.splitlines()[0].split(". ")[0]
    return f"damaged, or not a weights file written by torch.save: {first}"
