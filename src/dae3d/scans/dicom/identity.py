"""Pseudonyms for patients, studies and series.

A plain hash of an identifier can be reversed by trying all identifiers of a hospital. So the hash is keyed
with a salt that stays with the user: the same salt gives the same names in the next manifest.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from dae3d.errors import Dae3dError
from dae3d.files import make_folder, unfinished_name, writing

_DIGITS = 16
_LEAST_BYTES = 16


def salted(salt: bytes, *texts: str) -> str:
    """16 hex digits (HMAC-SHA256) that stand for `texts`."""
    # The length before each, so that ("ab", "c") and ("a", "bc") differ.
    message = b"".join(len(raw).to_bytes(8, "big") + raw for raw in (text.encode() for text in texts))
    return hmac.new(salt, message, hashlib.sha256).hexdigest()[:_DIGITS]


def load_salt(path: Path | None) -> bytes:
    """The salt in the file given; by default the user's own, created at random the first time.

    The user's own is in `$XDG_CONFIG_HOME/dae3d/salt` or `~/.config/dae3d/salt`, readable by the user
    alone.

    Raises:
        Dae3dError: if it is missing, cannot be read or created, or is shorter than 16 bytes.
    """
    place = path or _own_salt()
    if path is None and not place.exists():
        _make(place)
    try:
        content = place.read_bytes()
    except FileNotFoundError:
        raise Dae3dError(
            f"salt: {place}: no such file; any file of {_LEAST_BYTES} random bytes or more will do"
        ) from None
    except OSError as error:
        raise Dae3dError(f"salt: {place}: cannot be read: {error.strerror}") from None
    if len(content) < _LEAST_BYTES:
        raise Dae3dError(f"salt: {place}: only {len(content)} bytes; at least {_LEAST_BYTES} are needed")
    return content.removesuffix(b"\n")  # editors add it


def _own_salt() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME")
    return Path(home or Path.home() / ".config") / "dae3d" / "salt"


def _make(place: Path) -> None:
    """Write a new salt atomically; if another process was first, keep its salt."""
    make_folder(place.parent)
    temporary = unfinished_name(place)
    with writing(place):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32) + "\n")
            # Unlike a rename, a link does not replace what another process made meanwhile.
            try:
                os.link(temporary, place)
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
