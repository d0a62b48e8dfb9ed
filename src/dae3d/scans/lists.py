"""Lists of scans in the format of the Medical Segmentation Decathlon.

    {"modality": {"0": "T1w", "1": "FLAIR"},
     "training": [{"image": ["a_t1.nii.gz", "a_flair.nii.gz"], "label": "a_seg.nii.gz", "fold": 0}, ...],
     "validation": [{"image": "b.nii.gz", "modality": "ct", "subject": "b"}, "c.nii.gz", ...]}

Several images of one entry are its channels: one scan each, of one subject. A `label` is not a scan, and
`test` is not indexed. `val` and `testing`, among others, are read as `validation` and `test`.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import from_json

from dae3d.errors import Dae3dError
from dae3d.scans.layouts.published_lists import PUBLISHED, published_file, told_by_published
from dae3d.scans.manifest import Split
from dae3d.scans.modality import label_in_list
from dae3d.scans.nnunet import with_channels
from dae3d.scans.readers import suffix
from dae3d.scans.sources import Candidate, absolute

_log = logging.getLogger(__name__)

# The names of the parts of a list, in lower case.
_SPELLINGS = {
    "training": ("training", "train"),
    "validation": ("validation", "val", "valid", "validating", "dev"),
    "test": ("test", "testing"),
}


class Entry(BaseModel):
    """One entry of a list; other keys are ignored, and so is a `class` that is not a string.

    `case_file` is the name of a case in nnU-Net's lists, whose images are the files of its channels.
    """

    image: str | Annotated[list[str], Field(min_length=1)]
    modality: str | list[str] | None = None
    class_: Any = Field(default=None, alias="class")
    subject: str | int | None = None
    fold: int | None = None
    case_file: str | None = None

    @property
    def case(self) -> str:
        """The file that names the case: its first image, unless the list has another."""
        return self.case_file or self.images[0]

    @property
    def images(self) -> list[str]:
        """The files of the entry's channels."""
        return [self.image] if isinstance(self.image, str) else self.image


class ScanList(BaseModel):
    """The content of a list that concerns scans; the rest is in `model_extra`."""

    model_config = ConfigDict(extra="allow")

    name: Any = None
    modality: str | dict[str, str] = Field({}, validation_alias=AliasChoices("modality", "channel_names"))
    training: Sequence[Entry] = ()
    validation: Sequence[Entry] = ()
    test: Sequence[Any] = ()

    @field_validator("training", "validation", mode="before")
    @classmethod
    def _bare_names(cls, entries: Any) -> Any:
        return bare_names(entries)


def bare_names(entries: Any) -> Any:
    """Entries, where a plain image name becomes an entry with that image."""
    if not isinstance(entries, list):
        return entries
    return [{"image": entry} if isinstance(entry, str) else entry for entry in entries]


AnyList = TypeVar("AnyList", bound=ScanList)


def read_list(
    path: Path, fold: int, dataset: str | None, roots: Mapping[str, Path] | None = None
) -> list[Candidate]:
    """The scans named in the list at `path` (absolute).

    Relative names start at the folder that `roots` has for the list's file stem or, for a published list
    (`published_lists`), its data set's name; otherwise at the list's folder. Files elsewhere have as `root`
    the innermost folder that holds all of them.
    If entries of `training` have a `fold`, those of number `fold` are held out for validation, as are those
    of `validation`. A list that holds nothing out leaves the split open.

    Raises:
        Dae3dError: if it is not such a list, lacks the fold, or no scan of a published list exists; names the
            list and the entry.
    """
    root = _root(path, PUBLISHED.get(path.name), roots or {})
    content = load_list(path, ScanList, root)
    if content.test:
        _log.info("%s: the %d entries of `test` are left out", path, len(content.test))
    if not content.training and not content.validation:
        raise Dae3dError(f"{path}: not a list of scans: neither `training` nor `validation` has entries")
    folds = {entry.fold for entry in content.training if entry.fold is not None}
    if folds and fold not in folds:
        raise Dae3dError(f"{path}: no entry has fold {fold}; there are: {', '.join(map(str, sorted(folds)))}")
    split: Split | None = "train" if folds or content.validation else None
    marked = [(entry, "val" if folds and entry.fold == fold else split) for entry in content.training]
    marked += [(entry, "val") for entry in content.validation]
    published = PUBLISHED.get(path.name)
    own_name = content.name if isinstance(content.name, str) else None
    name = dataset or own_name or published or path.stem
    scans = [scan for entry, side in marked for scan in _scans(path, root, content, entry, side, name)]
    if published:
        scans = [_as_published(published, scan) for scan in scans]
        if not any(scan.path.exists() for scan in scans):
            raise Dae3dError(
                f"{path}: none of the {len(scans)} scans it names exists, for example "
                f"{scans[0].path}; give the folder that its names start from: --root {published}=FOLDER"
            )
    elsewhere = home_elsewhere(root, [scan.path for scan in scans])
    return [scan if scan.path.is_relative_to(root) else replace(scan, root=elsewhere) for scan in scans]


def _root(path: Path, published: str | None, roots: Mapping[str, Path]) -> Path:
    root = roots.get(path.stem) or roots.get(published or "")
    if root is None:
        return path.parent
    if not root.is_dir():
        raise Dae3dError(f"root: {root}: no such folder, for {path.name}")
    return absolute(root)


def _as_published(published: str, scan: Candidate) -> Candidate:
    modality, subject = told_by_published(published, scan.shown)
    file = published_file(scan.path)
    return replace(
        scan,
        path=file,
        case=file,
        modality=scan.modality or modality,
        subject=scan.subject or subject,
    )


def home_elsewhere(folder: Path, files: Iterable[Path]) -> Path:
    """The innermost folder that holds all `files` outside `folder`; without any, `folder`."""
    outside = [file.parent for file in files if not file.is_relative_to(folder)]
    return Path(os.path.commonpath(outside)) if outside else folder


def load_list(path: Path, model: type[AnyList], home: Path | None = None) -> AnyList:
    """Read a list as a `model`.

    Names start from `home`, by default the list's folder; nnU-Net's lists are recognised by the files there.
    Unknown keys that hold scans are warned about.

    Raises:
        Dae3dError: if it does not fit the model; names the list and the entry.
    """
    try:
        content = from_json(path.read_bytes())
        if isinstance(content, dict):
            content = with_channels(home or path.parent, _with_known_keys(path, content))
        found = model.model_validate(content)
    except OSError as error:
        raise Dae3dError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Dae3dError(
            f"{path}: not a list of scans: {f'{place}: ' if place else ''}{first['msg']}"
        ) from None
    except ValueError as error:
        raise Dae3dError(f"{path}: not a list of scans: Invalid JSON: {error}") from None
    for key, value in (found.model_extra or {}).items():
        if _holds_scans(value):
            _log.warning(
                "%s: `%s` holds %d scans but is not read; the known keys are %s",
                path,
                key,
                len(value),
                ", ".join(f"`{name}`" for name in _SPELLINGS),
            )
    return found


def _with_known_keys(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its parts under the names used in the models.

    Raises:
        Dae3dError: if two spellings of one part both have entries.
    """
    renamed: dict[str, Any] = {}
    spelt: dict[str, str] = {}
    for key, value in content.items():
        part = next((part for part, known in _SPELLINGS.items() if key.lower() in known), key)
        name = part if isinstance(value, list) else key
        if renamed.get(name) and value:
            raise Dae3dError(
                f"{path}: `{spelt[name]}` and `{key}` mean the same, and both have entries; keep one"
            )
        if not renamed.get(name):
            renamed[name], spelt[name] = value, key
    for name, key in spelt.items():
        if name != key and renamed[name]:
            _log.warning("%s: `%s` is read as `%s`", path, key, name)
    return renamed


def _holds_scans(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, dict):
        return "image" in first
    return isinstance(first, str) and bool(suffix(Path(first)))


def _scans(
    path: Path, root: Path, content: ScanList, entry: Entry, split: Split | None, dataset: str
) -> list[Candidate]:
    files = [absolute(root / name) for name in entry.images]
    try:
        said = modalities_of(content, entry)
    except ValueError as error:
        raise Dae3dError(f"{path}: entry of {entry.images[0]}: {error}") from None
    labels = [(None, None) if text is None else read_label(text) for text in said]
    return [
        Candidate(
            path=file,
            shown=Path(os.path.normpath(name)).as_posix(),
            root=root,
            dataset=dataset,
            case=absolute(root / entry.case),
            modality=label,
            subject=None if entry.subject is None else str(entry.subject),
            split=split,
            unread=unread,
        )
        for file, name, (label, unread) in zip(files, entry.images, labels, strict=True)
    ]


def read_label(text: str) -> tuple[str | None, str | None]:
    """The label of a modality named in a list, or, if it is not valid, the list's own word."""
    try:
        return label_in_list(text), None
    except ValueError:
        return None, text


def modalities_of(content: ScanList, entry: Entry) -> list[str | None]:
    """The modality of each of the entry's images, as the entry, or else the list, calls it.

    Raises:
        ValueError: if the numbers of modalities and images in the entry differ.
    """
    count = len(entry.images)
    own = entry.modality or (entry.class_ if isinstance(entry.class_, str) else None)
    if isinstance(own, str):
        return [own] * count
    if own:
        if len(own) != count:
            raise ValueError(f"{len(own)} modalities for {count} images")
        return [*own]
    if isinstance(content.modality, str):
        return [content.modality] * count
    # With more channels than files, a file holds several channels, so no single label is right.
    channels = content.modality if len(content.modality) <= count else {}
    return [channels.get(str(number)) for number in range(count)]
