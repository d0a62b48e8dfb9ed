"""Checkpoints are written while training goes on, and are as safe as if it waited."""

import resource
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

import dae3d
from dae3d.errors import Dae3dError
from dae3d.metrics import read_metrics
from dae3d.training.background import Background, on_cpu
from dae3d.training.callbacks import find_checkpoints
from run_rows import assert_same_run
from waiting import until

pytestmark = pytest.mark.slow


def without_the_end(run, tmp_path):
    """A copy of a run of 14 steps that has come to its checkpoint of step 12."""
    copied = shutil.copytree(run, tmp_path / "run")
    find_checkpoints(copied / "checkpoints")[0].unlink()
    return copied


def test_jobs_run_one_at_a_time_and_none_is_waited_for():
    background, go_on, done = Background(), threading.Event(), []
    background.start(lambda: (go_on.wait(600), done.append(1)))
    background.check()
    assert not done
    threading.Timer(0.1, go_on.set).start()
    background.start(lambda: done.append(2))
    assert done[0] == 1
    background.wait()
    assert done == [1, 2]


def test_what_a_job_raises_is_raised_once():
    def fail():
        raise Dae3dError("no room")

    background = Background()
    background.start(fail)
    with pytest.raises(Dae3dError, match="no room"):
        background.start(fail)
    background.start(fail)
    with pytest.raises(Dae3dError, match="no room"):
        until(background.check)  # never true: only the job's error ends it
    background.wait()


def test_a_copy_does_not_change_with_what_it_is_of():
    network = nn.Conv3d(2, 4, 3).to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    network(torch.ones(1, 2, 3, 3, 3)).sum().backward()
    optimizer.step()
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "best": {"steps": [1]}}
    before = network.weight.detach().clone()
    copied = on_cpu(state)
    optimizer.step()
    state["best"]["steps"].append(2)
    assert torch.equal(copied["network"]["weight"], before)
    assert not torch.equal(network.weight, before)
    assert copied["network"]["weight"].is_contiguous(memory_format=torch.channels_last_3d)
    assert copied["network"]._metadata == state["network"]._metadata
    assert [float(s["step"]) for s in copied["optimizer"]["state"].values()] == [1, 1]
    assert copied["best"] == {"steps": [1]}


def test_training_goes_on_while_a_checkpoint_is_written(
    tiny_store, tiny_settings, tiny_run, tmp_path, monkeypatch
):
    run, save, seen = tmp_path / "run", torch.save, []

    def wait_for_the_next_step(checkpoint, path):
        step = checkpoint["global_step"]
        if step < 12:
            until(lambda: max(row[0] for row in read_metrics(run / "metrics.csv")[0]) > step)
            seen.append(step)
        save(checkpoint, path)

    monkeypatch.setattr(torch, "save", wait_for_the_next_step)
    dae3d.pretrain(data=tiny_store, out=run, max_steps=14, **tiny_settings)
    assert seen == [4, 8]
    assert_same_run(run, tiny_run)


def test_a_disk_that_is_full_ends_the_run_and_costs_no_checkpoint(tiny_run, tmp_path):
    run = without_the_end(tiny_run, tmp_path)
    [last] = find_checkpoints(run / "checkpoints")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (last.stat().st_size * 3 // 4, limits[1]))
    try:
        with pytest.raises(Dae3dError, match="cannot be written"):
            dae3d.pretrain(out=run, resume=True, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (run / "checkpoints").iterdir()] == [last.name]
    dae3d.pretrain(out=run, resume=True, keep=2)
    assert_same_run(run, tiny_run)


KILLED_WHILE_WRITING = """
import signal, sys, time, torch, dae3d
def half(checkpoint, path):
    path.write_bytes(b"PK")
    print("writing", flush=True)
    time.sleep(600)
torch.save = half
dae3d.pretrain(out=sys.argv[1], resume=True)
"""


def test_killed_while_writing_it_continues_and_leaves_no_litter(tiny_run, tmp_path):
    run = without_the_end(tiny_run, tmp_path)
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while process.stdout.readline() != "writing\n":
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list((run / "checkpoints").iterdir())) == 2
    dae3d.pretrain(out=run, resume=True)
    assert_same_run(run, tiny_run)
    assert len(find_checkpoints(run / "checkpoints")) == len(list((run / "checkpoints").iterdir())) == 2


def test_a_checkpoint_of_another_optimiser_implementation_is_gone_on_from(tiny_run, tmp_path):
    run = without_the_end(tiny_run, tmp_path)
    [path] = find_checkpoints(run / "checkpoints")
    checkpoint = torch.load(path, weights_only=False)
    for group in checkpoint["optimizer_states"][0]["param_groups"]:
        assert group["fused"] is True
        group["fused"] = None
    torch.save(checkpoint, path)
    dae3d.pretrain(out=run, resume=True)
    assert_same_run(run, tiny_run)
