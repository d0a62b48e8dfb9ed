"""Weights on the Hugging Face Hub: their addresses, and their download."""

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator

from dae3d.errors import Dae3dError
from dae3d.version import __version__

MODEL, CONFIG = "model.safetensors", "config.json"
HOW_TO_INSTALL = "install it with `pip install 'dae3d[hub]'`"
SOURCE_GIVEN = "a run folder (its best weights), a file of weights, or hf://ORG/NAME[/FILE]"

# A path of such an address has one slash after the colon.
_SCHEME = re.compile(r"^hf:/")
_ADDRESS = re.compile(
    r"hf:/{1,2}(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@]+))?(?:/(?P<file>[^/].*?))?/*"
)


class HubAddress(NamedTuple):
    """A file in a repository `ORG/NAME` of the Hub; "" stands for the default revision and file."""

    repository: str
    revision: str = ""
    file: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repository}{revision}" + (f"/{self.file}" if self.file else "")


def hub_address(source: str | Path) -> HubAddress | None:
    """The address in `hf://ORG/NAME[@REVISION][/FILE]`, also as a path; None for anything else.

    Raises:
        ValueError: if it begins like an address and is none.
    """
    text = os.fspath(source)
    if not _SCHEME.match(text):
        return None
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError(f"must be hf://ORG/NAME or hf://ORG/NAME/FILE, not {text!r}")
    return HubAddress(match["repository"], match["revision"] or "", match["file"] or "")


def _source(value: Any) -> Any:
    if not isinstance(value, str | Path):
        return value
    address = hub_address(value)
    return Path(value) if address is None else str(address)


# For settings: weights on this machine are a `Path`, those on the Hub a `str`.
WeightsSource = Annotated[str | Path, BeforeValidator(_source)]


def downloaded(address: HubAddress) -> Path:
    """The file of an address in the cache of `huggingface_hub`, downloaded if it is not there.

    Raises:
        Dae3dError: if the library is missing, there is no such repository or file, or no connection.
    """
    library, errors = hub_library(), _hub_utils()
    with hub_errors(str(address)):
        try:
            path: str = library.hf_hub_download(
                address.repository,
                address.file or MODEL,
                revision=address.revision or None,
                library_name="dae3d",
                library_version=__version__,
            )
        except errors.LocalEntryNotFoundError:
            raise Dae3dError(
                f"{address}: cannot be downloaded and is not in the cache; check the connection "
                "(and HF_ENDPOINT, HF_HUB_OFFLINE)"
            ) from None
        except errors.EntryNotFoundError:
            files = library.HfApi().list_repo_files(address.repository, revision=address.revision or None)
            raise Dae3dError(
                f"{address}: the repository has no {address.file or MODEL}; it has {', '.join(files[:20])}. "
                f"Name one as {address._replace(file='FILE')}"
            ) from None
    return Path(path)


def hub_library() -> Any:
    """The module `huggingface_hub`.

    Raises:
        Dae3dError: if it is not installed.
    """
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise Dae3dError(f"hf:// needs huggingface_hub; {HOW_TO_INSTALL}") from None


def _hub_utils() -> Any:
    """The module of its errors, which is not an attribute of the library before it is imported."""
    return importlib.import_module("huggingface_hub.utils")


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Name a repository in errors of the Hub.

    Raises:
        Dae3dError: in place of errors of the library and of the connection.
    """
    utils = _hub_utils()
    try:
        yield
    except utils.RepositoryNotFoundError:
        raise Dae3dError(
            f"{what}: no such repository, or no access to it; check the name, and log in with "
            "`hf auth login` if it is private"
        ) from None
    except (utils.HfHubHTTPError, utils.HFValidationError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise Dae3dError(f"{what}: {' '.join(lines[:2]) or type(error).__name__}") from None
