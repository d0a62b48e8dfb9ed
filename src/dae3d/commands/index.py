"""The command `index`: find scans, read their headers, say what each one is, hold some subjects out.

What is found and described is kept on disk until it is known which subjects are held out, so that memory
grows by little more than a subject's name with every scan.
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
    """Write a manifest of all scans in folders and lists, and show what there is.

    A scan's modality is what the first matching rule says, else `modality`, else its list, layout or DICOM
    header, else its BIDS suffix; a scan of which none of them speaks is left out. Headers once read are kept
    in a hidden file beside the manifest, so that the same files are not read again.

    Raises:
        Dae3dError: where a folder is missing, a list is none, or no scan is found that can be used.
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
        # Takes half a second to import, with what draws its pictures.
        from dae3d.reporting.data_check import check_scans

        print(f"report: {check_scans(manifest, settings.out, settings.workers)}")
    return manifest


def _refuse_other_file(out: Path) -> None:
    """Refuse to write over what is not a manifest: a list, a scan."""
    if out.is_dir():
        raise Dae3dError(f"out: {out} is a folder; name the manifest's file")
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
            "none of the files found can be used, for the reasons above; no manifest is written"
        )
    names = ", ".join(map(str, settings.folders))
    return Dae3dError(
        f"no scans in {names}; files are read whose names end in {readable_suffixes()}, and DICOM series "
        "whatever their files' names"
    )


def _describe_all(found: Gathered, settings: IndexSettings) -> tuple[Spool[Described], IndexCounts]:
    """What can be used; what cannot is added to what was left out."""
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
    """What every file and every series is; `counts` learns what is left of the table of subjects."""
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
