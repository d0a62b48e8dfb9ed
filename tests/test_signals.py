"""Signals as terminals and queues send them: to every process of the run."""

import os
import signal
import subprocess
import sys

import pytest

import dae3d
from dae3d.metrics import read_metrics
from dae3d.training.callbacks import find_checkpoints
from waiting import until

pytestmark = pytest.mark.slow


def command_line(command, settings):
    words = [sys.executable, "-m", "dae3d.cli", command]
    for name, value in settings.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def losses(run):
    return {row[0]: row[2] for row in read_metrics(run / "metrics.csv")[0] if row[1] == "train/loss"}


@pytest.mark.parametrize(("command", "number"), [("pretrain", signal.SIGTERM), ("finetune", signal.SIGINT)])
def test_a_signal_to_all_processes_of_a_run_saves_and_ends_it(
    command, number, tiny_store, tiny_settings, tiny_finetune, tmp_path
):
    given = {"data": tiny_store, **tiny_settings} if command == "pretrain" else dict(tiny_finetune)
    run = tmp_path / "run"
    given |= {"out": run, "workers": 2, "max_steps": 5000, "val_every": 5000, "save_every": 5000}
    process = subprocess.Popen(
        command_line(command, given),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    until(lambda: 3 in losses(run), process)
    os.killpg(process.pid, number)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert output.count("stopping after") == 1  # loader processes say nothing
    stopped_at = max(losses(run))
    assert [p.name for p in find_checkpoints(run / "checkpoints")] == [f"step-{stopped_at:08d}.ckpt"]
    getattr(dae3d, command)(out=run, resume=True, max_steps=stopped_at + 2, val_every=1000, workers=0)
    assert max(losses(run)) == stopped_at + 2


def test_loader_processes_end_with_the_run_that_is_killed(tiny_store, tiny_settings, tmp_path):
    run = tmp_path / "run"
    given = {"data": tiny_store, **tiny_settings, "out": run, "workers": 2, "max_steps": 5000}
    process = subprocess.Popen(
        command_line("pretrain", given), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until(lambda: 1 in losses(run), process)
    children = [
        int(line.split()[0])
        for line in subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    ]
    assert len(children) == 2
    process.kill()
    process.wait()
    until(lambda: not any(os.path.exists(f"/proc/{child}") for child in children))
