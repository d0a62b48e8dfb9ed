"""An arm that uses unlabelled scans: fine-tune, label what the subset leaves out, and fine-tune again."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dae3d.files import write_text
from dae3d.scans.task import read_task, task_content
from dae3d.training.cases import drawn_cases

FIRST, PSEUDO, LIST = "first", "pseudo", "few-labelled.json"


def write_few_labelled(
    task: Path, modality: Sequence[str] | None, fold: int | None, count: int, seed: int, path: Path
) -> None:
    """Write a list with `count` labelled training cases, those of a run with this seed; the rest are `test`.

    The labels of the rest are not in it.
    """
    content = read_task(task, modality)
    training, validation = content.sides(fold)
    labelled = drawn_cases(training, seed, count)
    rest = [case for case in training if case not in labelled]
    write_text(path, json.dumps(task_content(content, labelled, validation, rest), indent=1) + "\n")


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as words of a command line."""
    words = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return words
