"""The command `study`: does pre-training help, and how much?"""

import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dae3d.errors import Dae3dError
from dae3d.files import make_folder, refuse_other_file, write_text
from dae3d.probing.metrics import Check
from dae3d.reporting.html import refuse_other_page
from dae3d.reporting.study import StudyPage, read_check, say, write_study_page
from dae3d.run_folder import refuse_a_runs_folder
from dae3d.scans.task import read_task
from dae3d.settings import Positional, Settings, command
from dae3d.store.shards import Shard, ShardText
from dae3d.studies.cells import Cell, choosing_cells, chosen_rates, compared_cells
from dae3d.studies.jobs import Job, Pool, Result
from dae3d.studies.plan import read_study, refuse_too_few
from dae3d.studies.results import Results, cells_csv, dumped
from dae3d.studies.running import StudyFolder, means

log = logging.getLogger(__name__)

_PARTS = 8  # of the job array that --dry-run shows


class StudySettings(Settings):
    """Settings of `study`."""

    study: Annotated[Path, Positional()] = Field(description="YAML file of the study; docs/study.md has one")
    out: Path = Field(description="folder for all runs and results; run again, the study continues there")
    jobs: int = Field(
        1, ge=1, description="runs at a time, which share the processor cores and take turns on the GPUs"
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads of each run (default: the cores divided by --jobs)"
    )
    shard: ShardText | None = Field(
        None, description="run only part i of n, as i/n from 0/n; other jobs with the same --out run the rest"
    )
    dry_run: bool = Field(False, description="say what would run, and the line for a SLURM array, and end")


@command
def study(settings: StudySettings) -> dict[str, float]:
    """Fine-tune from several initial weights with few labels, in pairs, and compare them.

    For every number of labelled cases, number of steps and label subset, each arm is fine-tuned on the same
    cases and crops, and its last weights are tested on the validation cases of the list. Writes `study.html`,
    `study.csv` and `study.json`.

    Returns:
        The mean difference of each arm from the first at the size of the primary comparison.

    Raises:
        Dae3dError: naming an invalid field of the study, or an initial weights file that was trained on test
            cases; if a run failed, after all others have ended.
    """
    plan = read_study(settings.study)
    task = read_task(plan.task, plan.finetune.get("modality"))
    refuse_too_few(plan, len(task.sides(plan.fold)[0]))
    study_folder = StudyFolder(plan, settings.out, task.split("validation", plan.fold))
    _refuse_others(settings.out)
    study_folder.refuse_seen()
    if settings.dry_run:
        return _say_what_would_run(settings, study_folder)
    make_folder(settings.out)
    pool = Pool(settings.jobs, settings.threads, _gpus())
    recipes = [study_folder.recipe_job(*run) for run in plan.recipe_runs()]
    ended = pool.run(_own(recipes, settings.shard), "pre-train")
    choosing = list(choosing_cells(plan))
    ended += pool.run(_own(_jobs(study_folder, choosing), settings.shard), "choose learning rates")
    rates = chosen_rates(plan, means(study_folder.values(choosing)))
    cells = list(compared_cells(plan, rates))
    ended += pool.run(_own(_jobs(study_folder, cells), settings.shard), "compare")
    return _written(settings, study_folder, ended)


def _written(settings: StudySettings, study_folder: StudyFolder, ended: Sequence[Result]) -> dict[str, float]:
    """Write the results as far as there are any, and say what is missing."""
    plan = study_folder.study
    choosing = list(choosing_cells(plan))
    chosen = study_folder.values(choosing)
    rates = chosen_rates(plan, means(chosen))
    cells = list(compared_cells(plan, rates))
    values = study_folder.values(cells)
    results = Results.of(plan, rates, values)
    finished = {
        cell: (mean, study_folder.seconds(cell)) for cell, mean in means({**chosen, **values}).items()
    }
    expected = len(choosing) + len(list(compared_cells(plan, dict.fromkeys(plan.arms, 1.0))))
    failed = [result for result in ended if result.ending == "failed"]
    write_text(settings.out / "study.csv", cells_csv(finished, plan.metric))
    write_text(settings.out / "study.json", dumped(results, rates, plan))
    page = StudyPage(
        plan,
        results,
        rates,
        finished,
        expected,
        tuple(failed),
        _unknown(study_folder),
        study_folder.recipes,
        _checks(study_folder),
    )
    say(page)
    log.info("page and tables: %s", write_study_page(settings.out, page))
    if failed:
        raise Dae3dError(
            f"{len(failed)} of {len(ended)} runs failed; the first: {failed[0].job.name}: "
            f"{failed[0].why}; run the same command again to repeat them"
        )
    if len(finished) < expected:
        log.info(
            "%d of %d fine-tunings are finished; others depend on other parts: run this again after them",
            len(finished),
            expected,
        )
    at = plan.primary
    return {
        row.arm: row.paired.mean
        for row in results.rows
        if row.paired and (row.train_cases, row.max_steps) == (at.train_cases, at.max_steps)
    }


def _jobs(study_folder: StudyFolder, cells: Sequence[Cell]) -> list[Job]:
    """The jobs of those cells whose initial weights are there."""
    arms = study_folder.study.arms
    return [
        study_folder.cell_job(cell) for cell in cells if study_folder.is_ready(arms[cell.arm], cell.subset)
    ]


def _own(jobs: Sequence[Job], shard: str | None) -> list[Job]:
    """The jobs of a shard."""
    part = Shard.parse(shard or "0/1")
    return list(jobs[part.number :: part.of])


def _unknown(study_folder: StudyFolder) -> tuple[str, ...]:
    """The arms whose weights do not record what they were trained on."""
    given = study_folder.given_weights()
    return tuple(name for name, init in given.items() if study_folder.unknown(init))


def _checks(study_folder: StudyFolder) -> dict[str, Check]:
    """What is known of the initial weights of each arm without fine-tuning."""
    subset = study_folder.study.subsets[0]
    inits = {
        name: study_folder.init_of(arm, subset)
        for name, arm in study_folder.study.arms.items()
        if arm.takes_weights
    }
    found = {name: read_check(Path(init)) for name, init in inits.items() if init is not None}
    return {name: check for name, check in found.items() if check is not None}


def _refuse_others(out: Path) -> None:
    refuse_a_runs_folder(out, "study")
    refuse_other_page(out / "study.html")
    refuse_other_file(out / "study.csv", "table of `study`", rb"arm,train_cases,max_steps,subset,lr,")
    refuse_other_file(out / "study.json", "result of `study`", rb'\{\n "study": ')


def _gpus() -> list[str]:
    """Identifiers of the GPUs that this process may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [part.strip() for part in given.split(",") if part.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _say_what_would_run(settings: StudySettings, study_folder: StudyFolder) -> dict[str, float]:
    plan = study_folder.study
    choosing = len(list(choosing_cells(plan)))
    compared = len(list(compared_cells(plan, dict.fromkeys(plan.arms, 1.0))))
    log.info(
        "%d pre-trainings, %d fine-tunings to choose learning rates, %d to compare",
        len(plan.recipe_runs()),
        choosing,
        compared,
    )
    words = ["dae3d", "study", str(settings.study), "--out", str(settings.out), "--jobs", str(settings.jobs)]
    line = f"{shlex.join(words)} --shard $SLURM_ARRAY_TASK_ID/{_PARTS}"
    log.info("on a cluster: sbatch --array=0-%d --wrap '%s'", _PARTS - 1, line)
    log.info("each part runs what it can; submit it again until all is finished")
    return {}
