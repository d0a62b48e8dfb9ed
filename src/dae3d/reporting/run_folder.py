"""Reading a run folder. A run that is going on, or was killed, is read as far as it has come."""

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
    """Scans of one modality and data set; `voxels` of all of them together."""

    modality: str
    dataset: str
    train: int
    val: int
    voxels: int


class Data(_Record):
    """What was trained on."""

    store: str | None = None
    rows: tuple[DataRow, ...] = ()


class Validation(_Record):
    """The fixed crops of one modality; `split` is "train" where it has no validation scan."""

    crops: int
    split: str
    scans: tuple[str, ...] = ()


class Leg(_Record):
    """The data that the steps after `start` were trained on."""

    start: int = Field(alias="from")
    data: Data = Data()


class RunRecord(_Record):
    """`run.json`: what ran where, on what, how far and how fast. What it does not say is None or empty."""

    kind: Literal["pretrain", "finetune"] = "pretrain"
    dae3d: str | None = None
    versions: dict[str, str] = {}
    device: str | None = None
    precision: str | None = None
    world_size: int = 1
    parameters: int | None = None
    disruption: str | None = None
    damage: str | None = None  # what a disruption does, in words
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
    """One metric over the run, by ascending step."""

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
    """All that a run folder says. `settings` is the text of settings.yaml."""

    folder: Path
    record: RunRecord
    settings: str | None
    metrics: dict[str, Series]
    unreadable_rows: int
    pictures: dict[str, list[Picture]]

    @property
    def modalities(self) -> list[str]:
        """Every modality that the run knows, in alphabetical order."""
        validated = {name.rpartition("/")[2] for name in self.metrics if name.startswith("val/psnr/")}
        trained = {row.modality for row in self.record.data.rows}
        return sorted(trained | validated | set(self.record.validation) | set(self.pictures))


def load_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        Dae3dError: where there is no such folder, or no readable `run.json` in it.
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
    if not folder.is_dir():
        raise Dae3dError(f"{folder}: no such run; give the folder that `dae3d pretrain` or `finetune` wrote")
    if not path.is_file():
        raise Dae3dError(
            f"{folder}: not a run, it has no run.json; give the folder that `dae3d pretrain` or `finetune` "
            "wrote"
        )
    try:
        return RunRecord.model_validate_json(path.read_text())
    except (ValidationError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split("\n")[1:3]) or str(error)
        raise Dae3dError(f"{path}: not the record of a run: {' '.join(problem.split())}") from None


def _load_metrics(path: Path) -> tuple[dict[str, Series], int]:
    """Series by metric, and the number of unreadable rows.

    Where a step occurs twice, because a resumed run repeated it, the later row counts.
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
