"""Fine-tuning as a user runs it: what it learns from, takes over, leaves behind, and goes on from."""

import json
import os
import shutil
import signal
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.inferers import sliding_window_inference
from monai.metrics.meandice import compute_dice
from torch.nn.functional import one_hot

import dae3d
from conftest import labelled_case, write_task
from dae3d.errors import Dae3dError
from dae3d.store.recipe import CaseRecipe
from dae3d.training.callbacks import find_checkpoints
from dae3d.training.cases import LabelledCrops, labelled_data
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.training.finetuning import SegmentationLoss, dice_by_class
from run_rows import assert_same_run, flags, rows
from waiting import until

pytestmark = pytest.mark.slow

# One step at a learning rate of 0: the weights at the end are those at the start.
STANDING = {"max_steps": 1, "warmup_steps": 1, "warmup_lr": 0, "val_every": 100, "save_every": 1}


# What a run is


def test_a_run_leaves_what_a_user_needs(finetuned, tiny_task):
    for name in ("settings.yaml", "metrics.csv", "log.txt"):
        assert (finetuned / name).stat().st_size > 0
    assert [path.name for path in find_checkpoints(finetuned / "checkpoints")] == [
        "step-00000008.ckpt",
        "step-00000006.ckpt",
    ]
    record = json.loads((finetuned / "run.json").read_text())
    assert (record["kind"], record["step"], record["finished"]) == ("finetune", 8, True)
    assert record["cases"]["validation"] == [f"sub-{i}_T1w" for i in (5, 6, 7)]
    assert record["data"]["rows"][0] | {"voxels": 0} == {
        "modality": "t1",
        "dataset": tiny_task.stem,
        "train": 5,
        "val": 3,
        "voxels": 0,
    }
    measured = {name for step, name in rows(finetuned) if step == 8}
    assert {"val/dice", "val/dice/organ", "val/dice/lesion", "train/loss", "train/lr"} <= measured
    assert {step for step, name in rows(finetuned) if name == "val/dice"} == {4, 8}
    drawn = {path.relative_to(finetuned).as_posix() for path in (finetuned / "pictures").rglob("*.png")}
    assert drawn == {f"pictures/sub-5_T1w/{step:08d}.png" for step in (4, 8)}


def test_training_finds_the_organ(finetuned):
    metrics = rows(finetuned)
    assert metrics[8, "train/loss"] < metrics[1, "train/loss"] - 0.1
    assert metrics[8, "val/dice/organ"] > metrics[4, "val/dice/organ"]
    for step in range(1, 9):
        parts = metrics[step, "train/dice_loss"] + metrics[step, "train/cross_entropy"]
        assert metrics[step, "train/loss"] == pytest.approx(parts, abs=1e-5)


def test_the_weights_say_how_to_predict_with_them(finetuned, tiny_run):
    network = dae3d.load(finetuned, show=False)
    assert network.info["task"] == "segmentation"
    recipe = CaseRecipe.model_validate(network.info["recipe"])
    assert recipe == CaseRecipe(modalities=("t1",), labels={0: "background", 1: "organ", 4: "lesion"}, roi=32)
    assert CaseRecipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert not network.training
    assert not network.load_report.missing
    assert network(torch.rand(2, 1, 32, 32, 32)).shape == (2, 3, 32, 32, 32)
    best = max((value, step) for (step, name), value in rows(finetuned).items() if name == "val/dice")
    assert network.info["best_validation"]["step"] == best[1]
    assert network.info["best_validation"]["loss"] == pytest.approx(1 - best[0])


def test_saved_settings_run_again_to_the_same_weights(finetuned, tmp_path):
    again = dae3d.finetune(config=finetuned / "settings.yaml", out=tmp_path / "again", workers=1)
    assert_same_run(again, finetuned)


def test_a_folder_that_holds_a_run_is_not_written_over(finetuned, tiny_finetune, tiny_task):
    before = (finetuned / "metrics.csv").read_bytes()
    with pytest.raises(Dae3dError, match="--resume"):
        # Its store is its own, and nothing is prepared for a run that is not to be.
        dae3d.finetune(out=finetuned, **(tiny_finetune | {"store": None}))
    assert (finetuned / "metrics.csv").read_bytes() == before
    assert not (finetuned / "store").exists()


def test_epochs_become_steps(tiny_run, tiny_finetune, tmp_path):
    # 5 cases of 2 crops are 5 batches of 2: 3 steps of 2 batches.
    epochs = {"max_steps": "1 epoch", "val_every": "1 epoch", "warmup_steps": "2 epochs"}
    frozen = {"init": tiny_run, "freeze": "encoder", "freeze_steps": "1 epoch"}
    settings = tiny_finetune | epochs | frozen | {"crops_per_case": 2, "accumulate": 2}
    run = dae3d.finetune(out=tmp_path / "run", **settings)
    saved = yaml.safe_load((run / "settings.yaml").read_text())
    assert [saved[name] for name in ("max_steps", "val_every", "warmup_steps", "freeze_steps")] == [
        3,
        3,
        6,
        3,
    ]
    assert max(step for step, _ in rows(run)) == 3


def test_a_loss_that_is_not_finite_names_the_cases(tiny_finetune, tmp_path):
    settings = tiny_finetune | {"lr": 1e30, "max_steps": 6}
    with pytest.raises(Dae3dError, match=r"not finite at step \d[^\n]*\n  sub-\d_T1w\n"):
        dae3d.finetune(out=tmp_path / "run", **settings)


# Going on


def test_killed_between_checkpoints_it_continues_exactly(finetuned, tiny_run, tiny_finetune, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "dae3d.cli", "finetune", "--init", str(tiny_run), "--out", str(run)]
    command += flags(tiny_finetune)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: (5, "train/loss") in rows(run), process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert max(step for step, _ in rows(run)) < 8
    dae3d.finetune(out=run, resume=True, workers=2)
    assert_same_run(run, finetuned)


def cut_short(run, tmp_path):
    """A copy of a run, without its last checkpoint."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    find_checkpoints(copy / "checkpoints")[0].unlink()
    return copy


def everything(tiny_run):
    """Settings that leave no state out."""
    return {
        "init": tiny_run,
        "deep_supervision": True,
        "ema_decay": 0.5,
        "accumulate": 2,
        "freeze": "encoder",
        "freeze_steps": 4,
        "layer_decay": 0.8,
        "max_steps": 6,
    }


@pytest.fixture(scope="module")
def averaged(tiny_run, tiny_finetune, tmp_path_factory):
    """A run with averaged weights, deep supervision and an encoder that learns late."""
    out = tmp_path_factory.mktemp("averaged") / "whole"
    return dae3d.finetune(out=out, **(tiny_finetune | everything(tiny_run)))


def test_averages_schedules_and_auxiliary_heads_continue_exactly_too(averaged, tmp_path):
    run = cut_short(averaged, tmp_path)
    dae3d.finetune(out=run, resume=True)
    assert_same_run(run, averaged)


def test_a_finished_run_is_left_alone(finetuned):
    before = (finetuned / "weights/last.safetensors").read_bytes()
    dae3d.finetune(out=finetuned, resume=True)
    assert (finetuned / "weights/last.safetensors").read_bytes() == before


def test_a_run_goes_on_without_the_weights_that_it_began_with(finetuned, tmp_path):
    run = cut_short(finetuned, tmp_path)
    dae3d.finetune(out=run, resume=True, init=tmp_path / "gone.safetensors")
    assert_same_run(run, finetuned)


def test_two_processes_train_the_losses_of_one_with_the_same_global_batch(tiny_run, tiny_finetune, tmp_path):
    # Adam makes a full step of any gradient, rounding errors included: a small learning rate, then.
    settings = tiny_finetune | {"init": tiny_run, "lr": 1e-4, "max_steps": 6, "val_every": 6, "save_every": 6}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "dae3d.cli", "finetune", "--out", str(tmp_path / "two")]
    command += flags(settings | {"batch_size": 1})
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert (result.stdout + result.stderr).count("pretrain weights into a network for segmentation") == 1
    dae3d.finetune(out=tmp_path / "one", **settings)
    two, one = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert two.keys() == one.keys()
    for key in one:
        if key[1] in ("train/loss", "train/dice_loss", "train/cross_entropy"):
            assert two[key] == pytest.approx(one[key], abs=1e-5), key
    # Of three cases, one rank has two.
    for name in ("val/dice", "val/dice/organ", "val/dice/lesion"):
        assert two[6, name] == pytest.approx(one[6, name], abs=1e-3), name


# What is measured


def loss_by_hand(network, image, label):
    """Mean of Dice and cross-entropy over resolutions, of weights 1, 1/2, 1/4, 1/8."""
    with torch.no_grad():
        every = network.all_logits(image)
    losses = []
    for level, logits in enumerate(every):
        classes = label[:, 0, :: 2**level, :: 2**level, :: 2**level].long()
        share = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
        truth = one_hot(classes, 3).movedim(-1, 1)
        overlap = 2 * (share * truth).sum((2, 3, 4)) / (share + truth).sum((2, 3, 4))
        entropy = -(truth * torch.log(share)).sum(1).mean()
        losses.append(float((1 - overlap).mean() + entropy))
    return np.average(losses, weights=[1, 0.5, 0.25, 0.125][: len(losses)])


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_the_loss_is_dice_and_cross_entropy(deep_supervision, tiny_finetune, tmp_path):
    settings = tiny_finetune | STANDING | {"deep_supervision": deep_supervision, "batch_size": 4}
    run = dae3d.finetune(out=tmp_path / "run", **settings)
    network = dae3d.load(run / "weights/last.safetensors", show=False)
    asked = FinetuneSettings(**settings, out=run)
    crops = LabelledCrops(labelled_data(asked), asked)
    image, label = (torch.stack([crops[i][key] for i in range(4)]) for key in ("image", "label"))
    assert len(network.all_logits(image[:1])) == (4 if deep_supervision else 1)
    expected = loss_by_hand(network, image, label)
    assert rows(run)[1, "train/loss"] == pytest.approx(expected, abs=2e-5)


def dice_by_hand(predicted, reference, value):
    ours, theirs = predicted == value, reference == value
    return 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) if theirs.any() else np.nan


def test_dice_counts_voxels_and_is_nan_where_the_reference_lacks_the_class():
    random = np.random.default_rng(0)
    reference = random.choice([0, 1, 3], (9, 8, 7))
    predicted = random.choice([0, 1, 2], (9, 8, 7))
    found = dice_by_class(torch.from_numpy(predicted), torch.from_numpy(reference), 4).numpy()
    expected = [dice_by_hand(predicted, reference, value) for value in (1, 2, 3)]
    assert 0 < expected[0] < 1
    assert np.isnan(expected[1])
    assert expected[2] == 0
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_dice_is_that_of_monai():
    random = np.random.default_rng(1)
    # Of 60 classes, the reference lacks some, and so does the prediction.
    reference = torch.from_numpy(random.integers(0, 50, (11, 12, 13), np.uint8))
    predicted = torch.from_numpy(random.integers(10, 60, (11, 12, 13), np.uint8))
    right = torch.from_numpy(random.random((11, 12, 13)) < 0.5)
    predicted = torch.where(right, reference, predicted)
    masks = [one_hot(volume.long(), 60).movedim(-1, 0)[None] for volume in (predicted, reference)]
    expected = compute_dice(*masks, include_background=False, ignore_empty=True)[0]
    found = dice_by_class(predicted, reference, 60)
    assert found.isnan().sum() == 10
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_ignored_voxels_are_in_neither_loss():
    torch.manual_seed(0)
    label = torch.randint(0, 3, (2, 1, 4, 5, 6))
    logits = torch.randn(2, 3, 4, 5, 6, requires_grad=True)
    known = torch.rand(label.shape) < 0.7
    dice, cross_entropy = SegmentationLoss(3, ignores=True)(logits, label.where(known, 255))
    # By hand, a sample and a class at a time; 1e-5 are MONAI's constants.
    chances = logits.detach().softmax(1)
    by_class = []
    for sample in range(2):
        inside = known[sample, 0]
        for value in range(3):
            found, wanted = chances[sample, value][inside], (label[sample, 0] == value)[inside].float()
            by_class.append(1 - (2 * (found * wanted).sum() + 1e-5) / (found.sum() + wanted.sum() + 1e-5))
    torch.testing.assert_close(dice, torch.stack(by_class).mean())
    of_truth = chances.gather(1, label)[known]
    torch.testing.assert_close(cross_entropy, -of_truth.log().mean())
    (dice + cross_entropy).backward()
    assert (logits.grad[~known.expand_as(logits)] == 0).all()
    assert (logits.grad[known.expand_as(logits)] != 0).all()


def test_without_ignored_voxels_both_losses_are_the_same():
    torch.manual_seed(0)
    label, logits = torch.randint(0, 3, (2, 1, 4, 5, 6)), torch.randn(2, 3, 4, 5, 6)
    plain, masked = (SegmentationLoss(3, ignores)(logits, label) for ignores in (False, True))
    torch.testing.assert_close(masked, plain)


def test_a_crop_of_ignored_voxels_alone_has_a_finite_loss():
    label, logits = torch.full((1, 1, 4, 4, 4), 255), torch.randn(1, 3, 4, 4, 4, requires_grad=True)
    loss = sum(SegmentationLoss(3, ignores=True)(logits, label))
    loss.backward()
    assert loss.isfinite()
    assert not logits.grad.any()


def test_ignored_voxels_are_not_in_the_dice():
    reference = np.array([[[1, 1, 0, 255, 255, 2]]], np.uint8)
    predicted = np.array([[[1, 0, 0, 1, 2, 2]]], np.uint8)
    found = dice_by_class(torch.from_numpy(predicted), torch.from_numpy(reference), 3)
    torch.testing.assert_close(found, torch.tensor([2 / 3, 1.0]))


def test_a_list_with_weights_and_voxels_to_ignore_is_trained_on(tiny_task, tiny_finetune, tmp_path):
    task = json.loads(tiny_task.read_text())
    for entry in (*task["training"], *task["validation"]):
        entry |= {key: str(tiny_task.parent / entry[key]) for key in ("image", "label")}
    for number, entry in enumerate(task["training"]):
        image = nibabel.load(entry["label"])
        values = np.asarray(image.dataobj).copy()
        values[:, :, ::2] = 7
        entry["label"] = str(tmp_path / f"{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(values, image.affine), entry["label"])
        entry["weight"] = 0.5
    task["labels"]["7"] = "ignore"
    path = tmp_path / "ignoring.json"
    path.write_text(json.dumps(task))
    changes = {"data": path, "store": tmp_path / "cases", "max_steps": 4, "val_every": 2, "save_every": 2}
    run = dae3d.finetune(out=tmp_path / "run", **tiny_finetune | changes)
    metrics = rows(run)
    assert metrics[4, "train/loss"] < metrics[1, "train/loss"]
    # The network has no output for the value, and predicts like any other.
    header = dae3d.load(run, show=False).info
    assert header["recipe"]["labels"] == {"0": "background", "1": "organ", "4": "lesion"}
    [made] = dae3d.predict(scans=[task["validation"][0]["image"]], weights=[run], out=tmp_path / "predicted")
    assert set(np.unique(nibabel.load(made).dataobj)) <= {0, 1, 4}


@pytest.mark.parametrize("name", ["finetuned", "averaged"])
def test_validation_is_the_mean_dice_of_the_saved_network_over_whole_cases(name, request, tiny_task):
    run = request.getfixturevalue(name)
    network = dae3d.load(run / "weights/last.safetensors", show=False)
    each = []
    for entry in json.loads(tiny_task.read_text())["validation"]:
        image, label = (
            nibabel.load(tiny_task.parent / entry[key]).get_fdata(dtype=np.float32)
            for key in ("image", "label")
        )
        scaled = torch.from_numpy((image - image.mean()) / image.std())[None, None]
        with torch.no_grad():
            logits = sliding_window_inference(scaled, (32, 32, 32), 1, network, 0.5, "gaussian")
        classes = logits[0].argmax(0).numpy()
        each.append([dice_by_hand(np.array([0, 1, 4])[classes], label, value) for value in (1, 4)])
    assert np.isnan(each).sum() == 1
    metrics = rows(run)
    last = max(step for step, name in metrics if name == "val/dice")
    mean = np.mean([np.nanmean(case) for case in each])
    assert metrics[last, "val/dice"] == pytest.approx(mean, abs=1e-4)
    for value, name in zip(np.nanmean(each, axis=0), ("organ", "lesion"), strict=True):
        assert metrics[last, f"val/dice/{name}"] == pytest.approx(value, abs=1e-4)


# Cases that cannot be used


def with_case(folder, name, label, affine=None):
    """An entry of an ordinary image and a label of one's own."""
    image, _ = labelled_case(20 + len(name), (30, 31, 32), lesion=True)
    entry = {"image": f"{name}.nii.gz", "label": f"{name}_seg.nii.gz"}
    nibabel.Nifti1Image(image, np.eye(4)).to_filename(folder / entry["image"])
    affine = np.eye(4) if affine is None else affine
    nibabel.Nifti1Image(label.astype(np.uint8), affine).to_filename(folder / entry["label"])
    return entry


def test_all_cases_that_cannot_be_used_are_named_at_once(tiny_finetune, tmp_path):
    good = labelled_case(0, (30, 31, 32), lesion=True)[1]
    entries = [
        with_case(tmp_path, "fine", good),
        with_case(tmp_path, "other-shape", good[:, :, :30]),
        with_case(tmp_path, "moved-away", good, np.diag([1, 1, 2, 1.0])),
        with_case(tmp_path, "unknown", np.where(good == 4, 3, good)),
    ]
    task = write_task(tmp_path, "bad", training=entries)
    with pytest.raises(Dae3dError, match="3 of 4 cases") as error:
        dae3d.finetune(out=tmp_path / "run", **(tiny_finetune | {"data": task, "store": None}))
    lines = {line.split(":")[0].strip(): line for line in str(error.value).splitlines()[1:]}
    assert set(lines) == {"other-shape", "moved-away", "unknown"}
    assert "its shape is 30x31x30, not 30x31x32" in lines["other-shape"]
    assert "contains 3" in lines["unknown"]
    assert not (tmp_path / "run/settings.yaml").exists()


def test_cases_with_nothing_to_learn_or_nothing_to_measure_are_errors(tiny_finetune, tmp_path):
    good = labelled_case(0, (30, 31, 32), lesion=True)[1]
    labelled, bare = with_case(tmp_path, "fine", good), with_case(tmp_path, "empty", good * 0)
    for training, validation, which in ((bare, labelled, "training"), (labelled, bare, "validation")):
        task = write_task(tmp_path, "empty", training=[training], validation=[validation])
        settings = tiny_finetune | {"data": task, "store": tmp_path / "store"}
        with pytest.raises(Dae3dError, match=f"empty.json: none of the {which} cases has a labelled voxel"):
            dae3d.finetune(out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_more_cases_or_another_fold_than_there_are_leave_nothing_behind(tiny_finetune, tmp_path):
    for wrong in ({"train_cases": 6}, {"fold": 1}, {"data": tmp_path / "none.json"}):
        with pytest.raises(Dae3dError, match=r"has 5 training cases, not 6|no `fold`|none\.json"):
            dae3d.finetune(out=tmp_path / "run", **(tiny_finetune | wrong))
    assert not (tmp_path / "run").exists()
