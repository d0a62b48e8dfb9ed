"""The command `push`: publish weights on the Hugging Face Hub."""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from dae3d.commands.export import LICENSE_GIVEN, NAMES_GIVEN
from dae3d.errors import Dae3dError
from dae3d.exporting.hub import FILES, LIBRARY, write_hub_files
from dae3d.models.contents import MONAI_MERGING, MonaiMerging
from dae3d.models.hub import (
    CONFIG,
    SOURCE_GIVEN,
    HubAddress,
    WeightsSource,
    hub_address,
    hub_errors,
    hub_library,
)
from dae3d.models.loading import load
from dae3d.settings import Positional, Settings, command
from dae3d.version import __version__

log = logging.getLogger(__name__)


def _repository(text: str) -> str:
    address = hub_address(text if text.startswith("hf:/") else f"hf://{text}")
    if address is None or address.file or address.revision:
        raise ValueError("must be ORG/NAME")
    return address.repository


class PushSettings(Settings):
    """Settings of `push`."""

    weights: Annotated[WeightsSource, Positional()] = Field(description=SOURCE_GIVEN)
    repository: Annotated[str, AfterValidator(_repository), Positional()] = Field(
        description="ORG/NAME on the Hub; it is created if it does not exist"
    )
    license: str | None = Field(None, min_length=1, description=f"{LICENSE_GIVEN} (default: unknown)")
    private: bool = Field(False, description="create the repository for members of ORG only")
    name_data_sets: bool = Field(True, description=NAMES_GIVEN)
    monai_merging: MonaiMerging | None = Field(None, description=MONAI_MERGING)


@command
def push(settings: PushSettings) -> str:
    """Upload weights with a model card, as `export --format hub` writes them.

    Log in with `hf auth login` first, or set HF_TOKEN.

    Returns:
        The address, `hf://ORG/NAME`, which can be used wherever weights are named.

    Raises:
        Dae3dError: if huggingface_hub is not installed, the weights cannot be read, the repository holds
            something else, or the Hub refuses the upload.
    """
    library = hub_library()
    network: Any = load(settings.weights, monai_merging=settings.monai_merging)
    address = str(HubAddress(settings.repository))
    api = library.HfApi(library_name=LIBRARY, library_version=__version__)
    with TemporaryDirectory(prefix=".dae3d-") as folder:
        exported = write_hub_files(network, Path(folder), address, settings.license, settings.name_data_sets)
        with hub_errors(address):
            api.create_repo(settings.repository, private=settings.private, exist_ok=True)
            _refuse_other(api, settings)
            api.upload_folder(
                repo_id=settings.repository,
                folder_path=folder,
                commit_message=f"Weights written by dae3d {__version__}",
            )
    for note in exported.notes:
        log.info("%s", note)
    log.info("%s", address)
    return address


def _refuse_other(api: Any, settings: PushSettings) -> None:
    """Refuse an existing repository that is public but should not be, or has files of other programs."""
    repository = settings.repository
    if settings.private and not api.repo_info(repository).private:
        raise Dae3dError(
            f"private: {repository} exists and is public; make it private on the Hub, or choose another name"
        )
    there = set(api.list_repo_files(repository)) & set(FILES)
    if not there:
        return
    config: Any = {}
    if CONFIG in there:
        try:
            config = json.loads(Path(api.hf_hub_download(repository, CONFIG)).read_text("utf-8"))
        except ValueError:
            config = {}
    if not isinstance(config, dict) or config.get("library_name") != LIBRARY:
        raise Dae3dError(
            f"repository: {repository} has {', '.join(sorted(there))} that dae3d did not write; choose "
            "another name"
        )
