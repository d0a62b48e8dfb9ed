"""Studies: the file and its mistakes, what runs, and the comparisons that come of it."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

import dae3d
from conftest import TINY
from dae3d.cli import main
from dae3d.commands.study import _checks
from dae3d.errors import Dae3dError, SettingsError
from dae3d.models.network import RepairNetwork
from dae3d.models.provenance import entry, kept
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.weights import read_weights, save_weights
from dae3d.reporting.study import difference_chart
from dae3d.scans.task import read_task
from dae3d.store.source import contents_of
from dae3d.studies.cells import Cell, choosing_cells, chosen_rates, compared_cells
from dae3d.studies.comparison import paired
from dae3d.studies.jobs import Job, Pool
from dae3d.studies.matched import write_matched
from dae3d.studies.plan import arm_settings, numbers, read_study, recipe_settings
from dae3d.studies.results import Results, Row
from dae3d.studies.running import StudyFolder
from dae3d.studies.self_training import flags, write_few_labelled
from dae3d.training.cases import subset
from dae3d.training.finetune_settings import FinetuneSettings
from run_rows import rows
from waiting import until

NETWORK = {name: TINY[name] for name in ("embed_dim", "heads", "depths", "window")}
FINETUNE = {**NETWORK, "roi": 32, "batch_size": 2, "workers": 0, "accelerator": "cpu", "val_overlap": 0}
PLAIN = {
    "train_cases": [2, 4],
    "subsets": "10-12",
    "max_steps": 4,
    "lr": [1e-3, 1e-2],
    "lr_subsets": [0, 1],
    "finetune": FINETUNE,
    "arms": {"scratch": {}, "fixed": {"lr": 5e-3}},
    "primary": {"arm": "fixed", "against": "scratch", "train_cases": 4, "max_steps": 4},
}


def plain(value):
    """Tuples as lists, for YAML."""
    return json.loads(json.dumps(value))


@pytest.fixture
def written(tmp_path, tiny_task):
    """Writes a study with changes, and returns its path."""

    def write(**changes):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(plain({"task": str(tiny_task), **PLAIN, **changes}), sort_keys=False))
        return path

    return write


# The file


@pytest.mark.parametrize(
    ("given", "expected"), [("10-13", [10, 11, 12, 13]), ("0,4-5", [0, 4, 5]), (7, [7]), ([1, 2], [1, 2])]
)
def test_subsets_are_written_shortly(given, expected):
    assert numbers(given) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"primary": {**PLAIN["primary"], "arm": "mae"}}, "primary: there is no arm 'mae'"),
        ({"primary": {**PLAIN["primary"], "train_cases": 3}}, "primary: train_cases 3 is not one of"),
        ({"lr_subsets": [12]}, "lr_subsets: 12 is also one of subsets"),
        ({"lr_subsets": []}, "lr_subsets: needed to choose"),
        ({"subsets": [3]}, "subsets: "),
        ({"subsets": "1-x"}, "subsets: must be numbers"),
        ({"metric": "hd95_mm"}, "metric: must be one of dice, nsd"),
        ({"arms": {"a": {}, "b": {"innit": "x"}}}, "arms.b.innit: unknown"),
        ({"arms": {"a": {}, "b/c": {}}}, "arms: names are letters"),
        ({"arms": {"scratch": {}, "fixed": {"transfer": "none"}}}, "transfer, matched: need init"),
        (
            {"arms": {"scratch": {}, "fixed": {"init": "nowhere"}}},
            "arms.fixed.init: .*nowhere does not exist",
        ),
        ({"tasks": []}, "tasks: unknown setting"),
    ],
)
def test_mistakes_are_named_before_anything_runs(written, changes, message):
    with pytest.raises(SettingsError, match=message):
        read_study(written(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune": {**FINETUNE, "lr": 1}}, "finetune.lr: is set by the study"),
        ({"finetune": {**FINETUNE, "rio": 32}}, "finetune.rio: unknown setting"),
        ({"finetune": {"config": "nothing"}}, "finetune.config: nothing is neither"),
        (
            {"train_cases": 6, "primary": {**PLAIN["primary"], "train_cases": 6}},
            "train_cases: 6 of 5 training",
        ),
        ({"pretrain": {"dae": {"max_steps": 2}}}, "pretrain.dae.data: required"),
        ({"pretrain": {"dae": {"seed": 2}}}, "pretrain.dae.seed: is set by the study"),
    ],
)
def test_settings_are_checked_before_anything_runs(written, tmp_path, changes, message):
    with pytest.raises(Dae3dError, match=message):
        dae3d.study(study=written(**changes), out=tmp_path / "out")
    assert not (tmp_path / "out" / "cells").exists()


def test_length_and_schedule_of_a_run_follow_from_the_steps(written):
    study = read_study(written(max_steps=[40, 300], primary={**PLAIN["primary"], "max_steps": 40}))
    settings = arm_settings(study, "scratch", 300)
    assert {name: settings[name] for name in ("warmup_steps", "val_every", "save_every", "log_every")} == {
        "warmup_steps": 30,
        "val_every": 600,
        "save_every": 300,
        "log_every": 10,
    }
    study = read_study(written(finetune={**FINETUNE, "warmup_steps": 3}))
    assert arm_settings(study, "scratch", 4)["warmup_steps"] == 3


@pytest.mark.parametrize("name", ["btcv", "feta"])
def test_shipped_studies_are_complete(name):
    study = read_study(Path(__file__).parents[1] / "studies" / f"{name}.yaml")
    for arm in study.arms:
        assert arm_settings(study, arm, study.max_steps[-1])["roi"]
    assert recipe_settings(study, "published")["disruption"] == "all"
    cells = [*choosing_cells(study), *compared_cells(study, dict.fromkeys(study.arms, 1.0))]
    assert len(cells) == 36 + 256


def test_a_config_may_have_settings_of_another_backbone(written, tiny_store):
    recipe = {"config": "small-cpu", "data": str(tiny_store), "backbone": "resenc", "size": "small"}
    settings = recipe_settings(read_study(written(pretrain={"dae": recipe})), "dae")
    assert settings["backbone"] == "resenc"
    assert "embed_dim" not in settings
    assert settings["lr"] == 1e-3  # of the config


# What runs


def test_rates_are_chosen_on_other_subsets_at_the_primary_size(written):
    study = read_study(written())
    cells = list(choosing_cells(study))
    assert {(cell.arm, cell.train_cases, cell.max_steps) for cell in cells} == {("scratch", 4, 4)}
    assert sorted((cell.subset, cell.lr) for cell in cells) == [(0, 1e-3), (0, 1e-2), (1, 1e-3), (1, 1e-2)]
    # 1e-3: 0.5 and 0.7; 1e-2: 0.9 and 0.4.
    values = dict(
        zip(sorted(cells, key=lambda cell: (cell.lr, cell.subset)), (0.5, 0.7, 0.9, 0.4), strict=True)
    )
    assert chosen_rates(study, values) == {"scratch": 1e-2, "fixed": 5e-3}
    del values[cells[0]]
    assert chosen_rates(study, values) == {"fixed": 5e-3}


def test_every_arm_runs_on_every_subset_the_primary_size_first(written):
    study = read_study(written())
    cells = list(compared_cells(study, {"scratch": 1e-3, "fixed": 5e-3}))
    assert len(cells) == len(set(cells)) == 2 * 3 * 2
    assert [cell.train_cases for cell in cells] == [4] * 6 + [2] * 6
    assert [(cell.subset, cell.arm) for cell in cells[:3]] == [
        (10, "scratch"),
        (10, "fixed"),
        (11, "scratch"),
    ]
    assert len({cell.name for cell in cells}) == len(cells)


def job(folder, name, prepare, finish=lambda took: None):
    return Job(name, folder / name, prepare, finish)


def test_a_failed_job_does_not_stop_the_others(tmp_path):
    finished = []

    def missing():
        raise Dae3dError("no such weights")

    jobs = [
        job(tmp_path, "wrong", lambda: [["store", "check", str(tmp_path / "none")]]),
        job(tmp_path, "missing", missing),
        job(tmp_path, "right", lambda: [["--version"]], finished.append),
        job(tmp_path, "already", lambda: None),
    ]
    results = Pool(2).run(jobs, "test")
    assert [result.ending for result in results] == ["failed", "failed", "done", "done"]
    assert f"{tmp_path / 'none'}" in results[0].why
    assert "wrong/screen.txt" in results[0].why
    assert results[1].why == "no such weights"
    assert len(finished) == 1


def test_what_another_process_runs_is_left_to_it(tmp_path):
    ended = []

    def same_again():
        ended.extend(Pool(1).run([job(tmp_path, "cell", lambda: [["--version"]])], "test"))

    Pool(1).run([job(tmp_path, "cell", same_again)], "test")
    assert [result.ending for result in ended] == ["elsewhere"]


KILLED = """
import sys
from pathlib import Path
from dae3d.studies.jobs import Job, Pool

folder, sys.executable = Path(sys.argv[1]), sys.argv[2]
Pool(1).run([Job("cell", folder / "cell", lambda: [["pretrain"]], lambda took: None)], "test")
"""


def test_what_a_killed_study_left_running_is_not_started_again(tmp_path):
    """Its command, here one that sleeps, goes on alone."""
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
    sleeper.chmod(0o755)
    study = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path, sleeper])
    if not Path(f"/proc/{study.pid}/task").is_dir():
        pytest.skip("needs /proc")
    until(lambda: descendants(study.pid), study)
    (left,) = descendants(study.pid)
    study.kill()
    study.wait()
    again = job(tmp_path, "cell", lambda: [["--version"]])
    try:
        assert [result.ending for result in Pool(1).run([again], "test")] == ["elsewhere"]
    finally:
        os.kill(left, signal.SIGKILL)
    until(lambda: [result.ending for result in Pool(1).run([again], "test")] == ["done"])


def descendants(pid):
    """Processes that a process has started, in whatever thread."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for task in tasks for word in task.read_text().split()]


def test_threads_are_divided_and_gpus_taken_in_turn(tmp_path, monkeypatch):
    monkeypatch.setattr("dae3d.studies.jobs.usable_cores", lambda: 8)
    seen = []

    class Process:
        def __init__(self, command, env, **_):
            seen.append((env["OMP_NUM_THREADS"], env["CUDA_VISIBLE_DEVICES"]))

        def wait(self):
            return 0

    monkeypatch.setattr("subprocess.Popen", Process)
    pool = Pool(4, gpus=["2", "5"])
    for slot in range(3):
        pool._call(["--version"], tmp_path / "screen.txt", slot, 0)
    assert seen == [("2", "2"), ("2", "5"), ("2", "2")]


def test_matched_weights_have_the_scales_alone(tiny_run, tmp_path):
    write_matched(tiny_run, tmp_path / "matched.safetensors", seed=3)
    theirs, ours = (read_weights(path) for path in (tiny_run, tmp_path / "matched.safetensors"))
    assert ours.architecture == theirs.architecture
    name = max(theirs.state, key=lambda each: theirs.state[each].numel())
    a, b = theirs.state[name], ours.state[name]
    count = b.numel()
    assert abs(b.mean() - a.mean()) < 5 * a.std() / math.sqrt(count)
    assert abs(b.std() / a.std() - 1) < 5 / math.sqrt(count)
    assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 5 / math.sqrt(count)


# Results


def test_only_subsets_that_both_arms_finished_are_compared(written):
    study = read_study(written())
    rates = {"scratch": 1e-3, "fixed": 5e-3}
    values = {
        cell: {"a": 0.5 + 0.1 * (cell.arm == "fixed"), "b": 0.7}
        for cell in compared_cells(study, rates)
        if not (cell.arm == "fixed" and cell.subset == 11)
    }
    results = Results.of(study, rates, values)
    assert results.primary.subsets == (10, 12)
    assert results.primary.paired.differences == pytest.approx((0.05, 0.05))
    assert results.primary.mean == pytest.approx(0.65)
    assert [(row.train_cases, row.arm) for row in results.rows] == [
        (2, "scratch"),
        (2, "fixed"),
        (4, "scratch"),
        (4, "fixed"),
    ]
    none = Results.of(study, rates, {})
    assert none.primary.paired is None
    assert Results.of(study, {"fixed": 5e-3}, {}).primary is None


def test_a_chart_puts_zero_and_every_difference_on_its_axis():
    found = paired(np.array([[0.60], [0.52], [0.58]]), np.array([[0.5], [0.5], [0.5]]))
    chart = difference_chart([Row("dae", "scratch", 4, 300, 1e-3, (1, 2, 3), 0.57, found)])
    places = dict(zip([label for _, label in chart.ticks], [x for x, _ in chart.ticks], strict=True))
    (row,) = chart.rows
    unit = (places["+0.05"] - places["0"]) / 0.05
    drawn = [(x - chart.zero) / unit for x, _ in row.dots]
    assert drawn == pytest.approx([0.1, 0.02, 0.08], abs=0.002)
    assert difference_chart([]) is None


# All of it


@pytest.fixture
def one_process(monkeypatch):
    """Commands run in this process, which saves the imports; returns what was called."""
    calls = []

    def call(self, command, screen, slot, locked):
        calls.append(command)
        return main(command)

    monkeypatch.setattr(Pool, "_call", call)
    # Training handles signals, which only the main thread can.
    monkeypatch.setattr(Pool, "run", lambda self, jobs, what: [self._run(job, 0) for job in jobs])
    return calls


SIZE = {"train_cases": 2, "max_steps": 2}
SHORT = {
    **SIZE,
    "subsets": "10-11",
    "lr": 1e-3,
    "lr_subsets": [],
    "arms": {"scratch": {}, "dae": {"init": "dae"}},
    "primary": {"arm": "dae", "against": "scratch", **SIZE},
}


@pytest.mark.slow
def test_a_study_from_pre_training_to_its_page(written, tiny_store, tmp_path, one_process, caplog):
    recipe = {**TINY, "data": str(tiny_store), "max_steps": 2, "val_every": 2, "save_every": 2}
    path, out = written(**SHORT, pretrain={"dae": recipe}), tmp_path / "out"
    found = dae3d.study(study=path, out=out)
    with (out / "study.csv").open() as file:
        cells = list(csv.DictReader(file))
    by_arm = {
        arm: [float(cell["dice"]) for cell in cells if cell["arm"] == arm] for arm in ("scratch", "dae")
    }
    assert [len(values) for values in by_arm.values()] == [2, 2]
    apart = np.array(by_arm["dae"]) - np.array(by_arm["scratch"])
    assert found == {"dae": pytest.approx(apart.mean(), abs=1e-6)}
    record = json.loads((out / "study.json").read_text())
    t = stats.t.interval(0.95, 1, apart.mean(), stats.sem(apart))
    assert record["primary"]["paired"]["t"] == pytest.approx(t, abs=1e-5)
    # Test cases are neither pre-trained on nor drawn.
    settings = yaml.safe_load((out / "pretrain/dae-seed0/settings.yaml").read_text())
    assert settings["leave_out"] == record["study"]["task"]
    page = (out / "study.html").read_text()
    assert "dae against scratch, 2 labelled cases and 2 steps" in page
    assert not list(out.rglob("*.ckpt"))[1:], "checkpoints of cells are deleted"
    runs = sorted(out.glob("cells/*/*"))
    assert len(runs) == 4
    drawn = [json.loads((run / "run/run.json").read_text())["cases"]["training"] for run in runs]
    assert drawn[0] == drawn[2] != drawn[1] == drawn[3], "the arms of a subset have the same cases"
    # Again: nothing is left to do.
    one_process.clear()
    dae3d.study(study=path, out=out)
    assert one_process == []
    # A cell that was made otherwise is not counted as this one.
    path = written(**{**SHORT, "finetune": {**FINETUNE, "batch_size": 1}}, pretrain={"dae": recipe})
    with pytest.raises(Dae3dError, match=r"4 of 5 runs failed.*was made with batch_size 2, not 1"):
        dae3d.study(study=path, out=out)


def test_weights_that_were_trained_on_test_cases_are_refused(written, tiny_task, tmp_path):
    """Pre-trained on one of the three test cases, and on a case to train on."""
    images = [tiny_task.parent / f"sub-{number}_T1w.nii.gz" for number in (0, 6)]
    architecture = SwinArchitecture(**NETWORK)
    info = {"task": "pretrain", "trained_on": entry("pretrain", map(kept, contents_of(images)), ())}
    save_weights(tmp_path / "seen.safetensors", RepairNetwork(architecture).state_dict(), architecture, info)
    sizes = {"init": "seen.safetensors", "transfer": "none"}
    arms = {"scratch": sizes, "seen": {"init": "seen.safetensors"}}
    primary = {**SHORT["primary"], "arm": "seen"}
    study = read_study(written(**{**SHORT, "arms": arms, "primary": primary}))
    study_folder = StudyFolder(study, tmp_path / "out", read_task(tiny_task).split("validation"))
    message = r"arms\.seen\.init: .*seen.safetensors was trained on 1 of 3 test cases, such as sub-6_T1w"
    with pytest.raises(Dae3dError, match=message):
        study_folder.refuse_seen()
    assert not study_folder.unknown(study.arms["seen"].init)


def test_parts_of_a_study_are_all_of_it(written, tmp_path, monkeypatch, caplog):
    ran = []

    def run(self, jobs, what):
        ran.extend(job.name for job in jobs)
        return []

    monkeypatch.setattr(Pool, "run", run)
    path = written(lr=1e-3, lr_subsets=[])
    for shard in ("0/3", "1/3", "2/3"):
        dae3d.study(study=path, out=tmp_path / "out", shard=shard)
    assert len(ran) == len(set(ran)) == 2 * 3 * 2
    with pytest.raises(SettingsError, match="shard: must be i/n"):
        dae3d.study(study=path, out=tmp_path / "out", shard="3/3")
    with caplog.at_level("INFO", "dae3d"):
        dae3d.study(study=path, out=tmp_path / "out", dry_run=True)
    assert "12 to compare" in caplog.text
    assert "sbatch --array=0-7" in caplog.text


def test_the_folder_of_something_else_is_left_alone(written, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/study.html").write_text("mine")
    with pytest.raises(Dae3dError, match=r"study\.html"):
        dae3d.study(study=written(), out=tmp_path / "out")
    assert Cell("a", 1, 2, 3, 0.1).values(tmp_path, "dice") is None


def test_random_weights_have_no_figures_of_a_check(written, tiny_run, tmp_path, monkeypatch):
    init = str(tiny_run)
    arms = {
        "scratch": {},
        "fixed": {"init": init},
        "sizes": {"init": init, "transfer": "none"},
        "matched": {"init": init, "matched": True},
    }
    folder = StudyFolder(read_study(written(arms=arms)), tmp_path / "out", [])
    monkeypatch.setattr("dae3d.commands.study.read_check", lambda run: run)
    assert _checks(folder) == {"fixed": tiny_run}


# Pseudo-labels


def test_only_the_cases_of_the_subset_have_labels(tmp_path, tiny_task):
    few = tmp_path / "few.json"
    write_few_labelled(tiny_task, None, None, 2, 11, few)
    whole, made = read_task(tiny_task), read_task(few)
    settings = FinetuneSettings(data=tiny_task, out=tmp_path, train_cases=2, seed=11)
    chosen = subset(whole.training, settings)
    assert [case.images for case in made.training] == [case.images for case in chosen]
    rest = [case.images for case in whole.training if case not in chosen]
    assert [case.images for case in made.test] == rest
    assert [case.label for case in made.test] == [None] * 3
    assert [case.label for case in made.validation] == [case.label for case in whole.validation]
    assert (made.labels, made.modalities) == (whole.labels, whole.modalities)
    assert not any(case.label.name in few.read_text() for case in whole.training if case not in chosen)


@pytest.mark.slow
@pytest.mark.parametrize("min_probability", [0, 1])
def test_an_arm_labels_what_its_subset_leaves_out(written, tmp_path, tiny_task, min_probability):
    settings = {
        "min_probability": min_probability,
        "volume_factor": 1000,
        "ignore_below": 0.4,
        "mirror": False,
    }
    study = read_study(written(arms={"scratch": {}, "fixed": {"pseudo_label": settings}}))
    folder = StudyFolder(study, tmp_path / "out", read_task(tiny_task).split("validation"))
    made = {}
    for arm in study.arms:
        cell = Cell(arm, 2, 4, 12, 0.01)
        made[arm] = tmp_path / "out" / cell.name
        made[arm].mkdir(parents=True)
        job = folder.cell_job(cell)
        for command in job.prepare():
            assert main(command) == 0
        job.finish(1.0)
        assert len(cell.values(tmp_path / "out", "dice")) == 3
    # The first fine-tuning is the run of the arm without pseudo-labels.
    assert rows(made["fixed"] / "first") == rows(made["scratch"] / "run")
    with (made["fixed"] / "pseudo/cases.csv").open(newline="") as file:
        judged = list(csv.DictReader(file))
    assert len(judged) == 3
    learned = read_task(made["fixed"] / "pseudo/task.json").training
    assert len(learned) == 2 + sum(row["kept"] == "1" for row in judged)
    assert (len(learned) > 2) == (min_probability == 0)
    record = json.loads((made["fixed"] / "run/run.json").read_text())
    assert record["cases"]["training"] == [case.name for case in learned]
    assert not list(made["fixed"].rglob("*.safetensors"))
    assert folder.cell_job(Cell("fixed", 2, 4, 12, 0.01)).prepare() is None
    other = read_study(written(arms={"scratch": {}, "fixed": {"pseudo_label": {}}}))
    with pytest.raises(Dae3dError, match="was made with pseudo_label"):
        StudyFolder(other, tmp_path / "out", folder.tested).cell_job(Cell("fixed", 2, 4, 12, 0.01)).prepare()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1}, r"arms\.fixed\.pseudo_label\.weight"),
        ({"out": "x"}, r"arms\.fixed\.pseudo_label\.out: is set by the study"),
        ({"wait": 1}, r"arms\.fixed\.pseudo_label\.wait: unknown setting"),
    ],
)
def test_mistakes_in_pseudo_label_are_named(written, tmp_path, settings, message):
    path = written(arms={"scratch": {}, "fixed": {"pseudo_label": settings}})
    with pytest.raises(Dae3dError, match=message):
        dae3d.study(study=path, out=tmp_path)


def test_settings_as_words():
    given = {"ignore_below": 0.5, "mirror": True, "mirror_axes": ["lr", "ap"], "quiet": False}
    expected = ["--ignore-below", "0.5", "--mirror", "--mirror-axes", "lr", "ap", "--no-quiet"]
    assert flags(given) == expected
