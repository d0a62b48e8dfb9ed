"""The errors a user can mend; the command line prints them in one line, without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

_NO_MEMORY = "can't allocate memory"  # PyTorch's words


class Dae3dError(Exception):
    """Something outside the program is wrong; the message names it and says what to do."""


class SettingsError(Dae3dError):
    """A setting is missing, unknown or out of range."""


class ScanError(Dae3dError):
    """A file cannot be used as a scan. The message is the bare reason; the caller knows the path."""


def first_problem(error: ValueError) -> str:
    """What is wrong first with something that was read, and in which field."""
    if not isinstance(error, ValidationError):
        return str(error).splitlines()[0]
    problem = error.errors()[0]
    message = problem["msg"].removeprefix("Value error, ")
    field = ".".join(map(str, problem["loc"]))
    return f"{field}: {message}" if field else message


@contextmanager
def as_scan_error() -> Iterator[None]:
    """Make any error of one scan that nobody foresaw one that stops no other scan.

    Raises:
        ScanError: in its place; errors of ours and those of the system (OSError) are left as they are.
    """
    try:
        yield
    except (Dae3dError, OSError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError) or _NO_MEMORY in text:
            raise ScanError(
                "unreadable: it needs more memory than there is; fewer workers may leave more"
            ) from None
        raise ScanError(f"unreadable: {type(error).__name__}: {text}"[:300]) from error
