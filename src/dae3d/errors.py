"""The errors a user can mend; the command line prints them in one line, without a traceback."""


class Dae3dError(Exception):
    """Something outside the program is wrong; the message names it and says what to do."""


class SettingsError(Dae3dError):
    """A setting is missing, unknown or out of range."""


class ScanError(Dae3dError):
    """A file cannot be used as a scan. The message is the bare reason; the caller knows the path."""
