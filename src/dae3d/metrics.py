"""The form of `metrics.csv`: one `step,metric,value` row for each figure, in the order of writing."""

import csv
from pathlib import Path

HEADER = ("step", "metric", "value")

MetricRow = tuple[int, str, float]


def read_metrics(path: Path) -> tuple[list[MetricRow], int]:
    """The rows of a `metrics.csv`, and how many lines are none (the last one, if a crash cut it short)."""
    rows: list[MetricRow] = []
    unreadable = 0
    if path.is_file():
        with path.open(newline="", errors="replace") as file:
            for line in list(csv.reader(file))[1:]:
                try:
                    step, name, value = line
                    rows.append((int(step), name, float(value)))
                except ValueError:
                    unreadable += 1
    return rows, unreadable
