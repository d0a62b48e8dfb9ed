"""Format numbers and lists for people."""

from collections.abc import Iterable, Sequence


def duration(seconds: float) -> str:
    """400 -> "6 min 40 s"; 90061 -> "1 d 1 h"."""
    whole = round(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((i for i, (number, _) in enumerate(parts) if number), len(parts) - 1)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2] if number) or "0 s"


def quantity(number: float) -> str:
    """3894775 -> "3.89 million"."""
    for limit, name in ((1e9, " billion"), (1e6, " million")):
        if number >= limit:
            return f"{number / limit:.3g}{name}"
    return f"{number:,.0f}"


def figure(value: float) -> str:
    """Three significant digits, from 1000 whole numbers: -1005.6 -> "-1,006"."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def size(count: float) -> str:
    """Bytes: 2100000000 -> "2.1 GB"."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count:.0f} bytes"


def listing(words: Sequence[str]) -> str:
    """["ct", "t1", "t2"] -> "ct, t1 and t2"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def some(words: Sequence[str], shown: int = 5) -> str:
    """Seven words -> "a, b, c, d, e and 2 others"; as `listing` for at most `shown` words."""
    more = len(words) - shown
    others = [f"{more} other{'s' if more > 1 else ''}"] if more > 0 else []
    return listing([*words[:shown], *others])


def plural(number: int, noun: str) -> str:
    """1, "scan" -> "1 scan"; 2, "modality" -> "2 modalities"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1] + 'ies' if noun.endswith('y') else noun + 's'}"


def millimetres(spacing: Iterable[float]) -> str:
    """A voxel size: "1 x 1 x 3 mm"."""
    return " x ".join(f"{side:.3g}" for side in spacing) + " mm"
