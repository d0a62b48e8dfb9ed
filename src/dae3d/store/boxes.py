"""Boxes of voxels: their sides, and reading them from stored files, with checks and padding."""

from collections.abc import Callable, Iterable
from numbers import Real
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field

from dae3d.errors import Dae3dError
from dae3d.store.scan import read_voxels

Triple = tuple[int, int, int]
Side = Annotated[int, Field(ge=8)]
Read = Callable[[Triple, Triple], np.ndarray]


def three_sides(given: Any) -> Any:
    """One number, or a list of one, as three equal numbers; three numbers, and what is no number, as it is.

    Raises:
        ValueError: for two numbers, or more than three.
    """
    if isinstance(given, Real | str):
        return (given,) * 3
    if isinstance(given, list | tuple):
        if len(given) not in (1, 3):
            raise ValueError(f"must be one number, or three (right, anterior, superior), not {len(given)}")
        return tuple(given) * (3 // len(given))
    return given


# As a setting: the sides of a crop or a window in voxels, given as one number or three.
Roi = Annotated[tuple[Side, Side, Side], BeforeValidator(three_sides)]


def by_axis(sides: Iterable[int]) -> str:
    """The sides in words, such as "96 x 96 x 64"."""
    return " x ".join(map(str, sides))


def read_box(path: Path, size_on_disk: int | None, command: str, start: Triple, stop: Triple) -> np.ndarray:
    """Read the box [start, stop) of a stored file, as stored; `command` writes such files.

    Raises:
        Dae3dError: if the file is missing, damaged or not of the recorded size.
    """
    try:
        # A file of another size was written again, or truncated, after the index.
        if size_on_disk in (None, path.stat().st_size):
            return read_voxels(path, start, stop)
    except MemoryError:
        raise
    except OSError as error:
        raise Dae3dError(f"{path}: {error.strerror or error}; run `dae3d {command}` again") from error
    except Exception as error:  # damaged bytes can raise anything in the decoder
        words = str(error).splitlines() or [type(error).__name__]
        raise Dae3dError(
            f"{path}: damaged ({words[0]}); delete it and run `dae3d {command}` again"
        ) from error
    raise Dae3dError(f"{path}: not the file that the index describes; run `dae3d {command}` again")


def padded(read: Read, shape: Triple, start: Triple, size: Triple, dtype: type) -> np.ndarray:
    """The box of `size` voxels that begins at `start` of an array of `shape`, padded with 0.

    `read` gives the box [start, stop) within the array; it is not called for a box entirely outside.
    """
    first, last = overlap(shape, start, size)
    if first == last:
        return np.zeros(size, dtype)
    inside = read(first, last)
    if inside.shape == size:
        return inside
    box: np.ndarray = np.zeros(size, dtype)
    box[tuple(slice(a - s, b - s) for a, b, s in zip(first, last, start, strict=True))] = inside
    return box


def overlap(shape: Triple, start: Triple, size: Triple) -> tuple[Triple, Triple]:
    """First and last corner of the overlap of a box with an array; equal if there is none."""
    first = _triple(min(max(s, 0), end) for s, end in zip(start, shape, strict=True))
    last = _triple(min(s + n, end) for s, n, end in zip(start, size, shape, strict=True))
    return first, last if all(a < b for a, b in zip(first, last, strict=True)) else first


def _triple(numbers: Iterable[int]) -> Triple:
    x, y, z = numbers
    return x, y, z
