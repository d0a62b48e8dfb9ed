"""Errors that a user can fix; the command line prints their message without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

_NO_MEMORY = "can't allocate memory"  # PyTorch's words


class Dae3dError(Exception):
    """Something outside the program is wrong; the message says what, and what to do."""


class SettingsError(Dae3dError):
    """A setting is missing, unknown or out of range."""


class ScanError(Dae3dError):
    """A file cannot be used as a scan. The message is only the reason; the caller knows the path."""


def first_problem(error: ValueError) -> str:
    """The first problem of a validation error, with its field."""
    if not isinstance(error, ValidationError):
        return str(error).splitlines()[0]
    problem = error.errors()[0]
    message = problem["msg"].removeprefix("Value error, ")
    field = ".".join(map(str, problem["loc"]))
    return f"{field}: {message}" if field else message


@contextmanager
def as_scan_error() -> Iterator[None]:
    """Turn unexpected errors of one scan into ScanErrors, which do not stop the other scans.

    Raises:
        ScanError: in place of any error except a Dae3dError or OSError.
    """
    try:
        yield
    except (Dae3dError, OSError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError) or _NO_MEMORY in text:
            raise ScanError("unreadable: not enough memory; use fewer workers") from None
        raise ScanError(f"unreadable: {type(error).__name__}: {text}"[:300]) from error
