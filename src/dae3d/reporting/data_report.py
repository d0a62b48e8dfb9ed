"""The report page of a data set, self-contained: contents, outliers and duplicates."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dae3d.reporting import data_outliers, data_pictures
from dae3d.reporting.data_duplicates import Duplicates, find_duplicates
from dae3d.reporting.data_outliers import Flagged, outliers
from dae3d.reporting.data_pictures import Drawn
from dae3d.reporting.data_survey import Survey, Surveyed
from dae3d.reporting.html import fill, write_page
from dae3d.scans.manifest import LeftOut, Scan
from dae3d.words import figure, listing, plural

PAGE = "data-report.html"
# Per modality: scans drawn as a sample, flagged scans drawn, and flagged scans listed in all.
SAMPLE, DRAWN, LISTED = 12, 24, 500
_EXAMPLES = 3
_TIMES = " \N{MULTIPLICATION SIGN} "


@dataclass(frozen=True)
class ScanCard:
    """A scan on the page; `drawn` is None if its voxels can no longer be read, or if it is only listed."""

    name: str
    path: str
    facts: str
    reasons: tuple[str, ...]
    drawn: Drawn | None


@dataclass(frozen=True)
class ModalitySection:
    """A modality on the page; `overview` is its row in the first table."""

    name: str
    flagged_count: int
    overview: list[str]
    flagged: list[ScanCard]
    listed: list[ScanCard]
    unlisted: int
    sample: list[ScanCard]
    count: int


@dataclass(frozen=True)
class Reason:
    """A reason why files were left out, their number, and the first of them."""

    text: str
    files: int
    examples: list[str]


def write_data_report(
    out: Path,
    title: str,
    found: Survey,
    look: Callable[[int], Surveyed],
    draw: Callable[[Sequence[int]], Iterator[tuple[int, Drawn | None]]],
    left_out: Iterable[LeftOut],
) -> Path:
    """Write the report page of all surveyed scans.

    Args:
        out: the page's path.
        title: name of the data set.
        found: the properties of all scans.
        look: returns a scan by its number.
        draw: yields pictures of scans by their numbers, in any order; None for a scan that cannot be read.
        left_out: files that are not part of the data set, and why.

    Returns:
        The page's path.

    Raises:
        Dae3dError: if it cannot be written.
    """
    flagged, varied = outliers(found)
    twice = find_duplicates(found, look)
    names = sorted(found.modalities, key=lambda name: (-len(found.of(name)), name))
    samples = {name: _evenly(found.of(name), flagged[name]) for name in names}
    wanted = {one.number for name in names for one in flagged[name][:DRAWN]}
    wanted |= {number for numbers in samples.values() for number in numbers}
    pictures = dict(draw(sorted(wanted)))
    sections = [_section(found, name, flagged[name], samples[name], look, pictures) for name in names]
    reasons = _reasons(left_out)
    page = fill(
        "data_report.html",
        {"figure": figure},
        title=title,
        summary=_summary(found, sum(reason.files for reason in reasons)),
        findings=_findings(flagged, twice),
        varied=varied,
        sections=sections,
        twice=twice,
        reasons=reasons,
        geometry=data_pictures,
        rules=data_outliers,
        side_of=_side,
    )
    write_page(out, page)
    return out


def _short_name(scan: Scan) -> str:
    """File name with its parent folder, and which part of the file the scan is."""
    return "/".join(Path(scan.name).parts[-2:])


def _evenly(numbers: np.ndarray, flagged: Sequence[Flagged]) -> list[int]:
    """Evenly spaced scans of a modality, without the flagged ones."""
    others = np.setdiff1d(numbers, [one.number for one in flagged])
    steps = np.linspace(0, len(others) - 1, min(len(others), SAMPLE)).round().astype(int)
    return others[steps].tolist()


def _section(
    found: Survey,
    name: str,
    flagged: Sequence[Flagged],
    sample: Sequence[int],
    look: Callable[[int], Surveyed],
    pictures: dict[int, Drawn | None],
) -> ModalitySection:
    def card(number: int, reasons: tuple[str, ...] = ()) -> ScanCard:
        scan = look(number).scan
        return ScanCard(_short_name(scan), str(scan.path), _facts(scan), reasons, pictures.get(number))

    cards = [card(one.number, one.reasons) for one in flagged[:LISTED]]
    return ModalitySection(
        name=name,
        flagged_count=len(flagged),
        overview=_overview(found.rows[found.of(name)]),
        flagged=cards[:DRAWN],
        listed=cards[DRAWN:],
        unlisted=len(flagged) - len(cards),
        sample=[card(number) for number in sample],
        count=len(found.of(name)),
    )


def _facts(scan: Scan) -> str:
    shape = _TIMES.join(map(str, scan.shape))
    spacing = _TIMES.join(f"{side:.3g}" for side in scan.spacing)
    return f"{shape} voxels of {spacing} mm, {scan.orientation}, {scan.dtype}, {_side(scan)}"


def _side(scan: Scan) -> str:
    return "training" if scan.split == "train" else "validation"


def _overview(rows: np.ndarray) -> list[str]:
    """Numbers of training scans, validation scans and subjects; medians and usual ranges of properties."""
    shape = np.median(-np.sort(-rows["shape"], axis=1), axis=0)
    low, high = np.percentile(rows["spacing"], (5, 95))
    dark, bright = np.median(rows["percentiles"][:, [0, -1]], axis=0)
    return [
        str(np.count_nonzero(~rows["val"])),
        str(np.count_nonzero(rows["val"])),
        str(len(np.unique(rows["subject"]))),
        _TIMES.join(f"{side:.0f}" for side in shape),
        f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g}",
        f"{figure(dark)} to {figure(bright)}",
    ]


def _summary(found: Survey, left_out: int) -> str:
    rows = found.rows
    held_out = int(np.count_nonzero(rows["val"]))
    subjects, modalities = len(np.unique(rows["subject"])), len(found.modalities)
    scans = (
        f"{plural(len(rows), 'scan')} of {plural(subjects, 'subject')} in {plural(modalities, 'modality')}"
    )
    split = f"{len(rows) - held_out} for training and {held_out} for validation"
    rest = f" {plural(left_out, 'file')} {'was' if left_out == 1 else 'were'} left out." if left_out else ""
    return f"{scans}: {split}.{rest}"


def _findings(flagged: dict[str, list[Flagged]], twice: Duplicates) -> list[tuple[str, str]]:
    """What to check: a text, and the section of the page with the details."""
    found = []
    if twice.leaks:
        verb = "is" if twice.leaks == 1 else "are"
        found.append((f"{plural(twice.leaks, 'scan')} {verb} in both training and validation", "twice"))
    if twice.groups > twice.leaks:
        within = twice.groups - twice.leaks
        verb = "is" if within == 1 else "are"
        found.append(
            (f"{plural(within, 'scan')} {verb} duplicated within training or within validation", "twice")
        )
    for name, scans in flagged.items():
        kinds = Counter(one.kind for one in scans).most_common()
        if kinds:
            texts = [plural(count, kind) for kind, count in kinds]
            found.append((f"{name}: {listing(texts)}", f"flagged-{name}"))
    return found


def _reasons(left_out: Iterable[LeftOut]) -> list[Reason]:
    """The reasons, most frequent first, with some examples each."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for item in left_out:
        reason, _, detail = item.reason.partition(": ")
        counts[reason] += item.files
        shown = examples.setdefault(reason, [])
        if len(shown) < _EXAMPLES:
            place = "/".join(item.path.parts[-2:])
            shown.append(f"{place} ({detail})" if detail else place)
    return [Reason(reason, files, examples[reason]) for reason, files in counts.most_common()]
