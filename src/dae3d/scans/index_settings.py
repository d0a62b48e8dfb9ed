"""The settings of the command `index`."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from dae3d.scans.layouts.layout import LayoutName
from dae3d.scans.layouts.published_lists import PUBLISHED
from dae3d.scans.modality import Label, RuleText
from dae3d.settings import Positional, Settings

_Volumes = Literal["none", "first", "middle", "all"]


class IndexSettings(Settings):
    """What to index, and how to find out what the scans are."""

    folders: Annotated[list[Path], Positional()] = Field(
        min_length=1,
        description="folders of scans and DICOM series, single scans, and .json lists with `training` and "
        "`validation`",
    )
    out: Path = Field(Path("manifest.jsonl"), description="the manifest to write")
    layout: LayoutName | None = Field(
        None, description="the folders are a public data set as it is released; it tells what the scans are"
    )
    root: dict[str, Path] = Field(
        {},
        description="NAME=DIR: the folder that names in a published list start from; NAME is the list's file "
        "name without .json, or its data set's layout",
    )
    modality: Label | None = Field(
        None, description="modality of every scan that no rule names, label maps too if they are not excluded"
    )
    force_modality: bool = Field(
        False,
        description="label DICOM series as `modality` and `rule` say even where their headers contradict it "
        "(a CT labelled t1); otherwise those are left out",
    )
    rule: list[RuleText] = Field(
        [],
        description="GLOB=LABEL: scans whose file name, or path from the folder given, matches GLOB are of "
        "that modality; the first rule that matches counts; `*` also crosses `/`; of DICOM series the folder "
        "is matched, and by description:GLOB=LABEL what the scanner called it",
    )
    exclude: list[str] = Field([], description="GLOB: leave out scans that match, as rules match")
    dataset: str | None = Field(
        None, description="name of the data set; otherwise the folder's or the list's"
    )
    subject: str | None = Field(
        None,
        description="regular expression whose first group, found in a scan's path from the folder given, is "
        "its subject; otherwise lists, layouts, DICOM headers, BIDS names and the names of all files and "
        "folders tell it",
    )
    subjects: Path | None = Field(
        None,
        description="table of subjects, .csv or .tsv with the columns path and subject: a scan's path, or a "
        "folder's above it, absolute or from the folder given; goes before all else that tells subjects",
    )
    volume: _Volumes | int = Field(
        "none", description="which volumes of a 4-D file (a time series) are scans; a number counts from 0"
    )
    channels: list[Label] = Field(
        [],
        description="labels of the volumes of 4-D files with that many: each volume is a scan of its label",
    )
    fold: int = Field(0, description="in a list with folds: the fold that is held out for validation")
    val_fraction: float = Field(0.05, ge=0, lt=1, description="share of subjects held out for validation")
    seed: int = Field(0, description="another seed holds out other subjects")
    min_slices: int = Field(
        8, ge=1, description="leave out scans with fewer voxels along any axis (localisers)"
    )
    salt: Path | None = Field(
        None,
        description="file whose content is mixed into the hashes of DICOM patients and studies; otherwise "
        "one made once for this user (~/.config/dae3d/salt)",
    )
    check: bool = Field(
        False, description="read all voxels too, and write data-report.html beside the manifest"
    )
    workers: int = Field(8, ge=1, description="files read at the same time")

    @field_validator("root")
    @classmethod
    def _of_a_list(cls, root: dict[str, Path], info: ValidationInfo) -> dict[str, Path]:
        lists = [path for path in info.data.get("folders", []) if path.suffix.lower() == ".json"]
        names = [name for path in lists for name in (path.stem, PUBLISHED.get(path.name)) if name]
        unused = [name for name in root if name not in names]
        if unused:
            raise ValueError(
                f"no list given is called {unused[0]!r}; those given are: {', '.join(names) or 'none'}"
            )
        return root

    @field_validator("subject")
    @classmethod
    def _pattern(cls, subject: str | None) -> str | None:
        try:
            groups = 1 if subject is None else re.compile(subject).groups
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if not groups:
            raise ValueError(
                "the regular expression needs a group around the subject, such as '(case[0-9]+)'"
            )
        return subject

    @field_validator("volume", mode="before")
    @classmethod
    def _from_0(cls, volume: Any) -> Any:
        if volume in get_args(_Volumes) or (str(volume).isdecimal() and not isinstance(volume, bool)):
            return volume
        raise ValueError(f"must be {', '.join(get_args(_Volumes))}, or a number from 0 on")

    @field_validator("channels")
    @classmethod
    def _several(cls, channels: list[str]) -> list[str]:
        if len(channels) == 1:
            raise ValueError("a single label; use --modality instead of --channels")
        return channels
