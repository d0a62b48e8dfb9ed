"""Probing within `pretrain`: it changes nothing of the training, and its rows are those of `check`."""

import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import dae3d
from dae3d.errors import SettingsError
from dae3d.metrics import read_metrics
from dae3d.models.network import RepairNetwork
from dae3d.probing.probe import probe_of_run
from dae3d.store.examine import AS_ACQUIRED
from dae3d.training.callbacks import find_checkpoints
from dae3d.training.data import training_data
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.training.pretraining import Pretraining

pytestmark = pytest.mark.slow

MEASURED_TIME = "train/samples_per_second"
LEVELS = [f"level{number}" for number in range(5)]


def rows(run, probes):
    found = read_metrics(run / "metrics.csv")[0]
    return {
        (step, name): value
        for step, name, value in found
        if name.startswith("probe/") == probes and name != MEASURED_TIME
    }


def assert_same_weights(run, other):
    for name in ("last", "best"):
        ours, theirs = (load_file(r / "weights" / f"{name}.safetensors") for r in (run, other))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.fixture(scope="module")
def probed(tiny_store, tiny_task, tiny_settings, tmp_path_factory):
    """The run of `tiny_run`, probed every 7 steps."""
    return dae3d.pretrain(
        data=tiny_store,
        out=tmp_path_factory.mktemp("probed") / "run",
        max_steps=14,
        probe_every=7,
        probe_task=tiny_task,
        **tiny_settings,
    )


def test_losses_and_weights_are_those_of_a_run_that_is_not_probed(probed, tiny_run):
    assert rows(probed, probes=False) == rows(tiny_run, probes=False)
    assert_same_weights(probed, tiny_run)


def test_there_are_rows_of_every_figure_at_the_start_and_every_so_many_steps(probed):
    found = rows(probed, probes=True)
    names = {
        *(f"probe/share/{name}" for name in [*LEVELS, "all"]),
        *(f"probe/rank/{name}" for name in LEVELS),
        *(f"probe/dice/{name}" for name in [*LEVELS, "all"]),
        *(f"probe/cosine/{name}" for name in ("any", "within", "between", "scan", "subjects")),
        "probe/nearest",
    }
    assert found.keys() == {(step, name) for step in (0, 7, 14) for name in names}
    # Training moves them.
    assert found[0, "probe/share/all"] != found[14, "probe/share/all"]


def test_a_resumed_run_has_the_rows_of_an_uninterrupted_one(probed, tmp_path):
    run = shutil.copytree(probed, tmp_path / "run")
    find_checkpoints(run / "checkpoints")[0].unlink()
    dae3d.pretrain(out=run, resume=True)
    for probes in (True, False):
        assert rows(run, probes) == rows(probed, probes)
    assert_same_weights(run, probed)


def test_an_average_of_weights_is_probed_and_stays_as_it_is(tiny_store, tiny_settings, tmp_path):
    settings = tiny_settings | {
        "data": tiny_store,
        "ema_decay": 0.9,
        "max_steps": 4,
        "precision": "bf16-mixed",
    }
    plain = dae3d.pretrain(out=tmp_path / "plain", **settings)
    probed = dae3d.pretrain(out=tmp_path / "probed", probe_every=2, **settings)
    assert rows(probed, probes=False) == rows(plain, probes=False)
    assert_same_weights(probed, plain)
    assert {step for step, _ in rows(probed, probes=True)} == {0, 2, 4}


def test_check_finds_what_the_last_probe_found(tiny_store, tiny_task, tiny_settings, tmp_path):
    settings = tiny_settings | {"save_every": 4, "max_steps": 4, "probe_every": 4, "probe_task": tiny_task}
    run = dae3d.pretrain(data=tiny_store, out=tmp_path / "run", **settings)
    found = dae3d.check(run=run, data=tiny_task, weights="last", device="cpu")
    ours = {(4, name): value for name, value in found.figures.rows().items()}
    theirs = {key: value for key, value in rows(run, probes=True).items() if key[0] == 4}
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    # The first random network is the one that the run began with.
    start = rows(run, probes=True)
    assert found.random.keys() == {name.removeprefix("probe/dice/") for step, name in start if "dice" in name}


def test_a_probe_draws_no_random_number_and_changes_no_weight(tiny_store, tiny_task, tiny_settings, tmp_path):
    settings = PretrainSettings(
        data=tiny_store, out=tmp_path / "run", probe_every=1, probe_task=tiny_task, **tiny_settings
    )
    probe = probe_of_run(settings, training_data(settings, 1))
    network = RepairNetwork(settings.architecture())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    assert probe(network, torch.device("cpu"))["probe/dice/all"] > 0
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_time_of_a_probe_is_not_training(tmp_path, monkeypatch):
    settings = PretrainSettings(data=tmp_path, out=tmp_path)
    module = Pretraining(settings, settings.schedule(1), ["ct"], AS_ACQUIRED, tmp_path)
    clock = iter([100.0, 103.5])
    monkeypatch.setattr("dae3d.training.module.time.monotonic", lambda: next(clock))
    with module.not_training():
        pass
    assert module._validation_seconds == 3.5


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"probe_every": 5, "strategy": "fsdp"}, "probe_every: not with strategy fsdp"),
        ({"probe_task": "task.json"}, "probe_task: has no effect"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(fields, said):
    with pytest.raises(SettingsError, match=said):
        dae3d.pretrain(data="store", out="run", **fields)


def test_intervals_in_epochs_are_taken_as_steps():
    settings = PretrainSettings(data="store", out="run", probe_every="2 epochs")
    assert settings.schedule(7).probe_every == 14
