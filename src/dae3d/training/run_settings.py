"""Settings common to all training runs: optimisation, hardware, validation and saving."""

import logging
import math
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from pydantic import Discriminator, Field, Tag, model_validator

from dae3d.cores import THREADS
from dae3d.errors import SettingsError
from dae3d.models.backbones import FIRST, NETWORK, NetworkSettings
from dae3d.models.contents import MONAI_MERGING, MonaiMerging
from dae3d.models.hub import SOURCE_GIVEN, WeightsSource, hub_address
from dae3d.settings import Group, Settings
from dae3d.store.boxes import Roi
from dae3d.training.schedule import Duration, Schedule, in_steps, is_zero

log = logging.getLogger(__name__)

AUTO: Literal["auto"] = "auto"
# Tagged, so that a wrong number has one message, not one for each kind.
BatchSize = Annotated[
    Annotated[Annotated[int, Field(ge=1)], Tag("number")] | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(lambda value: "auto" if value == "auto" else "number"),
]

DATA = Group("data")
TRANSFER = Group("initial weights")
OPTIMISATION = Group("optimisation")
HARDWARE = Group("hardware")
RECORD = Group("validation and saving")


def _found(path: Path, was: Path, out: Path) -> Path:
    """A path of a run that was in `was`, for the run in `out`: unchanged, or moved along with the run."""
    if path.is_absolute() and path.exists():
        return path
    beside = out / os.path.relpath(path, was)
    return beside if beside.exists() else path


def _has_path(kind: Any) -> bool:
    """Whether a path may be a value of a type."""
    return kind is Path or any(map(_has_path, get_args(kind)))


class RunSettings(NetworkSettings):
    """Settings common to pre-training and fine-tuning."""

    # Values of settings that are missing in an older settings.yaml.
    earlier: ClassVar[dict[str, Any]] = {"cosine_from": "start", "backbone": FIRST}

    data: Path = Field(description="what to train on")
    out: Path = Field(description="run folder to write")
    resume: bool = Field(
        False, description="continue from the last checkpoint in --out, with its settings unless given again"
    )
    max_steps: Duration = Field(30_000, description='number of optimiser steps, or of epochs as "300 epochs"')
    seed: int = Field(0, ge=0, lt=2**31, description="random seed of the initial weights and of every sample")

    init: Annotated[WeightsSource | None, TRANSFER] = Field(
        None, description=f"weights to start from: {SOURCE_GIVEN} (default: random weights)"
    )
    monai_merging: Annotated[MonaiMerging | None, TRANSFER] = Field(
        None, description=f"of --init: {MONAI_MERGING} (default: reference, with a warning)"
    )

    roi: Annotated[Roi, DATA] = Field(
        (96, 96, 96),
        description="sides of the crops in voxels: one number, or three (right, anterior, superior); "
        "multiples of 32 for swin-unetr, for resenc of the product of the strides",
    )
    batch_size: Annotated[BatchSize, DATA] = Field(
        4,
        description="crops per device and step; auto: as many as fit into the memory of the device, by "
        "calculation, with 10 % left free on a GPU and 35 % on a CPU",
    )
    workers: Annotated[int | None, DATA] = Field(
        None, ge=0, description="loader processes per device (default: 1 on a CPU, up to 8 for a GPU)"
    )
    checkpoint_activations: Annotated[bool, NETWORK] = Field(
        False, description="recompute activations in the backward pass: less memory, slower"
    )

    lr: Annotated[float, OPTIMISATION] = Field(1e-4, gt=0, description="peak learning rate (AdamW)")
    min_lr: Annotated[float, OPTIMISATION] = Field(1e-5, ge=0, description="learning rate at the end")
    warmup_lr: Annotated[float, OPTIMISATION] = Field(1e-6, ge=0, description="learning rate at the start")
    warmup_steps: Annotated[Duration, OPTIMISATION] = Field(
        300, description="steps (or epochs) of linear warm-up"
    )
    cosine_from: Annotated[Literal["start", "warmup"], OPTIMISATION] = Field(
        "warmup",
        description="where the cosine after the warm-up starts: at the end of the warm-up, or at the start "
        "of the run, as in the published pre-training",
    )
    weight_decay: Annotated[float, OPTIMISATION] = Field(
        0.05, ge=0, description="weight decay of matrices and convolutions only"
    )
    clip_grad: Annotated[float | None, OPTIMISATION] = Field(1.0, gt=0, description="maximum gradient norm")
    accumulate: Annotated[int, OPTIMISATION] = Field(1, ge=1, description="batches per optimiser step")
    ema_decay: Annotated[float | None, OPTIMISATION] = Field(
        None, gt=0, lt=1, description="keep an exponential moving average of the weights, and export that"
    )

    precision: Annotated[Literal["auto", "32-true", "bf16-mixed", "16-mixed"], HARDWARE] = Field(
        "auto",
        description="auto: bf16-mixed on a GPU that supports it, else 32-true, although some CPUs support it "
        "too (AVX512-BF16, AMX)",
    )
    compile: Annotated[Literal["auto", "on", "off"], HARDWARE] = Field(
        "auto",
        description="torch.compile the transformer's MLPs; auto: off, because it gains nothing on "
        "a CPU, and has not been measured on a GPU",
    )
    accelerator: Annotated[Literal["auto", "cpu", "gpu"], HARDWARE] = Field(
        "auto", description="where to run"
    )
    threads: Annotated[int | None, HARDWARE] = Field(None, ge=1, description=THREADS)
    devices: Annotated[int | None, HARDWARE] = Field(
        None, ge=1, description="devices per node (default: all GPUs, or as set by the launcher)"
    )
    nodes: Annotated[int | None, HARDWARE] = Field(
        None, ge=1, description="machines (default: 1, or as set by the launcher)"
    )
    strategy: Annotated[Literal["auto", "ddp", "fsdp"], HARDWARE] = Field(
        "auto", description="auto: ddp if there are several devices"
    )

    val_every: Annotated[Duration, RECORD] = Field(1000, description="steps (or epochs) between validations")
    save_every: Annotated[Duration, RECORD] = Field(1000, description="steps (or epochs) between checkpoints")
    keep: Annotated[int, RECORD] = Field(2, ge=1, description="number of these checkpoints to keep")
    log_every: Annotated[int, RECORD] = Field(
        10, ge=1, description="steps between rows of metrics.csv, each the mean over those steps"
    )

    @classmethod
    def completed(cls, given: dict[str, Any], chosen: set[str]) -> dict[str, Any]:
        """A resumed run keeps its settings unless given again; min_lr and warmup_lr are at most lr."""
        if given.get("resume") in (True, "true") and "out" in given:
            out = Path(given["out"])
            saved = cls._moved(_saved(cls, out, begins="data" in given), out)
            if given.get("batch_size") == AUTO and "batch_size" in saved:
                given = {**given, "batch_size": saved["batch_size"]}
            given = {**saved, **given}
        given = cls.without_others(given, chosen)
        return {**given, **_lowered_rates(cls, given, chosen)}

    @classmethod
    def _moved(cls, saved: dict[str, Any], out: Path) -> dict[str, Any]:
        """Saved settings; paths relative to the run are kept if both have moved."""
        given = [name for name in cls.path_fields() if saved.get(name) is not None]
        names = [name for name in given if hub_address(saved[name]) is None]
        return saved | {name: _found(Path(saved[name]), Path(saved.get("out", out)), out) for name in names}

    @classmethod
    def path_fields(cls) -> list[str]:
        """The settings that name a file or folder, except the run's own."""
        kinds = {name: field.annotation for name, field in cls.model_fields.items() if name != "out"}
        return [name for name, kind in kinds.items() if _has_path(kind)]

    def with_absolute_paths(self) -> Self:
        """The settings with absolute paths, so that they are valid from any folder."""
        paths = {name: getattr(self, name) for name in (*self.path_fields(), "out")}
        # An address on the Hub is a str.
        made = {name: Path(os.path.abspath(path)) for name, path in paths.items() if isinstance(path, Path)}
        return self.model_copy(update=made)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name in ("min_lr", "warmup_lr"):
            if getattr(self, name) > self.lr:
                raise ValueError(f"{name}: must be at most lr {self.lr:g}, not {getattr(self, name):g}")
        for name in ("max_steps", "val_every", "save_every"):
            if is_zero(getattr(self, name)):
                raise ValueError(f"{name}: must be 1 or more, not 0")
        if self.backbone is not None or self.init is None:
            self.check_others(self.architecture_class)
        if self.init is None and self.monai_merging is not None:
            raise ValueError("monai_merging: needs --init")
        if self.ema_decay is not None and self.strategy == "fsdp":
            raise ValueError("ema_decay: not with strategy fsdp, which keeps no full copy of the weights")
        if isinstance(self.save_every, int) and self.save_every % self.log_every:
            raise ValueError(
                f"save_every: must be a multiple of log_every {self.log_every}, not {self.save_every}"
            )
        return self

    @property
    def crops(self) -> int:
        """`batch_size` as a number, once it is one."""
        assert self.batch_size != AUTO
        return self.batch_size

    def schedule(self, steps_per_epoch: int) -> Schedule:
        """Every duration in steps.

        save_every is rounded up to a multiple of log_every. The default warm-up is shortened to a tenth of
        the run if it is as long as the run or longer; one that was given is kept. Both are logged.
        """
        names = [field.name for field in fields(Schedule) if field.name in type(self).model_fields]
        steps = {name: in_steps(getattr(self, name), steps_per_epoch) for name in names}
        steps["save_every"] = -(-steps["save_every"] // self.log_every) * self.log_every
        warmup, total = steps["warmup_steps"], steps["max_steps"]
        if warmup >= total and "warmup_steps" in self.model_fields_set:
            highest = self.warmup_lr + (total - 1) * (self.lr - self.warmup_lr) / warmup
            _warn(
                f"warmup_steps: {warmup}, but the run has {total} steps, so the learning rate rises only to "
                f"{highest:.3g}: lr {self.lr:g} is not reached"
            )
        elif warmup >= total:
            steps["warmup_steps"] = total // 10
            _say(f"warmup_steps: {total // 10} instead of {warmup}, because the run has {total} steps")
        return Schedule(**steps)

    def recorded(self, schedule: Schedule) -> Self:
        """The settings as recorded in a run's files: durations in steps, without resume."""
        steps = {name: count for name, count in asdict(schedule).items() if name in type(self).model_fields}
        return self.model_copy(update={**steps, "resume": False})

    def kept(self) -> dict[str, Any]:
        """Values that decide the network, its parameters and which of them are trained, by setting.

        They must not change when a run is resumed.
        """
        return {"ema_decay": self.ema_decay is not None, **self.sizes()}


def _saved(model: type[RunSettings], out: Path, begins: bool) -> dict[str, Any]:
    """The settings of the run in a folder; {} if there are none and `begins` says that a run may start."""
    path = out / "settings.yaml"
    if not path.is_file():
        if not begins:
            raise SettingsError(f"resume: {out} has no settings.yaml of a run; to start one there, give data")
        return {}
    try:
        saved = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"resume: {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(saved, dict):
        raise SettingsError(f"resume: {path} contains no settings")
    unknown = ", ".join(sorted(saved.keys() - model.model_fields.keys()))
    if unknown:
        raise SettingsError(f"resume: {path} is of another command or a newer version: it has {unknown}")
    return {**model.earlier, **saved}


def _lowered_rates(model: type[Settings], given: dict[str, Any], chosen: set[str]) -> dict[str, float]:
    """The rates above lr that were not chosen by the user, lowered to it."""
    values = {
        name: _number(given.get(name, model.model_fields[name].default))
        for name in ("lr", "min_lr", "warmup_lr")
    }
    lr = values.pop("lr")
    lowered = {name: lr for name, value in values.items() if 0 < lr < value and name not in chosen}
    for name in lowered:
        _say(f"{name}: {lr:g} instead of {values[name]:g}, because it cannot exceed lr")
    return lowered


def _number(value: Any) -> float:
    """A number as given, or NaN for anything else, which its field refuses."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


@rank_zero_only
def _say(message: str) -> None:
    log.info("%s", message)


@rank_zero_only
def _warn(message: str) -> None:
    log.warning("%s", message)
