"""What processes send each other in a step, and how they end together."""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dae3d.benchmarking.communication import learning_parameters, step_traffic
from dae3d.metrics import read_metrics
from dae3d.store.examine import AS_ACQUIRED
from dae3d.training.callbacks import find_checkpoints
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.training.pretraining import Pretraining
from waiting import until

pytestmark = pytest.mark.slow

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def script(name):
    path = Path(__file__).resolve().parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_a_step_sends_gradients_and_features_and_nothing_else(tiny_store, tmp_path):
    scaling = script("scaling")
    sizes = argparse.Namespace(store=tiny_store, embed_dim=12, batch_size=2, roi=32, steps=2 * scaling.ROW)
    (found,) = scaling.run(sizes, [str(tmp_path / "run")], ranks=2, what="count")
    step = scaling.a_step(found)
    # Parameters of the small network as configs/pretrain/small-cpu.yaml says, less the mask token.
    settings = scaling.resolve(PretrainSettings, scaling.settings_of(sizes, "none"))
    module = Pretraining(settings, settings.schedule(1), ["ct", "t1"], AS_ACQUIRED, tmp_path)
    gradients = 4 * sum(p.numel() for p in module.parameters() if p.requires_grad)
    # One step in five has a row of metrics: 7 sums, 2 of each of 2 modalities, and whether to stop (int64).
    assert step["allreduce"]["bytes"] == pytest.approx(gradients + (4 * (7 + 2 * 2) + 8) / 5, abs=0.01)
    # 2 samples of 16 x 12 features and a label.
    assert step["allgather"] == {"calls": 1, "bytes": 2 * (192 + 1) * 4}
    # Lightning's, before each of the two sums of a row.
    assert step["barrier"]["calls"] == pytest.approx(2 / 5)
    assert step.keys() == {"allreduce", "allgather", "barrier"}


@pytest.mark.parametrize(
    "changed",
    [
        {"dense_weight": 0.1},
        {"dense_weight": 0.0},
        {"feature_weight": 0.0},
        {"roi": 64},
        {"disruption": "mae"},
        {"disruption": "all", "repair_from": "full"},
        {"freeze": "encoder"},
        {"freeze": "decoder"},
    ],
)
def test_parameters_that_learn_are_counted(changed, tiny_settings, tmp_path):
    settings = PretrainSettings(data="s", out="r", max_steps=9, **(tiny_settings | changed))
    module = Pretraining(settings, settings.schedule(1), ["ct"], AS_ACQUIRED, tmp_path)
    learning = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert learning_parameters(settings) == learning


def test_bytes_sent_by_ring_algorithms():
    published = PretrainSettings.earlier | {"disruption": "all", "batch_size": 2}
    traffic = step_traffic(PretrainSettings(data="s", out="r", **published), modalities=1)
    # Of 8 ranks each sends 7/8 twice of what is summed, and what it gives to a gather to 7 others.
    once = 2 * 7 / 8 * (traffic.gradients + (4 * 7 + 8) / 10) + 7 * 2 * (16 * 48 + 1) * 4
    assert traffic.sent(8, 10) == pytest.approx(once)
    assert traffic.sent(1, 10) == 0
    # 62 million parameters.
    assert 240e6 < traffic.gradients < 255e6


def test_gradients_that_are_ready_early_are_sent_while_others_are_computed():
    model = script("scaling_model")
    cluster = model.Cluster("", between=1e9, within=1e9, used=1, hop_within=0, hop_between=0)
    # 1e8 bytes take 2 x 7/8 x 0.1 s.
    assert model.exposed([(0.5, 1e8)], cluster, 8, backward=1.0) == 0
    assert model.exposed([(0.5, 1e8), (1.0, 1e8)], cluster, 8, backward=1.0) == pytest.approx(0.175)
    assert model.exposed([(0.9, 1e8), (1.0, 1e8)], cluster, 8, backward=1.0) == pytest.approx(0.25)


def test_two_processes_that_a_launcher_ends_save_first(tiny_store, tiny_settings, tmp_path):
    run = tmp_path / "run"
    flags = []
    for name, value in (tiny_settings | {"save_every": 1000, "val_every": 1000, "max_steps": 1000}).items():
        values = value if isinstance(value, tuple) else (value,)
        flags += [f"--{name.replace('_', '-')}", *map(str, values)]
    process = subprocess.Popen(
        [*TORCHRUN, "-m", "dae3d.cli", "pretrain", "--data", str(tiny_store), "--out", str(run), *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def third_step() -> bool:
        recorded = read_metrics(run / "metrics.csv")[0]
        return any(step >= 3 for step, name, _ in recorded if name == "train/l1")

    until(third_step, process)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=600)
    (checkpoint,) = find_checkpoints(run / "checkpoints")
    assert 3 <= int(checkpoint.stem.removeprefix("step-")) < 1000
