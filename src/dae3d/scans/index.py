"""The verb `index`: find scans, read their headers, say what each one is, hold some subjects out."""

import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from tqdm import tqdm

from dae3d.errors import Dae3dError, ScanError
from dae3d.scans.index_tables import print_tables
from dae3d.scans.lists import read_list
from dae3d.scans.manifest import LeftOut, Manifest, Scan, Split
from dae3d.scans.modality import Label, Rule, RuleText, label_by_bids, label_by_rules, matches, parse_rule
from dae3d.scans.readers import Header, read_header, scan_stem
from dae3d.scans.sources import (
    Candidate,
    absolute,
    once_each,
    readable_suffixes,
    scan_given,
    scans_in_folder,
)
from dae3d.scans.splits import Member, split_subjects, straddling
from dae3d.scans.subjects import subject_in_path
from dae3d.settings import Positional, Settings, verb

UNKNOWN = "unknown modality"


class IndexSettings(Settings):
    """What to index and how to tell what the scans are."""

    folders: Annotated[list[Path], Positional()] = Field(
        min_length=1,
        description="folders of scans, single scans, and .json lists with `training` and `validation`",
    )
    out: Path = Field(Path("manifest.json"), description="the manifest to write")
    modality: Label | None = Field(
        None, description="modality of every file that no rule names, label maps too if they are not excluded"
    )
    rule: list[RuleText] = Field(
        [],
        description="GLOB=LABEL: scans whose file name, or path from the folder given, matches GLOB are of "
        "that modality; the first rule that matches counts; `*` also crosses `/`",
    )
    exclude: list[str] = Field([], description="GLOB: leave out scans that match, as rules match")
    dataset: str | None = Field(
        None, description="name of the data set; otherwise the folder's or the list's"
    )
    subject: str | None = Field(
        None,
        description="regular expression whose first group, found in a scan's path from the folder given, is "
        "its subject; otherwise lists, BIDS names and the names of files and folders tell it",
    )
    fold: int = Field(0, description="in a list with folds: the fold that is held out for validation")
    val_fraction: float = Field(0.05, ge=0, lt=1, description="share of subjects held out for validation")
    seed: int = Field(0, description="another seed holds other subjects out")
    min_slices: int = Field(
        8, ge=1, description="leave out scans with fewer voxels along any axis (localisers)"
    )
    workers: int = Field(8, ge=1, description="headers read at the same time")

    @field_validator("subject")
    @classmethod
    def _pattern(cls, subject: str | None) -> str | None:
        try:
            groups = 1 if subject is None else re.compile(subject).groups
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        if not groups:
            raise ValueError(
                "the regular expression needs a group around the subject, such as '(case[0-9]+)'"
            )
        return subject


@dataclass(frozen=True)
class Described:
    """A scan that can be used, before it is put on a side."""

    candidate: Candidate
    header: Header
    modality: str
    subject: str


@verb
def index(settings: IndexSettings) -> Manifest:
    """Write a manifest of all scans in folders and lists, and show what there is.

    A scan's modality is what the first matching rule says, else `modality`, else its list, else its BIDS
    suffix; a scan of which none of them speaks is left out.

    Raises:
        Dae3dError: where a folder is missing, a list is none, or no scan is found that can be used.
    """
    if settings.out.is_dir():
        raise Dae3dError(f"out: {settings.out} is a folder; name the manifest's file")
    candidates, left_out = _gather(settings)
    described: list[Described] = []
    unknown: list[Candidate] = []
    for candidate, answer in zip(candidates, _describe_all(candidates, settings), strict=True):
        if isinstance(answer, Described):
            described.append(answer)
        else:
            left_out.append(answer)
            if answer.reason == UNKNOWN:
                unknown.append(candidate)
    manifest, notes = _manifest(described, left_out, settings)
    print_tables(manifest, notes, unknown)
    if not manifest.scans:
        raise Dae3dError("none of the files found can be used, for the reasons above; no manifest is written")
    try:
        manifest.save(settings.out)
    except OSError as error:
        raise Dae3dError(f"out: {settings.out} cannot be written: {error.strerror}") from None
    print(f"manifest: {settings.out}")
    return manifest


def _gather(settings: IndexSettings) -> tuple[list[Candidate], list[LeftOut]]:
    """All files that may be scans, each once. Lists come first, because they say more than folders do."""
    listed: list[Candidate] = []
    found: list[Candidate] = []
    left_out: list[LeftOut] = []
    for source in map(absolute, settings.folders):
        if source.is_dir():
            scans, unreadable = scans_in_folder(source, settings.dataset)
            found += scans
            left_out += unreadable
        elif not source.exists():
            raise Dae3dError(f"{source}: no such folder or file")
        elif source.suffix.lower() == ".json":
            listed += read_list(source, settings.fold, settings.dataset)
        else:
            found.append(scan_given(source, settings.dataset))
    if not listed and not found and not left_out:
        names = ", ".join(map(str, settings.folders))
        raise Dae3dError(
            f"no scans in {names}; files are read whose names end in {readable_suffixes()} "
            "(DICOM series are not: convert them first, with dcm2niix for example)"
        )
    candidates, repeated = once_each([*listed, *found])
    return candidates, left_out + repeated


def _describe_all(candidates: Sequence[Candidate], settings: IndexSettings) -> list[Described | LeftOut]:
    describe = partial(
        _describe,
        settings=settings,
        rules=[parse_rule(rule) for rule in settings.rule],
        roots={candidate.root for candidate in candidates},
    )
    with ThreadPoolExecutor(settings.workers) as pool:
        futures = [pool.submit(describe, candidate) for candidate in candidates]
        try:
            return [
                future.result()
                for future in tqdm(futures, "reading headers", unit="file", leave=False, delay=1)
            ]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _describe(
    candidate: Candidate, settings: IndexSettings, rules: Sequence[Rule], roots: Collection[Path]
) -> Described | LeftOut:
    """What a file is, or why it is left out."""
    place = (candidate.shown, candidate.root.name)
    excluding = next((glob for glob in settings.exclude if matches(glob, *place)), None)
    if excluding is not None:
        return LeftOut(path=candidate.path, reason=f"excluded: {excluding}")
    if not candidate.path.exists():
        return LeftOut(path=candidate.path, reason="missing file")
    try:
        header = read_header(candidate.path)
    except ScanError as error:
        return LeftOut(path=candidate.path, reason=str(error))
    if min(header.shape) < settings.min_slices:
        shape = "x".join(map(str, header.shape))
        return LeftOut(path=candidate.path, reason=f"localiser or thin stack: shape {shape}")
    modality = (
        label_by_rules(rules, *place)
        or settings.modality
        or candidate.modality
        or label_by_bids(scan_stem(candidate.path))
    )
    if modality is None:
        return LeftOut(path=candidate.path, reason=UNKNOWN)
    return Described(candidate, header, modality, _subject(candidate, settings.subject, roots))


def _subject(candidate: Candidate, pattern: str | None, roots: Collection[Path]) -> str:
    match = re.search(pattern, candidate.shown) if pattern else None
    return (match and match[1]) or candidate.subject or subject_in_path(candidate.case, roots)


def _manifest(
    described: Sequence[Described], left_out: Sequence[LeftOut], settings: IndexSettings
) -> tuple[Manifest, list[str]]:
    """The manifest, and what its reader ought to know of the split."""
    members = [Member(scan.subject, scan.modality, scan.candidate.split) for scan in described]
    sides = split_subjects(members, settings.val_fraction, settings.seed)
    scans = tuple(
        Scan(
            path=scan.candidate.path,
            modality=scan.modality,
            subject=scan.subject,
            dataset=scan.candidate.dataset,
            split=sides[scan.subject],
            shape=scan.header.shape,
            spacing=scan.header.spacing,
            dtype=scan.header.dtype,
            orientation=scan.header.orientation,
        )
        for scan in described
    )
    return Manifest(scans=scans, left_out=tuple(left_out)), _notes(members, sides, settings.val_fraction)


def _notes(members: Sequence[Member], sides: Mapping[str, Split], val_fraction: float) -> list[str]:
    notes = []
    both = straddling(members)
    if both:
        some = ", ".join(both[:3]) + (f" and {len(both) - 3} more" if len(both) > 3 else "")
        notes.append(f"held out whole, because lists put them on both sides: {some}")
    there = {(member.modality, sides[member.subject]) for member in members}
    modalities = sorted({modality for modality, _ in there})
    untrained = [modality for modality in modalities if (modality, "train") not in there]
    if untrained:
        notes.append(f"nothing to train on for {', '.join(untrained)}: every scan is held out")
    unvalidated = [modality for modality in modalities if (modality, "val") not in there]
    if unvalidated and val_fraction > 0:
        notes.append(f"nothing held out for {', '.join(unvalidated)}: too few subjects, or a list decides so")
    return notes
