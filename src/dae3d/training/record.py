"""Files that a run writes about itself: `metrics.csv`, `run.json`, `log.txt`."""

import csv
import io
import json
import logging
import os
import platform
import statistics
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from dae3d.files import write_text
from dae3d.metrics import HEADER, read_metrics
from dae3d.training.forecast import peak_bytes
from dae3d.training.run_settings import RunSettings
from dae3d.version import __version__


class MetricsFile(Logger):
    """Metrics as `step,metric,value` rows, floats in full precision, each row written at once.

    A run resumed at a step drops the later rows, because those steps are repeated.
    """

    def __init__(self, path: Path, resumed_at: int | None) -> None:
        super().__init__()
        self.path, self.resumed_at = path, resumed_at
        self._prepared = False

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def version(self) -> str:
        """Lightning requires one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Settings are in settings.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row for each metric."""
        if not self._prepared:
            self._keep_rows_up_to(self.resumed_at)
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows([step, name, repr(value)] for name, value in metrics.items())

    def _keep_rows_up_to(self, last: int | None) -> None:
        kept = [row for row in read_metrics(self.path)[0] if last is not None and row[0] <= last]
        text = io.StringIO()
        csv.writer(text).writerows([HEADER, *([step, name, repr(value)] for step, name, value in kept)])
        write_text(self.path, text.getvalue())
        self._prepared = True


class RunRecord:
    """`run.json`: hardware, versions, data, progress and speed, updated as the run continues.

    `about` has the entries specific to pre-training or fine-tuning: data and validation.
    """

    def __init__(
        self, settings: RunSettings, max_steps: int, about: dict[str, Any], trainer: Any, network: Any
    ) -> None:
        self.path = settings.out / "run.json"
        self.metrics = settings.out / "metrics.csv"
        self.device = trainer.strategy.root_device
        self.gpu = self.device.type == "cuda"
        self.started = time.monotonic()
        before = json.loads(self.path.read_text()) if settings.resume and self.path.is_file() else {}
        self.seconds_before = float(before.get("seconds", 0.0))
        self.contents: dict[str, Any] = {
            "dae3d": __version__,
            "versions": versions(),
            "device": torch.cuda.get_device_name() if self.gpu else cpu_name(),
            "precision": trainer.precision,
            "world_size": trainer.world_size,
            "parameters": sum(p.numel() for p in network.parameters()),
            "max_steps": max_steps,
            **about,
        }

    def write(self, step: int, finished: bool) -> None:
        """Write the state at `step`."""
        rates = [
            value for _, name, value in read_metrics(self.metrics)[0] if name == "train/samples_per_second"
        ]
        self.contents |= {
            "step": step,
            "finished": finished,
            "seconds": self.seconds_before + time.monotonic() - self.started,
            "samples_per_second": statistics.median(rates) if rates else None,
            "peak_memory_bytes": peak_bytes(self.device),
            "peak_memory_of": "gpu" if self.gpu else "process",
        }
        write_text(self.path, json.dumps(self.contents, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Versions of every package that can change results."""
    packages = ("torch", "monai", "lightning", "numpy", "blosc2", "nibabel", "SimpleITK")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Also copy the messages of the first process to a file."""
    handler = _log_file(path)
    if handler is None:
        yield
        return
    logger = logging.getLogger("dae3d")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


@rank_zero_only
def _log_file(path: Path) -> logging.Handler:
    return logging.FileHandler(path)


def cpu_name() -> str:
    """The processor and the number of its cores."""
    return f"{platform.processor() or platform.machine()} CPU, {os.cpu_count()} cores"
