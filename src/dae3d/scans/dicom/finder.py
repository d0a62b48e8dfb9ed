"""Find DICOM series among files with any names and folders."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from nibabel.orientations import aff2axcodes
from pydicom import Dataset

from dae3d.errors import ScanError, as_scan_error
from dae3d.scans.ahead import in_threads
from dae3d.scans.dicom.contents import is_localiser, refusal, scanner_by_class
from dae3d.scans.dicom.files_of_frames import is_whole, volumes_in_files
from dae3d.scans.dicom.geometry import SAME_POSITION, geometry
from dae3d.scans.dicom.header import Slice, SliceFacts, read_header, read_slices, reading
from dae3d.scans.dicom.identity import salted
from dae3d.scans.dicom.modality import label_by_header, read_tags
from dae3d.scans.dicom.polarity import TURNED_OVER, UNTOLD
from dae3d.scans.dicom.stacks import MIXED, Stack, places, repeats, stacks
from dae3d.scans.manifest import LeftOut
from dae3d.scans.readers import Header

DUPLICATE = "duplicate slice"
_SERIES_TAGS = [
    *read_tags,
    *("SOPInstanceUID", "SeriesDescription", "ProtocolName", "BitsAllocated", "PixelRepresentation"),
]


@dataclass(frozen=True)
class FoundSeries:
    """A series, or one of its stacks, that can be read as a volume.

    `files` are relative to `folder`, the innermost that holds them all, in slice order; `modality` is None if
    the header leaves it uncertain; `subject`, `study` and `series` are salted hashes. `scanner` is the
    header's Modality or that of its SOP class, and is only for comparison; `description` and `protocol` are
    free text for rules and the screen. None of the three may be saved. It is number `volume`, from 0, of
    `volumes` stacks that differ only in time or diffusion direction.
    """

    folder: Path
    files: tuple[str, ...]
    header: Header
    modality: str | None
    scanner: str
    description: str
    protocol: str
    subject: str
    study: str
    series: str
    volume: int
    volumes: int


def find_series(files: Iterable[Path], salt: bytes, workers: int = 1) -> Iterator[FoundSeries | LeftOut]:
    """Every series in the DICOM `files`, and the files that are left out.

    `workers` threads read the files and take them from `files` one by one, so it can be a progress bar.
    Unreadable files are yielded at once, series when all files have been read. The first of several copies of
    a file is used. The order of results follows that of `files`.
    """
    series: dict[tuple[str, ...], list[Slice]] = {}
    shared = _Shared()
    for path, answer in in_threads(_read, files, workers):
        if isinstance(answer, ScanError):
            yield LeftOut(path=path, reason=str(answer))
            continue
        for one in map(shared.slice, answer):
            series.setdefault(_series_key(one), []).append(one)
    for key in list(series):
        # Removed one by one, so that memory is freed for the results.
        yield from _decided(series.pop(key), salt)


class _Shared:
    """Makes slices share equal objects, to save memory."""

    def __init__(self) -> None:
        self._folders: dict[Path, Path] = {}
        self._facts: dict[SliceFacts, SliceFacts] = {}
        self._stacks: dict[tuple[str, ...], tuple[str, ...]] = {}

    def slice(self, one: Slice) -> Slice:
        """The slice with shared objects."""
        return replace(
            one,
            folder=self._folders.setdefault(one.folder, one.folder),
            facts=self._facts.setdefault(one.facts, one.facts),
            stack=self._stacks.setdefault(one.stack, one.stack),
        )


def _read(path: Path) -> list[Slice] | ScanError:
    try:
        return read_slices(path)
    except ScanError as error:
        return error


def _series_key(one: Slice) -> tuple[str, ...]:
    """The identifiers that slices of one series share."""
    return (one.facts.study, one.facts.series, one.facts.patient)


def _decide(slices: list[Slice], salt: bytes) -> Iterator[FoundSeries | LeftOut]:
    """The volumes in the slices with one series UID, and what is left out."""
    kept: list[Slice] = []
    for reason, refused in groupby(sorted(slices, key=_refusal), _refusal):
        if reason:
            yield _left_out(list(refused), reason)
        else:
            kept = list(refused)
    kept, copies = _once_each(kept)
    if copies:
        yield _left_out(copies, DUPLICATE)
    whole = [one for one in kept if is_whole(one)]
    for part in _apart([one for one in kept if not is_whole(one)]):
        for stack in stacks(part):
            yield from _decide_stack(stack, salt)
    for found in volumes_in_files(whole):
        if isinstance(found, Stack):
            yield from _decide_stack(found, salt)
        else:
            yield _left_out(*found)


def _decided(slices: list[Slice], salt: bytes) -> list[FoundSeries | LeftOut]:
    """As `_decide`; a series that raises an unexpected error is left out."""
    try:
        with as_scan_error():
            return list(_decide(slices, salt))
    except (ScanError, OSError) as error:
        return [_left_out(slices, str(error))]


def _refusal(one: Slice) -> str:
    return refusal(one) or ("" if one.facts.series else "no Series Instance UID")


def _once_each(slices: list[Slice]) -> tuple[list[Slice], list[Slice]]:
    """The slices of files that are not copies of others, and those of the copies.

    The SOP Instance UID alone is not enough: some anonymisers give the same one to all slices.
    """
    files: dict[Path, list[Slice]] = {}
    for one in slices:
        files.setdefault(one.path, []).append(one)
    alike: dict[tuple[object, ...], list[Path]] = {}
    for path, ones in files.items():
        key = (ones[0].instance, ones[0].stack, *(one.position for one in ones))
        alike.setdefault(key, []).append(path)
    copies = {path for paths in alike.values() if len(paths) > 1 for path in _copies(paths)}
    return (
        [one for path, ones in files.items() if path not in copies for one in ones],
        [one for path in files if path in copies for one in files[path]],
    )


def _copies(paths: Sequence[Path]) -> Iterator[Path]:
    """The files of an object that repeat another one: equal pixels, or another compression."""
    digests: dict[str, set[str]] = {}
    for path in paths:
        try:
            syntax, digest = _pixels(path)
        except ScanError:
            continue  # it cannot be a copy
        if digests and digest in digests.get(syntax, {digest}):
            yield path
        digests.setdefault(syntax, set()).add(digest)


def _apart(slices: list[Slice]) -> list[list[Slice]]:
    """The slices, grouped by folder if any share a SOP Instance UID.

    Then an anonymiser has replaced UIDs, and those of the series cannot be relied on either.
    """
    if len({one.instance for one in slices}) < len(slices):
        folders: dict[Path, list[Slice]] = {}
        for one in slices:
            folders.setdefault(one.folder, []).append(one)
        return list(folders.values())
    return [slices] if slices else []


def _decide_stack(stack: Stack, salt: bytes) -> Iterator[FoundSeries | LeftOut]:
    slices = stack.slices
    try:
        if repeats(slices):
            slices, copies = _without_equal_pixels(slices)
            if copies:
                yield _left_out(copies, DUPLICATE)
        yield _found(stack, slices, salt)
    except ScanError as error:
        yield _left_out(slices, str(error))


def _found(stack: Stack, slices: list[Slice], salt: bytes) -> FoundSeries:
    """A stack as a series of its own.

    Raises:
        ScanError: with the reason, if it is not one.
    """
    facts = slices[0].facts
    with reading():
        header = read_header(slices[0].path, _SERIES_TAGS)
        description, protocol = (
            str(header.get(name) or "") for name in ("SeriesDescription", "ProtocolName")
        )
        modality, dtype = label_by_header(header), _dtype(header)
        instance = str(header.get("SOPInstanceUID"))
    if is_localiser(description or protocol, len(slices)):
        raise ScanError("localiser: by its description")
    if stack.mixed:
        raise ScanError(f"{MIXED}: {stack.mixed} differs")
    if any(one.facts.rows_reversed is None for one in slices):
        raise ScanError(f"rows may be reversed: {UNTOLD}")
    grid = geometry(slices)
    parts = [facts.study, facts.patient]
    if is_whole(slices[0]):
        parts += [facts.concatenation] if facts.concatenation else [instance, slices[0].name]
    else:
        parts += [text for pair in stack.key for text in pair]
    folder = _folder(slices)
    ordered = dict.fromkeys(slices[number].path.relative_to(folder).as_posix() for number in grid.order)
    return FoundSeries(
        folder=folder,
        files=tuple(ordered),
        header=Header(
            shape=grid.shape,
            spacing=grid.spacing,
            dtype=dtype,
            orientation="".join(aff2axcodes(grid.affine)),
            affine=grid.affine,
            remark=TURNED_OVER if facts.rows_reversed else "",
        ),
        modality=modality,
        scanner=facts.modality or scanner_by_class(facts.sop_class),
        description=description,
        protocol=protocol,
        subject=salted(salt, "patient", facts.patient or f"of study {facts.study}"),
        study=salted(salt, "study", facts.study),
        series=salted(salt, "series", facts.series, *parts),
        volume=stack.volume,
        volumes=stack.volumes,
    )


def _without_equal_pixels(slices: Sequence[Slice]) -> tuple[list[Slice], list[Slice]]:
    """The first slice at each place, and its copies.

    Raises:
        ScanError: if two at one place have different pixels.
    """
    there: dict[int, list[Slice]] = {}
    for number, one in zip(places(slices), slices, strict=True):
        there.setdefault(number, []).append(one)
    for ones in there.values():
        if len(ones) > 1 and len({_pixels(one.path) for one in ones}) > 1:
            raise ScanError(SAME_POSITION)
    return [ones[0] for ones in there.values()], [one for ones in there.values() for one in ones[1:]]


def _pixels(path: Path) -> tuple[str, str]:
    """The transfer syntax of a file, and a digest of its stored pixels and rescaling."""
    with reading():
        header = read_header(path, ["RescaleSlope", "RescaleIntercept", "PixelData"], pixels=True)
        scale = f"{header.get('RescaleSlope')} {header.get('RescaleIntercept')} "
        digest = hashlib.sha256(scale.encode() + (header.get("PixelData") or b"")).hexdigest()
        return str(header.file_meta.get("TransferSyntaxUID", "")), digest


def _dtype(header: Dataset) -> str:
    bits = int(header.get("BitsAllocated") or 16)
    # Float and double pixel data have no representation (PS3.3 C.7.6.24).
    if "PixelRepresentation" not in header and bits > 16:
        return f"float{bits}"
    return f"{'int' if header.get('PixelRepresentation') else 'uint'}{bits}"


def _left_out(slices: Sequence[Slice], reason: str) -> LeftOut:
    files = {one.path for one in slices}
    return LeftOut(
        path=slices[0].path if len(files) == 1 else _folder(slices), reason=reason, files=len(files)
    )


def _folder(slices: Sequence[Slice]) -> Path:
    """The innermost folder that all files lie in or below."""
    return Path(os.path.commonpath({one.folder for one in slices}))
