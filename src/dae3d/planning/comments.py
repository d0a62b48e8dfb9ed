"""Settings as YAML with a comment on each."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dae3d.version import __version__

_WIDTH = 108
BEGINNING = "# Plan of"
# By which a plan is known, as a regular expression.
MARK = BEGINNING.encode() + rb" [a-z-]+, made by dae3d plan"


@dataclass(frozen=True)
class Line:
    """A setting, its value, and why; without a name, only the comment."""

    name: str
    value: Any
    why: str = ""


def written(what: str, use: str, found: Sequence[str], lines: Iterable[Line]) -> str:
    """A plan as YAML.

    Args:
        what: is planned: "pre-training".
        use: the command that takes it.
        found: sentences about the data, and the forecast.
        lines: settings.
    """
    text = [f"{BEGINNING} {what}, made by dae3d plan {__version__}.", f"# Use: {use}"]
    for sentence in found:
        text += ["#", *_comment(sentence)] if sentence.endswith(":") else _comment(f"- {sentence}", "  ")
    for line in lines:
        if line.why:
            text += ["", *_comment(line.why)]
        if line.name:
            value = line.value if not isinstance(line.value, Path) else str(line.value)
            dumped = yaml.safe_dump([value], default_flow_style=True, width=10**6, allow_unicode=False)
            text.append(f"{line.name}: {dumped.strip()[1:-1]}")
    return "\n".join(text) + "\n"


def _comment(text: str, further: str = "") -> list[str]:
    # A path may hold a line break, which would end the comment.
    return textwrap.wrap(
        " ".join(text.split()),
        _WIDTH,
        initial_indent="# ",
        subsequent_indent=f"# {further}",
        break_long_words=False,
        break_on_hyphens=False,
    )
