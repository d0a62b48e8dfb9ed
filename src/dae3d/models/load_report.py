"""A table of what was loaded from a weights file."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

PARTS = ("encoder", "decoder", "head")
_HEADS = ("decoder.head.", "decoder.repair_heads.", "auxiliary_heads.")
EXAMPLES = 2
_SHOWN = 3


@dataclass(frozen=True)
class LoadReport:
    """What happened to each tensor of a file and of the network.

    Attributes:
        title: which weights were loaded into which network.
        taken: names in the network of tensors that were copied unchanged.
        adapted: names in the network of tensors that were changed to fit, and how.
        skipped: names in the file of tensors that were not used, and why.
        missing: names in the network of tensors that were not loaded; they have random values.
        expected: those of `missing` that such a file never has, and why.
    """

    taken: list[str]
    skipped: dict[str, str]
    missing: list[str]
    adapted: dict[str, str] = field(default_factory=dict)
    expected: dict[str, str] = field(default_factory=dict)
    title: str = "weights"

    def print(self, console: Console | None = None) -> None:
        """Show the table on screen."""
        console = console or Console(highlight=False)
        console.print(f"[bold]{escape(self.title)}[/bold]", soft_wrap=True)
        console.print(self._counts())
        missing = dict.fromkeys(self.missing, "keep their random values") | self.expected
        for what, reasons in (("adapted", self.adapted), ("skipped", self.skipped), ("missing", missing)):
            for line in _by_reason(what, reasons):
                console.print(f"[yellow]{escape(line)}[/yellow]", soft_wrap=True)

    def __str__(self) -> str:
        console = Console(highlight=False, width=110)
        with console.capture() as captured:
            self.print(console)
        return captured.get()

    def _counts(self) -> Table:
        table = Table("part", "taken", "adapted", "missing", box=None, pad_edge=False)
        rows = {part: [0, 0, 0] for part in PARTS}
        for column, names in enumerate((self.taken, self.adapted, self.missing)):
            for name in names:
                rows[part_of(name)][column] += 1
        for part, counts in rows.items():
            if any(counts):
                table.add_row(part, *map(str, counts))
        return table


def part_of(name: str) -> str:
    """Which part of a network a tensor belongs to: "encoder", "decoder" or "head"."""
    if name.startswith("encoder."):
        return "encoder"
    return "head" if name.startswith(_HEADS) else "decoder"


def has_head(names: Iterable[str]) -> bool:
    """Whether any of the names belongs to the last layer."""
    return any(part_of(name) == "head" for name in names)


def _by_reason(what: str, reasons: dict[str, str]) -> Iterator[str]:
    """One line per reason: the number of tensors, the reason, and some of the names."""
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, why in reasons.items() if why == reason]
        more = ", ..." if len(names) > EXAMPLES else ""
        yield f"{what} {len(names)} ({reason}): {', '.join(names[:EXAMPLES])}{more}"


def some(names: list[str], what: str) -> str:
    """A number of names with the first few."""
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}"
