"""Print a check as tables."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dae3d.probing.levels import ALL, IMAGE
from dae3d.probing.metrics import Check

_NAMES = {ALL: "all levels", IMAGE: "image skip"}


def show(check: Check) -> None:
    """Print the metrics and the verdict."""
    console = Console()
    console.print(_levels(check))
    console.print(_pooled(check))
    for line in check.verdict:
        console.print(escape(line), style=None if check.sound else "bold")


def _levels(check: Check) -> Table:
    figures = check.figures
    table = Table(box=SIMPLE_HEAD)
    table.add_column("level")
    table.add_column("channels", justify="right")
    table.add_column("L1 with it swapped", justify="right")
    table.add_column("effective rank", justify="right")
    if check.labelled:
        table.add_column("probe Dice", justify="right")
        table.add_column("random weights", justify="right")
    # A decoder that ends at half resolution has no skip from the image.
    for name in (*figures.levels, ALL, *([IMAGE] if IMAGE in figures.share else [])):
        label = _NAMES.get(name) or name.removeprefix("level")
        cells = [
            str(figures.channels.get(name, "")),
            _figure(figures.share.get(name), "+z.1f", " %"),
            _figure(figures.rank.get(name), ".1f"),
        ]
        if check.labelled:
            cells += [_figure(of.get(name), ".3f") for of in (figures.dice, check.random)]
        table.add_row(label, *cells)
    return table


def _pooled(check: Check) -> Table:
    figures = check.figures
    table = Table(box=SIMPLE_HEAD)
    table.add_column("pairs of crops (pooled features)")
    table.add_column("mean cosine", justify="right")
    kinds = {
        "any": "all pairs",
        "within": "same modality",
        "between": "different modalities",
        "scan": "same scan",
        "subjects": "same modality, different subjects",
    }
    for name, words in kinds.items():
        table.add_row(words, _figure(figures.cosine.get(name), ".3f"))
    if figures.nearest is not None and figures.chance is not None:
        table.add_row(
            f"nearest crop of another scan has the same modality ({figures.queries} crops)",
            f"{100 * figures.nearest:.0f} % (chance {100 * figures.chance:.0f} %)",
        )
    return table


def _figure(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"
