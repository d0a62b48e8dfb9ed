"""Read a run folder, including that of an unfinished run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dae3d.errors import Dae3dError
from dae3d.metrics import read_metrics

BASELINES = ("disrupted", "trilinear", "gaussian", "trilinear+gaussian")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class DataRow(_Record):
    """Number of scans of one modality and data set, and their total number of `voxels`."""

    modality: str
    dataset: str
    train: int
    val: int
    voxels: int


class Data(_Record):
    """The training data."""

    store: str | None = None
    rows: tuple[DataRow, ...] = ()


class Validation(_Record):
    """The fixed validation crops of one modality; `split` is "train" if it has no validation scans."""

    crops: int
    split: str
    scans: tuple[str, ...] = ()


class Leg(_Record):
    """The training data of the steps after `start`."""

    start: int = Field(alias="from")
    data: Data = Data()


class RunRecord(_Record):
    """The contents of `run.json`; missing fields are None or empty."""

    kind: Literal["pretrain", "finetune"] = "pretrain"
    dae3d: str | None = None
    versions: dict[str, str] = {}
    device: str | None = None
    precision: str | None = None
    world_size: int = 1
    parameters: int | None = None
    disruption: str | None = None
    damage: str | None = None  # the effect of the disruption, in words
    init: str | None = None
    step: int | None = None
    max_steps: int | None = None
    finished: bool = False
    seconds: float | None = None
    samples_per_second: float | None = None
    peak_memory_bytes: int | None = None
    peak_memory_of: str | None = None
    data: Data = Data()
    legs: tuple[Leg, ...] = ()
    validation: dict[str, Validation] = {}
    cases: dict[str, tuple[str, ...]] = {}


@dataclass(frozen=True)
class Series:
    """One metric over the run, in order of steps."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> tuple[int, float]:
        """The last step and its value."""
        return int(self.steps[-1]), float(self.values[-1])

    def at(self, step: int) -> float | None:
        """The value at a step, if there is one."""
        found = np.flatnonzero(self.steps == step)
        return float(self.values[found[0]]) if len(found) else None


@dataclass(frozen=True)
class Picture:
    """A validation picture at a step."""

    step: int
    path: Path


@dataclass(frozen=True)
class Run:
    """The contents of a run folder. `settings` is the text of settings.yaml."""

    folder: Path
    record: RunRecord
    settings: str | None
    metrics: dict[str, Series]
    unreadable_rows: int
    pictures: dict[str, list[Picture]]

    @property
    def modalities(self) -> list[str]:
        """All modalities of the run, sorted."""
        validated = {name.rpartition("/")[2] for name in self.metrics if name.startswith("val/psnr/")}
        trained = {row.modality for row in self.record.data.rows}
        return sorted(trained | validated | set(self.record.validation) | set(self.pictures))


def load_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        Dae3dError: if there is no such folder, or it has no readable `run.json`.
    """
    metrics, unreadable = _load_metrics(folder / "metrics.csv")
    settings = folder / "settings.yaml"
    return Run(
        folder=folder,
        record=_load_record(folder),
        settings=settings.read_text() if settings.is_file() else None,
        metrics=metrics,
        unreadable_rows=unreadable,
        pictures=_find_pictures(folder / "pictures"),
    )


def _load_record(folder: Path) -> RunRecord:
    path = folder / "run.json"
    hint = "give a folder written by `dae3d pretrain` or `finetune`"
    if not folder.is_dir():
        raise Dae3dError(f"{folder}: no such run; {hint}")
    if not path.is_file():
        raise Dae3dError(f"{folder}: not a run folder (no run.json); {hint}")
    try:
        return RunRecord.model_validate_json(path.read_text())
    except (ValidationError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split("\n")[1:3]) or str(error)
        raise Dae3dError(f"{path}: not a valid run record: {' '.join(problem.split())}") from None


def _load_metrics(path: Path) -> tuple[dict[str, Series], int]:
    """Series by metric, and the number of unreadable rows.

    If a resumed run repeated a step, the later row counts.
    """
    rows, unreadable = read_metrics(path)
    by_name: dict[str, dict[int, float]] = {}
    for step, name, value in rows:
        by_name.setdefault(name, {})[step] = value
    series = {}
    for name, values in by_name.items():
        steps = sorted(values)
        series[name] = Series(np.array(steps), np.array([values[step] for step in steps]))
    return series, unreadable


def _find_pictures(folder: Path) -> dict[str, list[Picture]]:
    found: dict[str, list[Picture]] = {}
    for path in folder.glob("*/*.png"):
        if path.stem.isdecimal():
            found.setdefault(path.parent.name, []).append(Picture(int(path.stem), path))
    return {name: sorted(found[name], key=lambda picture: picture.step) for name in sorted(found)}
