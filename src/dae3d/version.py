"""The version, which the package takes from here when it is built."""

__version__ = "0.1.0"
