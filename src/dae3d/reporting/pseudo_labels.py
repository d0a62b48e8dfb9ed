"""The page of pseudo-labels: how sure the networks are of each, what is left out and why, and pictures."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dae3d.inference.pseudo_labels import Ranges, Sureness
from dae3d.reporting.html import embedded, fill, write_page

ROWS = 200  # of the table


@dataclass(frozen=True)
class PseudoCase:
    """A scan with a pseudo-label: `reasons` why it is left out, empty if it is kept."""

    name: str
    images: tuple[Path, ...]
    label: Path
    found: Sureness
    reasons: tuple[str, ...]

    @property
    def rank(self) -> tuple[bool, float]:
        """Least sure first: those that are left out, then by probability."""
        return not self.reasons, self.found.probability or 0.0


def cases_csv(cases: Sequence[PseudoCase]) -> str:
    """All figures of all scans."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    classes = list(cases[0].found.ml) if cases else []
    table.writerow(
        [
            "case",
            "kept",
            "probability",
            "agreement",
            "ignored_percent",
            *(f"{c}_ml" for c in classes),
            "reason",
        ]
    )
    for case in cases:
        own = case.found
        figures = [own.probability, own.agreement, own.ignored_percent, *own.ml.values()]
        cells = ["" if value is None else f"{value:.6g}" for value in figures]
        table.writerow([case.name, int(not case.reasons), *cells, "; ".join(case.reasons)])
    return text.getvalue()


def write_pseudo_page(
    page: Path,
    task: str,
    cases: Sequence[PseudoCase],
    ranges: Ranges,
    pictures: Sequence[tuple[Path, str]],
    summary: str,
    ignore_below: float,
    settings: str,
) -> None:
    """Write the page; `pictures` have a caption each."""
    least_sure = sorted(cases, key=lambda case: case.rank)
    classes = list(cases[0].found.ml) if cases else []
    write_page(
        page,
        fill(
            "pseudo_labels.html",
            {},
            task=task,
            summary=summary,
            ignore_below=ignore_below,
            pictures=[(embedded(path), text) for path, text in pictures],
            headings=["probability", "agreement", "ignored, %", *(f"{name}, ml" for name in classes)],
            rows=[(case.name, _cells(case.found), "; ".join(case.reasons)) for case in least_sure[:ROWS]],
            count=len(cases),
            ranges=["", "", "", *(_range(ranges, name) for name in classes)] if ranges else [],
            settings=settings,
        ),
    )


def _cells(found: Sureness) -> list[str]:
    shares = [found.probability, found.agreement]
    return [
        *("" if value is None else f"{value:.3f}" for value in shares),
        "" if found.ignored_percent is None else f"{found.ignored_percent:.1f}",
        *(f"{volume:.3g}" for volume in found.ml.values()),
    ]


def _range(ranges: Ranges, name: str) -> str:
    low, high = ranges[name]
    return f"{low:.3g} to {high:.3g}"
