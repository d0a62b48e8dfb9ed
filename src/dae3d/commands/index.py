"""The command `index`: find scans, read their headers, label them, and hold out some subjects.

Descriptions of scans are kept on disk until the split is known, so that memory grows by little more than a
subject's name per scan.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from dae3d.errors import Dae3dError
from dae3d.files import make_folder
from dae3d.scans.ahead import in_threads
from dae3d.scans.describe import Described, Describer, Undescribed
from dae3d.scans.dicom.finder import find_series
from dae3d.scans.dicom.identity import load_salt
from dae3d.scans.gather import Gathered, gather
from dae3d.scans.grouping import group
from dae3d.scans.header_cache import HeaderCache
from dae3d.scans.index_counts import IndexCounts
from dae3d.scans.index_notes import notes_on
from dae3d.scans.index_settings import IndexSettings
from dae3d.scans.index_tables import print_tables
from dae3d.scans.layouts.layout import LAYOUTS
from dae3d.scans.manifest import LeftOut, Manifest, Scan, Split, is_manifest, write_manifest
from dae3d.scans.other_files import NO_SCAN
from dae3d.scans.sources import absolute, readable_suffixes
from dae3d.scans.splits import split_subjects
from dae3d.scans.spool import Spool
from dae3d.settings import command


@command
def index(settings: IndexSettings) -> Manifest:
    """Write a manifest of all scans in folders and lists, and print a summary.

    The modality of a scan comes from the first matching rule, else `modality`, else its list, layout or DICOM
    header, else its BIDS suffix; a scan without any of these is left out. Headers are cached in a hidden file
    beside the manifest, so that files are not read again.

    Raises:
        Dae3dError: if a folder is missing, a list is not valid, or no usable scan is found.
    """
    _refuse_other_file(settings.out)
    folder = settings.out.parent
    make_folder(folder)
    found = gather(settings, folder)
    described, counts = _describe_all(found, settings)
    grouping = group(counts.named())
    counts.rename(grouping.subject_of)
    sides = split_subjects(counts.members, settings.val_fraction, settings.seed)
    notes = notes_on(counts, grouping, sides, found.archives, settings)
    print_tables(counts, sides, notes)
    if not described:
        raise _nothing_found(counts, settings)
    scans = (_on_side(item.scan, grouping.subject_of, sides) for item in described)
    write_manifest(settings.out, len(described), scans, found.left_out)
    print(f"manifest: {settings.out}")
    manifest = Manifest.load(settings.out)
    if settings.check:
        # Imported here because it takes half a second, with the drawing of pictures.
        from dae3d.reporting.data_check import check_scans

        print(f"report: {check_scans(manifest, settings.out, settings.workers)}")
    return manifest


def _refuse_other_file(out: Path) -> None:
    """Refuse to overwrite a file that is not a manifest, such as a list or a scan."""
    if out.is_dir():
        raise Dae3dError(f"out: {out} is a folder; give the path of the manifest file")
    if out.exists() and not is_manifest(out):
        raise Dae3dError(
            f"out: {out} exists and is not a manifest; choose another file, such as manifest.jsonl"
        )


def _nothing_found(counts: IndexCounts, settings: IndexSettings) -> Dae3dError:
    layout = LAYOUTS[settings.layout] if settings.layout else None
    if layout and layout.dicom:
        return layout.mismatch(absolute(next(filter(Path.is_dir, settings.folders))))
    if counts.left_out.keys() - {NO_SCAN}:
        return Dae3dError(
            "none of the files found can be used, for the reasons above; no manifest was written"
        )
    names = ", ".join(map(str, settings.folders))
    return Dae3dError(
        f"no scans in {names}; scans are files ending in {readable_suffixes()}, and DICOM series with any "
        "file names"
    )


def _describe_all(found: Gathered, settings: IndexSettings) -> tuple[Spool[Described], IndexCounts]:
    """The usable scans; the others are added to `found.left_out`."""
    described: Spool[Described] = Spool(settings.out.parent)
    counts = IndexCounts()
    for item in found.left_out:
        counts.add_left_out(item)
    for answer in _answers(found, settings, counts):
        if isinstance(answer, Undescribed):
            found.left_out.add(answer.left_out)
            counts.add_left_out(answer.left_out)
            if answer.rule:
                counts.rules[answer.rule] += 1
        else:
            described.add(answer)
            counts.add(answer)
    return described, counts


def _answers(
    found: Gathered, settings: IndexSettings, counts: IndexCounts
) -> Iterator[Described | Undescribed]:
    """The description of every file and series; the unused rows of the subject table go to `counts`."""
    cache = settings.out.with_name(f".{settings.out.name}.headers")
    with HeaderCache(cache) as headers:
        describer = Describer(settings, found.roots, headers)
        answers = in_threads(describer.file, found, settings.workers)
        files = tqdm(answers, "reading headers", len(found), unit="file", leave=False, delay=1)
        for candidate, answer in files:
            if answer is None:
                found.dicom.add(candidate.path)
            else:
                yield from [answer] if isinstance(answer, Undescribed) else answer
    if found.dicom:
        slices = tqdm(found.dicom, "reading DICOM headers", unit="file", leave=False, delay=1)
        for series in find_series(slices, load_salt(settings.salt), settings.workers):
            if isinstance(series, LeftOut):
                yield Undescribed(series)
            else:
                yield describer.series(series, found.root_of(series.folder))
    counts.unused = describer.unused_paths()


def _on_side(scan: Scan, subject_of: Mapping[str, str], sides: Mapping[str, Split]) -> Scan:
    subject = subject_of.get(scan.subject, scan.subject)
    return scan.model_copy(update={"subject": subject, "split": sides[subject]})
