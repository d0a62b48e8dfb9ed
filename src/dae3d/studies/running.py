"""The jobs of a study: its recipes and its cells, their settings and their files."""

import json
import shutil
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dae3d.errors import Dae3dError
from dae3d.files import write_text
from dae3d.models.provenance import kept, trained_on
from dae3d.models.weights import read_weights
from dae3d.scans.task import TaskCase
from dae3d.store.source import digest
from dae3d.studies.cells import DONE, Cell
from dae3d.studies.jobs import Job
from dae3d.studies.matched import write_matched
from dae3d.studies.plan import Arm, Study, arm_settings, recipe_settings
from dae3d.studies.self_training import FIRST, LIST, PSEUDO, flags, write_few_labelled
from dae3d.training.left_out import digests_of
from dae3d.version import __version__

_SETTINGS = "settings.yaml"
CASES = "cases"
_LAST = Path("weights") / "last.safetensors"
_OWN_CASES = "pseudo-cases"


class StudyFolder:
    """The files and jobs of a study in a folder.

    Args:
        study: the study.
        out: its folder.
        tested: the test cases.
    """

    def __init__(self, study: Study, out: Path, tested: Iterable[TaskCase]) -> None:
        self.study, self.out, self.tested = study, out, tuple(tested)
        self._digests: dict[str, str] = {}
        self.recipes = {name: recipe_settings(study, name) for name in study.pretrain}
        self.settings = {
            (arm, steps): arm_settings(study, arm, steps) for arm in study.arms for steps in study.max_steps
        }

    def recipe_run(self, name: str, seed: int) -> Path:
        """The run folder of a recipe."""
        return self.out / "pretrain" / f"{name}-seed{seed}" / "run"

    def init_of(self, arm: Arm, subset: int) -> str | None:
        """The run or file that an arm begins with on a subset."""
        if arm.init not in self.study.pretrain:
            return arm.init
        order = [*self.study.lr_subsets, *self.study.subsets].index(subset)
        return str(self.recipe_run(arm.init, order % self.study.pretrain_seeds))

    def is_ready(self, arm: Arm, subset: int) -> bool:
        """Whether the weights that an arm begins with are there."""
        init = self.init_of(arm, subset)
        return arm.init not in self.study.pretrain or (Path(str(init)).parent / DONE).is_file()

    def recipe_job(self, name: str, seed: int) -> Job:
        """The pre-training of a recipe."""
        folder = self.recipe_run(name, seed).parent
        given = {**self.recipes[name], "seed": seed, "leave_out": str(self.study.task)}

        def prepare() -> list[list[str]] | None:
            if _is_done(folder, given):
                return None
            file = _write_settings(folder, given)
            run, cases = str(folder / "run"), str(self.out / CASES)
            fold = [] if self.study.fold is None else ["--fold", str(self.study.fold)]
            return [
                ["pretrain", "--config", str(file), "--out", run, "--resume"],
                ["check", run, "--data", str(self.study.task), "--cases", cases, *fold],
            ]

        return Job(f"pretrain {name}, seed {seed}", folder, prepare, lambda took: _mark(folder, took))

    def cell_job(self, cell: Cell) -> Job:
        """The fine-tuning of a cell, and the evaluation of its last weights."""
        folder, arm = self.out / cell.name, self.study.arms[cell.arm]

        def prepare() -> list[list[str]] | None:
            init = self.init_of(arm, cell.subset)
            given = {
                **self.settings[cell.arm, cell.max_steps],
                "data": str(self.study.task),
                "fold": self.study.fold,
                "train_cases": cell.train_cases,
                "max_steps": cell.max_steps,
                "seed": cell.subset,
                "lr": cell.lr,
                "store": str(self.out / CASES),
                "init": init,
            }
            # Also what is in the weights, which a user may have trained further.
            marked = {**given, "init": None if init is None else self._digest(init)}
            if arm.pseudo_label is not None:
                marked["pseudo_label"] = arm.pseudo_label
            if _is_done(folder, marked):
                return None
            _write_settings(folder, marked)
            if arm.matched and init is not None:
                given["init"] = str(folder / "matched.safetensors")
                write_matched(init, folder / "matched.safetensors", cell.subset)
            file = folder / "finetune.yaml"
            write_text(file, yaml.safe_dump(given, sort_keys=False))
            run, fold = folder / "run", [] if self.study.fold is None else ["--fold", str(self.study.fold)]
            evaluated = [
                *("evaluate", "--data", str(self.study.task), "--split", "validation", *fold),
                *("--weights", str(run / _LAST), "--out", str(folder / "evaluation"), "--workers", "1"),
            ]
            # On the command line a rate also lowers those of warm-up and end that a config has.
            tune = ["finetune", "--config", str(file), "--resume", "--lr", repr(cell.lr)]
            if "val_cases" not in given:
                tune += ["--val-cases", "1"]
            if arm.pseudo_label is None:
                return [[*tune, "--out", str(run)], evaluated]
            return [*self._self_training(cell, folder, tune, arm.pseudo_label), evaluated]

        def finish(took: float) -> None:
            _mark(folder, took)
            # Hundreds of cells would fill a disk; their curves and tables stay.
            runs = [f"{name}/{part}" for name in ("run", FIRST) for part in ("checkpoints", "weights")]
            for large in (*runs, "evaluation/predictions", f"{PSEUDO}/labels", _OWN_CASES):
                shutil.rmtree(folder / large, ignore_errors=True)
            (folder / "matched.safetensors").unlink(missing_ok=True)

        return Job(cell.name.removeprefix("cells/"), folder, prepare, finish)

    def _self_training(
        self, cell: Cell, folder: Path, tune: list[str], settings: Mapping[str, Any]
    ) -> list[list[str]]:
        """Fine-tune, label the training cases that the subset leaves out, and fine-tune on both."""
        study, few = self.study, folder / LIST
        modality = study.finetune.get("modality")
        write_few_labelled(study.task, modality, study.fold, cell.train_cases, cell.subset, few)
        given = [*tune, "--fold", "none", "--train-cases", "none"]
        made = folder / PSEUDO
        return [
            [*given, "--data", str(few), "--out", str(folder / FIRST)],
            [
                *("pseudo-label", "--weights", str(folder / FIRST / _LAST), "--task", str(few)),
                *("--out", str(made), *flags(settings)),
            ],
            # The store of the study has no labels that were predicted.
            [
                *(*given, "--data", str(made / "task.json"), "--store", str(folder / _OWN_CASES)),
                *("--out", str(folder / "run")),
            ],
        ]

    def _digest(self, init: str) -> str:
        """Of a weights file, read once: cells begin when pre-training has ended."""
        if init not in self._digests:
            self._digests[init] = digest([read_weights(init).path])
        return self._digests[init]

    def given_weights(self) -> dict[str, str]:
        """The weights that arms load and the study did not make; `transfer: none` loads only sizes."""
        arms = self.study.arms.items()
        inits = {name: arm.init for name, arm in arms if arm.init and arm.transfer != "none"}
        return {name: init for name, init in inits.items() if init not in self.study.pretrain}

    def refuse_seen(self) -> None:
        """Raise Dae3dError if given weights were trained on a test case, as far as they record it."""
        for name, init in self.given_weights().items():
            seen = self.seen(init)
            if seen:
                raise Dae3dError(
                    f"arms.{name}.init: {init} was trained on {len(seen)} of {len(self.tested)} test "
                    f"cases, such as {seen[0]}; pre-train with --leave-out {self.study.task}, or as a recipe "
                    "of the study"
                )

    def seen(self, init: str) -> list[str]:
        """The test cases that weights were trained on, without labels or with them."""
        stages = trained_on(read_weights(init).info)
        training = frozenset[int]().union(*(stage.training for stage in stages))
        if not training:
            return []
        return [name for name, digests in self._tested.items() if digests & training]

    @cached_property
    def _tested(self) -> dict[str, set[int]]:
        """Fingerprints of the images of each test case."""
        return {case.name: set(map(kept, digests_of(case))) for case in self.tested}

    def unknown(self, init: str) -> bool:
        """Whether weights do not record all the scans that they were trained on."""
        return not all(stage.known for stage in trained_on(read_weights(init).info))

    def values(self, cells: Iterable[Cell]) -> dict[Cell, dict[str, float]]:
        """The metric of each test case in the finished cells."""
        found = {cell: cell.values(self.out, self.study.metric) for cell in cells}
        return {cell: values for cell, values in found.items() if values is not None}

    def seconds(self, cell: Cell) -> float:
        """That a finished cell took."""
        return float(json.loads((self.out / cell.name / DONE).read_text())["seconds"])


def means(values: Mapping[Cell, Mapping[str, float]]) -> dict[Cell, float]:
    """Means over the test cases that have a value."""
    return {cell: float(np.nanmean(list(own.values()))) for cell, own in values.items()}


def _is_done(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a job has finished.

    Raises:
        Dae3dError: if it began with other settings.
    """
    file = folder / _SETTINGS
    if file.is_file():
        before, now = yaml.safe_load(file.read_text()), json.loads(json.dumps(settings))
        if before != now:
            names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
            raise Dae3dError(
                f"{folder}: was made with {names[0]} {before.get(names[0])}, not {now.get(names[0])}; name "
                "another --out, or delete this folder"
            )
    return (folder / DONE).is_file()


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> Path:
    file = folder / _SETTINGS
    write_text(file, yaml.safe_dump(json.loads(json.dumps(settings)), sort_keys=False))
    return file


def _mark(folder: Path, seconds: float) -> None:
    write_text(folder / DONE, json.dumps({"dae3d": __version__, "seconds": round(seconds, 1)}) + "\n")
