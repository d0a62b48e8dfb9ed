"""OpenMind (https://huggingface.co/datasets/AnonRes/OpenMind): 3D head MR pooled from OpenNeuro.

The release is a table `openneuro_metadata.csv` beside a folder `OpenMind`, which its paths start from. nnssl,
the code published with it, converts that table and other collections to `pretrain_data.json`.
"""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from dae3d.errors import Dae3dError
from dae3d.scans.lists import read_label
from dae3d.scans.manifest import LeftOut
from dae3d.scans.sources import Candidate

TABLE = "openneuro_metadata.csv"
COLLECTION = "pretrain_data.json"


class _Masks(BaseModel):
    anonymization_mask: str | None = None
    anatomy_mask: str | None = None


class _Image(BaseModel):
    image_path: str
    modality: str
    associated_masks: _Masks | None = None


class _Session(BaseModel):
    images: list[_Image]


class _Subject(BaseModel):
    sessions: dict[str, _Session]


class _Dataset(BaseModel):
    subjects: dict[str, _Subject]


class _Collection(BaseModel):
    datasets: dict[str, _Dataset]


class _Row(NamedTuple):
    """One image of the OpenNeuro data set `dataset`, and its masks; names as written."""

    dataset: str
    subject: str
    image: str
    modality: str
    anonymisation: str | None
    anatomy: str | None


def candidates_in_openmind(root: Path, dataset: str | None) -> Iterator[Candidate | LeftOut]:
    """The images that `pretrain_data.json` in `root` lists, or else `openneuro_metadata.csv`.

    Masks, which several images may share, are counted as left out.

    Raises:
        Dae3dError: if the list found does not have this format.
    """
    home = root / "OpenMind" if (root / "OpenMind").is_dir() else root
    masks: dict[str, set[str]] = {"anonymisation mask": set(), "anatomy mask": set()}
    for row in _rows(root):
        yield _candidate(row, home, root, dataset or "openmind")
        for kind, mask in zip(masks, (row.anonymisation, row.anatomy), strict=True):
            if mask:
                masks[kind].add(mask)
    for kind, names in masks.items():
        if names:
            yield LeftOut(path=home, reason=kind, files=len(names))


def _rows(root: Path) -> Iterator[_Row]:
    for name, rows in ((COLLECTION, _rows_of_collection), (TABLE, _rows_of_table)):
        if (root / name).is_file():
            try:
                yield from rows(root / name)
            except (OSError, UnicodeError, csv.Error) as error:
                raise Dae3dError(f"{root / name}: cannot be read: {error}") from None
            return


def _rows_of_collection(path: Path) -> Iterator[_Row]:
    try:
        collection = _Collection.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = f"{'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        raise Dae3dError(f"{path}: not a collection of nnssl: {place}{first['msg']}") from None
    for dataset, content in collection.datasets.items():
        for subject, sessions in content.subjects.items():
            for image in (image for session in sessions.sessions.values() for image in session.images):
                masks = image.associated_masks or _Masks()
                yield _Row(
                    dataset,
                    subject,
                    image.image_path,
                    image.modality,
                    masks.anonymization_mask,
                    masks.anatomy_mask,
                )


def _rows_of_table(path: Path) -> Iterator[_Row]:
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        lacking = {"image_path", "modality"} - set(table.fieldnames or ())
        if lacking:
            raise Dae3dError(f"{path}: not a table of OpenMind: no column {', '.join(sorted(lacking))}")
        for row in table:
            image = row["image_path"] or ""  # None in a line cut short
            dataset, subject = (*image.split("/"), "")[:2]
            masks = row.get("anon_mask_path"), row.get("anat_mask_path")
            yield _Row(dataset, subject, image, row["modality"] or "", *masks)


def _candidate(row: _Row, home: Path, root: Path, dataset: str) -> Candidate:
    path = _place(row, home)
    label, unread = read_label(row.modality)
    return Candidate(
        path=path,
        shown=path.relative_to(root).as_posix() if path.is_relative_to(root) else row.image,
        root=root,
        dataset=dataset,
        case=path,
        modality=label,
        subject=f"openmind/{row.dataset}/{row.subject}",
        unread=unread,
    )


def _place(row: _Row, home: Path) -> Path:
    """The path of an image: as written, or, if that does not exist, in its data set's folder."""
    written = Path(os.path.expandvars(row.image))
    if written.is_absolute() and written.exists():
        return written
    _, inside, tail = f"/{row.image}".rpartition(f"/{row.dataset}/")
    return home / row.dataset / tail if inside else home / row.image
