"""Read `metrics.csv`, which has a row `step,metric,value` for each value, in the order of writing."""

import csv
from pathlib import Path

HEADER = ("step", "metric", "value")

MetricRow = tuple[int, str, float]


def read_metrics(path: Path) -> tuple[list[MetricRow], int]:
    """The rows of a `metrics.csv`, and the number of invalid lines (a crash may truncate the last one)."""
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
