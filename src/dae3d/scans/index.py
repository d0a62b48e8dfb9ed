"""The verb `index`: find scans, read their headers, say what each one is, hold some subjects out.

What is found and described is kept on disk until it is known which subjects are held out, so that memory
grows by little more than a subject's name with every scan.
"""

import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from dae3d.errors import Dae3dError
from dae3d.files import make_folder
from dae3d.scans.ahead import in_threads
from dae3d.scans.describe import Described, Describer, Refused
from dae3d.scans.dicom.finder import find_series
from dae3d.scans.dicom.identity import load_salt
from dae3d.scans.gather import Gathered, gather
from dae3d.scans.header_cache import HeaderCache
from dae3d.scans.index_settings import IndexSettings
from dae3d.scans.index_tables import Tally, print_tables, short
from dae3d.scans.layouts.layout import LAYOUTS
from dae3d.scans.manifest import LeftOut, Manifest, Scan, Split, is_manifest, write_manifest
from dae3d.scans.passed_over import NO_SCAN
from dae3d.scans.sources import absolute, readable_suffixes
from dae3d.scans.splits import Member, split_subjects, straddling
from dae3d.scans.spool import Spool
from dae3d.settings import verb


@verb
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
    described, tally = _describe_all(found, settings)
    sides = split_subjects(tally.members, settings.val_fraction, settings.seed)
    notes = _notes(tally, sides, found.archives, settings)
    print_tables(tally, sides, notes)
    if not described:
        raise _nothing_found(tally, settings)
    scans = (_on_side(item.scan, sides) for item in described)
    write_manifest(settings.out, len(described), scans, found.left_out)
    print(f"manifest: {settings.out}")
    manifest = Manifest.load(settings.out)
    if settings.check:
        # Takes half a second to import, with what draws its pictures.
        from dae3d.reporting.data_check import check_scans

        print(f"report: {check_scans(manifest, settings.out, settings.workers)}")
    return manifest


def _refuse_other_file(out: Path) -> None:
    """Refuse to write over what is no manifest: a list, a scan."""
    if out.is_dir():
        raise Dae3dError(f"out: {out} is a folder; name the manifest's file")
    if out.exists() and not is_manifest(out):
        raise Dae3dError(
            f"out: {out} is there, and is no manifest; name another file, such as manifest.jsonl"
        )


def _nothing_found(tally: Tally, settings: IndexSettings) -> Dae3dError:
    layout = LAYOUTS[settings.layout] if settings.layout else None
    if layout and layout.dicom:
        return layout.mismatch(absolute(next(filter(Path.is_dir, settings.folders))))
    if tally.left_out.keys() - {NO_SCAN}:
        return Dae3dError(
            "none of the files found can be used, for the reasons above; no manifest is written"
        )
    names = ", ".join(map(str, settings.folders))
    return Dae3dError(
        f"no scans in {names}; files are read whose names end in {readable_suffixes()}, and DICOM series "
        "whatever their files' names"
    )


def _describe_all(found: Gathered, settings: IndexSettings) -> tuple[Spool[Described], Tally]:
    """What can be used; what cannot is added to what was left out."""
    described: Spool[Described] = Spool(settings.out.parent)
    tally = Tally()
    for item in found.left_out:
        tally.add_left_out(item)
    for answer in _answers(found, settings):
        if isinstance(answer, Refused):
            found.left_out.add(answer.left_out)
            tally.add_left_out(answer.left_out)
            if answer.rule:
                tally.rules[answer.rule] += 1
        else:
            described.add(answer)
            scan = answer.scan
            # Equal words are kept once.
            tally.members[Member(sys.intern(scan.subject), sys.intern(scan.modality), answer.given)] += 1
            if answer.remark:
                tally.add_remark(scan.path, answer.remark)
    return described, tally


def _answers(found: Gathered, settings: IndexSettings) -> Iterator[Described | Refused]:
    """What every file and every series is."""
    cache = settings.out.with_name(f".{settings.out.name}.headers")
    with HeaderCache(cache) as headers:
        describer = Describer(settings, found.roots, headers)
        answers = in_threads(describer.file, found, settings.workers)
        files = tqdm(answers, "reading headers", len(found), unit="file", leave=False, delay=1)
        for candidate, answer in files:
            if answer is None:
                found.dicom.add(candidate.path)
            else:
                yield from [answer] if isinstance(answer, Refused) else answer
    if not found.dicom:
        return
    slices = tqdm(found.dicom, "reading DICOM headers", unit="file", leave=False, delay=1)
    for series in find_series(slices, load_salt(settings.salt), settings.workers):
        if isinstance(series, LeftOut):
            yield Refused(series)
        else:
            yield describer.series(series, found.root_of(series.folder))


def _on_side(scan: Scan, sides: Mapping[str, Split]) -> Scan:
    return scan.model_copy(update={"split": sides[scan.subject]})


def _notes(tally: Tally, sides: Mapping[str, Split], archives: int, settings: IndexSettings) -> list[str]:
    """What the reader of the tables ought to know besides."""
    notes = []
    if archives:
        notes.append(f"archives (.zip, .tar.gz) are not read: {archives}; unpack those that hold scans")
    if "4-D" in tally.left_out:
        notes.append("of 4-D files --volume takes one volume, or all; --channels LABEL LABEL ... names each")
    for remark, kind in tally.remarks.items():
        notes.append(f"in {kind.files} of the scans, {remark}; for example {short(kind.example)}")
    return notes + _split_notes(tally.members, sides, settings.val_fraction)


def _split_notes(members: Collection[Member], sides: Mapping[str, Split], val_fraction: float) -> list[str]:
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
