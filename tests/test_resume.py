"""A resumed run trains with what it records; what it cannot go on with is refused, and nothing is lost."""

import io
import json
import logging
import math
import os
import pickle
import shutil
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.serialization import get_unsafe_globals_in_checkpoint

import dae3d
from conftest import write_task
from dae3d.errors import Dae3dError
from dae3d.training.callbacks import Progress, find_checkpoints
from dae3d.training.pretraining import Pretraining
from run_rows import rows

pytestmark = pytest.mark.slow


def copied(run, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(run, tmp_path / "run")


def contents(folder):
    """Every file, with its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checkpoint(run, step):
    return torch.load(run / f"checkpoints/step-{step:08d}.ckpt", weights_only=True)


# Settings given again


def test_new_rates_and_decay_are_those_of_the_next_step_and_of_the_record(finetuned, tmp_path):
    # The run ended at a rate of 0. Its next step is step 8 of 10, counted from 0; the warm-up took two.
    run = copied(finetuned, tmp_path)
    new = {"lr": 1e-3, "weight_decay": 0.5, "max_steps": 10, "save_every": 1, "keep": 9}
    dae3d.finetune(out=run, resume=True, **new)
    lr = 1e-3 * 0.5 * (1 + math.cos(math.pi * 6 / 8))
    assert rows(run)[9, "train/lr"] == pytest.approx(lr)
    saved = yaml.safe_load((run / "settings.yaml").read_text())
    assert {name: saved[name] for name in new} == new

    # AdamW (arXiv 1711.05101) by hand, from the moments after the step, of parameters known by their shape.
    before, after = checkpoint(run, 8), checkpoint(run, 9)
    shapes = [tensor.shape for tensor in before["state_dict"].values()]
    names = {tensor.shape: name for name, tensor in before["state_dict"].items()}
    optimizer, checked, moved = after["optimizer_states"][0], 0, 0.0
    for group, decay in zip(optimizer["param_groups"], (0.5, 0.0), strict=True):
        for moments in (optimizer["state"][number] for number in group["params"]):
            shape = moments["exp_avg"].shape
            if shapes.count(shape) > 1:
                continue
            assert moments["step"] == 9
            mean = moments["exp_avg"] / (1 - 0.9**9)
            deviation = (moments["exp_avg_sq"] / (1 - 0.999**9)).sqrt()
            old, new_ = (saved["state_dict"][names[shape]] for saved in (before, after))
            expected = old * (1 - lr * decay) - lr * mean / (deviation + 1e-8)
            torch.testing.assert_close(new_, expected, rtol=1e-5, atol=1e-7)
            checked, moved = checked + 1, max(moved, float((new_ - old).abs().max()))
    assert checked >= 5
    assert moved > lr / 10


def test_batches_are_counted_anew_where_accumulation_changes(tiny_finetune, tmp_path):
    settings = tiny_finetune | {"batch_size": 4, "max_steps": 5, "val_every": 2, "save_every": 3, "keep": 9}
    whole = dae3d.finetune(out=tmp_path / "whole", **settings)
    run = copied(whole, tmp_path)
    find_checkpoints(run / "checkpoints")[0].unlink()
    dae3d.finetune(out=run, resume=True, batch_size=2, accumulate=2)
    ours, theirs = rows(run), rows(whole)
    assert ours.keys() == theirs.keys()
    names = ("train/loss", "val/dice", "train/lr")
    for key in (key for key in theirs if key[1] in names):
        assert ours[key] == pytest.approx(theirs[key], abs=2e-3), key
    assert [p.name for p in find_checkpoints(run / "checkpoints")] == [
        p.name for p in find_checkpoints(whole / "checkpoints")
    ]


def test_the_advice_about_a_loss_that_is_not_finite_works(tiny_store, tiny_settings, tmp_path):
    # The second step is ruinous: step 3 begins with the weights of checkpoint 2.
    settings = tiny_settings | {"lr": 1e30, "warmup_steps": 5, "warmup_lr": 0, "save_every": 1, "keep": 9}
    run = tmp_path / "run"
    with pytest.raises(Dae3dError, match=r"step-00000002\.ckpt.*holds the weights before this very step"):
        dae3d.pretrain(data=tiny_store, out=run, max_steps=4, **settings)
    (run / "checkpoints/step-00000002.ckpt").unlink()
    dae3d.pretrain(out=run, resume=True, lr=1e-3)
    losses = {step: value for (step, name), value in rows(run).items() if name == "train/loss"}
    assert sorted(losses) == [1, 2, 3, 4]
    assert all(math.isfinite(loss) for loss in losses.values())
    assert rows(run)[2, "train/lr"] == pytest.approx(1e-3 / 5)


def test_settings_of_the_beginning_stay_as_they_were(finetuned, tiny_run, tmp_path, caplog):
    run = copied(finetuned, tmp_path)
    find_checkpoints(run / "checkpoints")[0].unlink()
    with caplog.at_level(logging.INFO):
        dae3d.finetune(out=run, resume=True, init=tmp_path / "other.safetensors")
    assert "init: ignored" in caplog.text
    assert yaml.safe_load((run / "settings.yaml").read_text())["init"] == str(tiny_run)
    assert json.loads((run / "run.json").read_text())["init"] == str(tiny_run)


# What a run keeps


@pytest.mark.parametrize(
    "change",
    [
        {"embed_dim": 8},
        {"depths": (2, 1, 1, 1)},
        {"patch_merging": "reference"},
        {"deep_supervision": True},
        {"ema_decay": 0.9},
        {"layer_decay": 0.8},
        {"freeze": "encoder"},
    ],
)
def test_fine_tuning_cannot_go_on_with_another_network(change, finetuned):
    before = contents(finetuned)
    [name] = change
    with pytest.raises(Dae3dError, match=f"^{name}: the run in .* was started with"):
        dae3d.finetune(out=finetuned, resume=True, max_steps=20, **change)
    assert contents(finetuned) == before


@pytest.mark.parametrize(
    "change",
    [
        {"heads": (1, 1, 1, 1)},
        {"window": 3},
        {"restore_intensity": False},
        {"normalise_skips": False},
        {"disruption": "denoise"},  # without masked blocks, and so without a mask token
        {"freeze": "decoder"},
        {"ema_decay": 0.9},
    ],
)
def test_pre_training_cannot_go_on_with_another_network(change, tiny_run):
    before = contents(tiny_run)
    [name] = change
    with pytest.raises(Dae3dError, match=f"^{name}: the run in .* was started with"):
        dae3d.pretrain(out=tiny_run, resume=True, max_steps=20, **change)
    assert contents(tiny_run) == before


@pytest.mark.parametrize("of_old", [False, True])
def test_a_list_with_another_class_is_refused_before_anything_is_written(
    of_old, finetuned, tiny_task, tmp_path
):
    run = copied(finetuned, tmp_path)
    if of_old:  # checkpoints did not always say what their network is
        for path in find_checkpoints(run / "checkpoints"):
            older = torch.load(path, weights_only=True)
            del older["header"]
            torch.save(older, path)
    listed = json.loads(tiny_task.read_text())
    for entry in (*listed["training"], *listed["validation"]):
        entry |= {key: str(tiny_task.parent / entry[key]) for key in ("image", "label")}
    task = write_task(tmp_path, "more", training=listed["training"], validation=listed["validation"])
    content = json.loads(task.read_text())
    content["labels"]["5"] = "vessel"
    task.write_text(json.dumps(content))
    before = contents(run)
    reason = (
        r"the run cannot be resumed from .*tensor network.* is .* in the checkpoint and .* in this"
        if of_old
        else "its label values are 0, 1, 4, 5, but the run in .* was started with 0, 1, 4;"
    )
    store = tmp_path / "store"
    with pytest.raises(Dae3dError, match=rf"more\.json: {reason}"):
        dae3d.finetune(out=run, resume=True, data=task, store=store, max_steps=20)
    assert store.exists() == of_old
    assert contents(run) == before


def test_a_run_of_another_command_is_named(tiny_run):
    with pytest.raises(Dae3dError, match=r"settings\.yaml is of another command or .* it has .*disruption"):
        dae3d.finetune(out=tiny_run, resume=True)


# Checkpoints


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def trapped(path, folder):
    contents_ = torch.load(path, weights_only=True)
    torch.save({**contents_, "callbacks": Trap(folder)}, path)


def bare(path, folder):
    path.write_bytes(pickle.dumps(Trap(folder), protocol=2))


@pytest.mark.parametrize(("make", "named"), [(trapped, "mkdir"), (bare, "a pickle")])
def test_a_checkpoint_with_code_in_it_is_refused_and_never_run(make, named, tiny_run, tmp_path):
    run = copied(tiny_run, tmp_path)
    newest, _ = find_checkpoints(run / "checkpoints")
    make(newest, tmp_path / "sprung")
    before = contents(run)
    for _ in range(2):
        with pytest.raises(Dae3dError, match=rf"{newest.name}: not loaded.*{named}"):
            dae3d.pretrain(out=run, resume=True, max_steps=20)
    assert not (tmp_path / "sprung").exists()
    assert contents(run) == before


def test_our_checkpoints_are_tensors_and_plain_data(tiny_run, finetuned):
    for path in [p for run in (tiny_run, finetuned) for p in find_checkpoints(run / "checkpoints")]:
        assert get_unsafe_globals_in_checkpoint(path) == []
        assert checkpoint(path.parents[1], int(path.stem[5:]))["global_step"] == int(path.stem[5:])


def other_file():
    """What another program saved with PyTorch."""
    file = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, file)
    return file.getvalue()


@pytest.mark.parametrize("damage", [b"", bytes(3000), b"PK\x03\x04" + bytes(3000), other_file()])
def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(damage, tiny_run, tmp_path, caplog):
    run = copied(tiny_run, tmp_path)
    for path in find_checkpoints(run / "checkpoints"):
        path.write_bytes(damage)
    before = contents(run)
    with pytest.raises(Dae3dError, match=r"none of the checkpoints in .* can be read"):
        dae3d.pretrain(out=run, resume=True)
    assert caplog.text.count("cannot be read (") == 2
    assert contents(run) == before


def test_new_checkpoints_are_kept_beside_a_damaged_one_of_a_later_step(tiny_run, tmp_path):
    run = copied(tiny_run, tmp_path)
    newest, _ = find_checkpoints(run / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:1000])
    dae3d.pretrain(out=run, resume=True, max_steps=13, keep=1)
    assert [p.name for p in find_checkpoints(run / "checkpoints")] == [newest.name, "step-00000013.ckpt"]


# Folders


@pytest.mark.parametrize("left", ["weights", "settings.yaml", "run.json", "metrics.csv"])
def test_a_run_that_was_tidied_up_is_not_written_over(left, tiny_run, tiny_store, tiny_settings, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    copy = shutil.copytree if left == "weights" else shutil.copyfile
    copy(tiny_run / left, run / left)
    before = contents(run)
    with pytest.raises(Dae3dError, match=rf"holds a run \({left}.*name another folder"):
        dae3d.pretrain(data=tiny_store, out=run, max_steps=2, **tiny_settings)
    if left in ("weights", "run.json"):
        with pytest.raises(Dae3dError, match="whose checkpoints are gone"):
            dae3d.pretrain(data=tiny_store, out=run, max_steps=2, resume=True, **tiny_settings)
    assert contents(run) == before


def test_results_do_not_replace_those_of_a_run_or_of_other_scans(tiny_run, tiny_store, tmp_path):
    scans = sorted(tiny_store.parent.glob("*_T1w.nii.gz"))
    before = contents(tiny_run)
    with pytest.raises(Dae3dError, match=r"folder of a run.*reconstructions"):
        dae3d.reconstruct(scans=scans, weights=tiny_run, out=tiny_run)
    with pytest.raises(Dae3dError, match="is not a report"):
        dae3d.report(run=tiny_run, out=tiny_run / "weights/last.safetensors")
    assert contents(tiny_run) == before
    table = f"scan,modality,image,l1,psnr,ssim\n{scans[0]},t1,repaired,0.1,20,0.9\n"
    (tmp_path / "metrics.csv").write_text(table)
    with pytest.raises(Dae3dError, match="would be overwritten"):
        dae3d.reconstruct(scans=scans[1:], weights=tiny_run, out=tmp_path)
    beside = tmp_path / "clean" / "clean.nii.gz"
    beside.parent.mkdir()
    shutil.copyfile(scans[0], beside)
    (tmp_path / "metrics.csv").unlink()
    with pytest.raises(Dae3dError, match="would be written beside it"):
        dae3d.reconstruct(scans=[beside], weights=tiny_run, out=tmp_path, modality="t1")


def test_resuming_where_there_is_no_run_says_so(tiny_store, tiny_settings, tmp_path, caplog):
    with pytest.raises(Dae3dError, match=r"has no settings\.yaml of a run"):
        dae3d.pretrain(out=tmp_path / "typing-error", resume=True)
    assert not (tmp_path / "typing-error").exists()
    with caplog.at_level(logging.INFO):
        settings = tiny_settings | {"warmup_steps": 1}
        dae3d.pretrain(data=tiny_store, out=tmp_path / "run", max_steps=1, resume=True, **settings)
    assert f"no checkpoint in {tmp_path / 'run'} to resume from: starting at step 0" in caplog.text


# Ctrl-C, and the progress bar


@pytest.mark.parametrize(
    ("where", "first", "said"),
    [
        ("validation_step", 0, "nothing was saved yet to resume from"),
        ("training_step", 2, "nothing was saved yet to resume from"),
        ("training_step", 4, "continue with --resume, from step 4"),
    ],
)
def test_an_interrupted_run_says_what_there_is_to_resume(
    where, first, said, tiny_store, tiny_settings, tmp_path, monkeypatch
):
    usual, before = getattr(Pretraining, where), signal.getsignal(signal.SIGINT)

    def pressed(module, *arguments):
        if module.global_step >= first:
            raise KeyboardInterrupt
        return usual(module, *arguments)

    monkeypatch.setattr(Pretraining, where, pressed)
    with pytest.raises(KeyboardInterrupt, match=said):
        dae3d.pretrain(data=tiny_store, out=tmp_path / "run", max_steps=14, **tiny_settings)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_progress_bar_of_a_resumed_run_counts_its_own_steps(tiny_run, tmp_path, monkeypatch):
    run, bars = copied(tiny_run, tmp_path), []
    find_checkpoints(run / "checkpoints")[0].unlink()
    ended = Progress.on_train_end

    def seen(progress, *arguments):
        bars.append(progress.train_progress_bar)
        ended(progress, *arguments)

    monkeypatch.setattr(Progress, "on_train_end", seen)
    dae3d.pretrain(out=run, resume=True)
    [bar] = bars
    # tqdm's rate is (n - initial) / seconds.
    assert (bar.initial, bar.n, bar.total, bar.desc) == (12, 14, 14, "pretrain: ")
    assert load_file(run / "weights/last.safetensors")
