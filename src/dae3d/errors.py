"""The errors a user can mend; the command line prints them in one line, without a traceback."""

from pydantic import ValidationError


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
