"""Training as a user runs it: continues exactly, stops at bad losses, agrees across processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import dae3d
from dae3d.errors import Dae3dError
from dae3d.models.loading import load
from dae3d.store.examine import AS_ACQUIRED
from dae3d.training.callbacks import find_checkpoints
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.training.pretraining import Pretraining
from run_rows import assert_same_run, flags, rows
from waiting import until

pytestmark = pytest.mark.slow


def test_a_run_leaves_what_the_design_says(tiny_run):
    for name in ("settings.yaml", "metrics.csv", "run.json", "log.txt"):
        assert (tiny_run / name).stat().st_size > 0
    assert (tiny_run / "weights/best.safetensors").is_file()
    assert [p.name for p in find_checkpoints(tiny_run / "checkpoints")] == [
        "step-00000014.ckpt",
        "step-00000012.ckpt",
    ]
    pictures = {
        p.relative_to(tiny_run / "pictures").as_posix() for p in (tiny_run / "pictures").rglob("*.png")
    }
    steps = (0, 5, 10, 14)
    assert pictures == {f"{label}/{step:08d}.png" for label in ("ct", "t1") for step in steps}
    assert {step for step, name in rows(tiny_run) if name == "val/loss"} == set(steps)
    assert list((tiny_run / "tensorboard").glob("events.*"))


def test_training_lowers_the_loss(tiny_run):
    metrics = rows(tiny_run)
    assert metrics[14, "val/loss"] < metrics[5, "val/loss"] < metrics[0, "val/loss"]


def test_saved_settings_run_again_to_the_same_weights(tiny_run, tmp_path):
    again = dae3d.pretrain(config=tiny_run / "settings.yaml", out=tmp_path / "again")
    assert_same_run(again, tiny_run)


@pytest.mark.parametrize("killed_at", [7, 8])
def test_killed_between_checkpoints_or_at_one_it_continues_exactly(
    tiny_run, tiny_store, tiny_settings, tmp_path, killed_at
):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "dae3d.cli", "pretrain", "--data", str(tiny_store), "--out", str(run)]
    command += ["--max-steps", "14", *flags(tiny_settings)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: (killed_at, "train/loss") in rows(run), process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert max(step for step, _ in rows(run)) < 14

    dae3d.pretrain(out=run, resume=True, workers=2)
    assert_same_run(run, tiny_run)


def test_a_checkpoint_cut_short_falls_back_to_the_one_before(tiny_run, tiny_store, tiny_settings, tmp_path):
    run = dae3d.pretrain(data=tiny_store, out=tmp_path / "run", max_steps=14, **tiny_settings)
    newest, _ = find_checkpoints(run / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:1000])
    dae3d.pretrain(out=run, resume=True)
    assert_same_run(run, tiny_run)


def test_accumulation_and_average_of_weights_continue_exactly_too(tiny_store, tiny_settings, tmp_path):
    settings = tiny_settings | {"accumulate": 2, "ema_decay": 0.9, "data": tiny_store}
    whole = dae3d.pretrain(out=tmp_path / "whole", max_steps=8, **settings)
    part = tmp_path / "part"
    # The schedule depends on max_steps, so the run is cut by removing what came after step 4.
    dae3d.pretrain(out=part, max_steps=8, **settings)
    find_checkpoints(part / "checkpoints")[0].unlink()
    dae3d.pretrain(out=part, resume=True)
    assert_same_run(part, whole)


def test_ctrl_c_saves_and_the_run_goes_on_from_there(tiny_run, tiny_store, tiny_settings, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "dae3d.cli", "pretrain", "--data", str(tiny_store), "--out", str(run)]
    command += ["--max-steps", "14", *flags(tiny_settings | {"save_every": 100})]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while (3, "train/loss") not in rows(run):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 130
    assert "interrupted; continue with --resume" in output
    assert "Traceback" not in output
    assert 3 <= int(find_checkpoints(run / "checkpoints")[0].stem.removeprefix("step-")) < 14
    dae3d.pretrain(out=run, resume=True)
    ours, theirs = rows(run), rows(tiny_run)
    assert {key: ours[key] for key in theirs} == theirs


def test_two_processes_train_the_losses_of_one_with_the_same_global_batch(
    tiny_store, tiny_settings, tmp_path
):
    # Adam makes a full step of any gradient, rounding errors included: the published learning rate, then.
    settings = tiny_settings | {"val_every": 20, "save_every": 20, "lr": 1e-4, "warmup_steps": 10}
    settings |= {
        "contrastive_weight": 0.03,
        "contrastive_view": "clean",
        "dense_weight": 0.2,
        "feature_weight": 0.5,
        "skip_drop": 0.5,
    }
    command = ["--data", str(tiny_store), "--max-steps", "20"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    two = [
        *launcher,
        "-m",
        "dae3d.cli",
        "pretrain",
        "--out",
        str(tmp_path / "two"),
        *command,
        *flags(settings),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(two, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    dae3d.pretrain(data=tiny_store, out=tmp_path / "one", max_steps=20, **(settings | {"batch_size": 8}))
    two_rows, one_rows = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert two_rows.keys() == one_rows.keys()
    names = ("train/loss", "train/l1", "train/contrastive", "train/dense", "train/features", "val/loss")
    losses = [key for key in one_rows if key[1] in names]
    assert len(losses) == 5 * 20 + 2
    # Rounding grows with every step of Adam, and most in the contrastive loss: at 32^3 the bottleneck has one
    # voxel, whose features are normalised. A share of that loss is in the whole. The dense loss is about
    # 10, of which the last bit is 1e-6; all losses together are about 6.
    early = {"train/contrastive": 1e-4, "train/loss": 2e-5}
    late = {
        "train/l1": 1e-5,
        "train/dense": 1e-4,
        "train/features": 1e-5,
        "val/loss": 1e-5,
        "train/loss": 1e-4,
        "train/contrastive": 3e-3,
    }
    for step, name in losses:
        limit = early.get(name, 3e-6) if step <= 10 else late[name]
        assert two_rows[step, name] == pytest.approx(one_rows[step, name], abs=limit), (step, name)


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_what_is_good(tiny_store, tiny_settings, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Dae3dError, match="not finite at step") as error:
        dae3d.pretrain(
            data=tiny_store,
            out=run,
            max_steps=14,
            **(
                tiny_settings
                | {"lr": 1e30, "warmup_steps": 5, "warmup_lr": 0, "save_every": 1, "val_every": 3}
            ),
        )
    message = str(error.value)
    checkpoints = find_checkpoints(run / "checkpoints")
    assert str(checkpoints[0]) in message
    assert "sub-0" in message
    for path in [*checkpoints, run / "weights/last.safetensors"]:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, weights_only=False)["state_dict"]
        )
        assert all(torch.isfinite(tensor.float()).all() for tensor in state.values())


def test_a_folder_that_holds_a_run_is_not_written_over(tiny_run, tiny_store, tiny_settings):
    before = (tiny_run / "metrics.csv").read_bytes()
    with pytest.raises(Dae3dError, match="--resume"):
        dae3d.pretrain(data=tiny_store, out=tiny_run, max_steps=2, **tiny_settings)
    assert (tiny_run / "metrics.csv").read_bytes() == before


def test_resuming_a_finished_run_changes_nothing(tiny_run):
    before = (tiny_run / "weights/last.safetensors").read_bytes()
    dae3d.pretrain(out=tiny_run, resume=True)
    assert (tiny_run / "weights/last.safetensors").read_bytes() == before


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_frozen_half_does_not_learn(half, tiny_store, tiny_settings, tmp_path):
    torch.manual_seed(0)
    settings = tiny_settings | {"freeze": half, "val_every": 100, "max_steps": 1, "save_every": 1}
    first = dae3d.pretrain(data=tiny_store, out=tmp_path / "1", **settings)
    third = dae3d.pretrain(data=tiny_store, out=tmp_path / "3", **(settings | {"max_steps": 3}))
    one, three = (load_file(run / "weights/last.safetensors") for run in (first, third))
    for name in one:
        if name.startswith(half):
            assert torch.equal(one[name], three[name]), name
    assert any(not torch.equal(one[name], three[name]) for name in one)


@pytest.mark.parametrize("disruption", ["denoise", "superres", "local_mask", "mae"])
def test_every_disruption_trains_with_checkpointed_activations(
    disruption, tiny_store, tiny_settings, tmp_path
):
    settings = tiny_settings | {
        "disruption": disruption,
        "reconstruction_loss": "masked" if disruption == "mae" else "all",
        "checkpoint_activations": True,
        "channel_mask_per_token": True,
        "val_every": 2,
    }
    run = dae3d.pretrain(data=tiny_store, out=tmp_path / "run", max_steps=2, **settings)
    network = load(run)
    assert network.info["settings"]["disruption"] == disruption
    assert not network.load_report.missing
    assert not network.load_report.skipped


def test_masked_voxels_do_not_reach_the_network(tiny_run):
    network = load(tiny_run)
    image = torch.rand(1, 1, 32, 32, 32)
    mask = torch.zeros_like(image, dtype=torch.bool)
    mask[:, :, :16, 16:] = True
    from dae3d.disrupt import Disrupted

    outputs = []
    for fill in (0.0, 7.0):
        hidden = torch.where(mask, fill, image)
        disrupted = Disrupted(hidden.masked_fill(mask, 0), torch.zeros(1, dtype=torch.int64), voxel_mask=mask)
        outputs.append(network(disrupted.image, None, disrupted.token_mask))
    assert torch.equal(*outputs)


def test_epochs_become_steps(tiny_store, tiny_settings, tmp_path):
    # 6 training scans, batches of 4: 2 steps an epoch.
    settings = tiny_settings | {"max_steps": "2 epochs", "warmup_steps": "1 epoch", "val_every": "1 epoch"}
    run = dae3d.pretrain(data=tiny_store, out=tmp_path / "run", **settings)
    saved = yaml.safe_load((run / "settings.yaml").read_text())
    assert (saved["max_steps"], saved["warmup_steps"], saved["val_every"]) == (4, 2, 2)


def test_a_data_set_can_be_chosen_and_a_wrong_one_is_named(tiny_store, tiny_settings, tmp_path):
    with pytest.raises(Dae3dError, match=r"covid19.*it has"):
        dae3d.pretrain(data=tiny_store, out=tmp_path / "run", datasets=["covid19"], **tiny_settings)
    assert not Path(tmp_path / "run").exists()


@pytest.mark.parametrize("decay", [0.9, 0.9999])
def test_averaging_leaves_position_indices_as_they_are(tmp_path, tiny_settings, decay):
    settings = PretrainSettings(data="s", out="r", max_steps=9, ema_decay=decay, **tiny_settings)
    module = Pretraining(settings, settings.schedule(1), ["ct"], AS_ACQUIRED, tmp_path)
    for _ in range(20):
        module.average.update_parameters(module.network)
    theirs = dict(module.network.named_buffers())
    assert any(name.endswith("relative_position_index") for name in theirs)
    for name, buffer in module.evaluated.named_buffers():
        assert torch.equal(buffer, theirs[name])


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_a_processor_that_only_emulates_bfloat16_is_reported(
    tiny_store, tiny_settings, tmp_path, monkeypatch, capability
):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    settings = tiny_settings | {"data": tiny_store, "max_steps": 1, "precision": "bf16-mixed", "val_crops": 1}
    run = dae3d.pretrain(out=tmp_path / "run", **settings)
    warned = "this processor has no bfloat16" in (run / "log.txt").read_text()
    assert warned == (capability == "AVX2")
