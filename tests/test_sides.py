"""Left and right: which classes tell them apart, and that nothing exchanges them unasked."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml

import dae3d
from conftest import labelled_case
from dae3d.commands import predict as module
from dae3d.errors import Dae3dError
from dae3d.inference.ensemble import Ensemble, load_ensemble
from dae3d.models.weights import read_weights
from dae3d.scans.sides import sided
from dae3d.store.recipe import CaseRecipe
from dae3d.training.augment import Augmentation, with_flip_axes
from dae3d.training.finetune_settings import FinetuneSettings
from scan_files import write_nifti

SIDED = ("background", "left kidney", "right kidney")
PLAIN = ("background", "organ", "lesion")
KIDNEYS = CaseRecipe(modalities=("ct",), labels=dict(enumerate(SIDED)), roi=32)


@pytest.mark.parametrize(
    "names",
    [
        ["left kidney", "Left-Hippocampus", "RightLung", "lung_upper_lobe_left", "rightkidney"],
        ["ctx-lh-insula", "rh.amygdala"],
        ["Niere links", "rechter Ventrikel", "linke Niere"],
        ["rein gauche", "poumon droit", "surrénale droite"],
        ["riñón izquierdo", "rinon izq", "pulmón derecho", "rim esquerdo", "rene sinistro"],
        ["kidney_l", "kidney_r"],
        ["L kidney", "R kidney"],
        ["HippocampusL", "HippocampusR"],
        ["Niere li", "Niere re"],
        ["левая почка", "右肾"],
    ],
)
def test_names_that_tell_sides(names):
    assert sided(["background", *names, "liver"]) == names


def test_names_that_do_not():
    """Letters alone are sides only in pairs; and words are whole ones."""
    names = ["cleft palate", "bright spot", "upright", "L", "kidney_l", "vertebra L5", "vertebra R5", "g"]
    assert sided([*names, "gland", "reticular", "direct shunt", "delight", "re-entry"]) == []


def finetune_settings(**fields):
    return FinetuneSettings(**{"data": Path("task.json"), "out": Path("run"), **fields})


@pytest.mark.parametrize(
    ("fields", "classes", "axes"),
    [
        ({}, PLAIN, None),  # all, as ever
        ({}, SIDED, ["si"]),  # ap and a turn by 180 degrees are lr
        ({"rotate_prob": 0.0}, SIDED, ["ap", "si"]),
        ({"flip_axes": ["lr"]}, SIDED, ["lr"]),
        ({"flip_axes": ["ap"]}, PLAIN, ["ap"]),
    ],
)
def test_which_axes_are_flipped(fields, classes, axes):
    assert with_flip_axes(finetune_settings(**fields), classes).flip_axes == axes


def test_whatever_is_drawn_a_left_kidney_stays_one():
    """Of a body with three arrows in it, no augmentation is a mirror image in the axial plane."""
    settings = finetune_settings(flip_prob=0.5, rotate_prob=0.5, scale_prob=0, shift_prob=0)
    augment = Augmentation(with_flip_axes(settings, SIDED))
    body = torch.zeros(1, 8, 8, 8)
    body[0, 0], body[0, :, 0] = 1, 2  # left, and then back
    turned = {tuple(torch.rot90(body, k, (1, 2))[0, :, :, 3].flatten().tolist()) for k in range(4)}
    seen = {
        tuple(augment(body.clone(), body.clone(), seed)[0][0, :, :, 3].flatten().tolist())
        for seed in range(60)
    }
    assert seen == turned


def test_flips_of_one_axis_leave_the_draws_of_the_others_as_they_are():
    """So that all but the flip itself is the same crop."""
    image = torch.arange(64.0).reshape(1, 4, 4, 4)
    both = [
        Augmentation(finetune_settings(flip_prob=1.0, flip_axes=axes))(image, image.clone(), 5)
        for axes in (None, ["ap", "si"])
    ]
    turns = {k: torch.rot90(image, k, (1, 2)) for k in range(4)}
    everywhere, without = both[0][1], both[1][1]
    (k,) = [
        k for k, turned in turns.items() if torch.equal(torch.rot90(image.flip(2, 3), k, (1, 2)), without)
    ]
    torch.testing.assert_close(torch.rot90(image.flip(1, 2, 3), k, (1, 2)), everywhere)


def kidneys_task(folder, names=SIDED):
    entries = []
    for i in range(3):
        image, label = labelled_case(i, (33, 32, 32), lesion=True)
        nibabel.Nifti1Image(image, np.eye(4)).to_filename(folder / f"{i}.nii.gz")
        nibabel.Nifti1Image(label, np.eye(4)).to_filename(folder / f"{i}_seg.nii.gz")
        entries.append({"image": f"{i}.nii.gz", "label": f"{i}_seg.nii.gz"})
    labels = dict(zip(("0", "1", "4"), names, strict=True))
    lists = {"training": entries[:2], "validation": entries[2:]}
    (folder / "task.json").write_text(json.dumps({"modality": {"0": "T1w"}, "labels": labels, **lists}))
    return folder / "task.json"


@pytest.fixture
def short_run(tmp_path, tiny_settings):
    tiny = {name: value for name, value in tiny_settings.items() if name not in ("val_crops", "batch_size")}
    tiny |= {"batch_size": 1, "max_steps": 1, "warmup_steps": 0, "val_every": 1, "save_every": 1}
    return tiny | {"data": kidneys_task(tmp_path), "out": tmp_path / "run", "store": tmp_path / "store"}


def test_a_run_says_what_it_flips_and_its_weights_know(short_run, tmp_path, caplog):
    with caplog.at_level("INFO", "dae3d"):
        dae3d.finetune(**short_run)
    assert "tell left from right (left kidney, right kidney): crops are flipped only along si" in caplog.text
    assert read_weights(tmp_path / "run").info["flip_axes"] == ["si"]
    assert load_ensemble([tmp_path / "run"], torch.device("cpu")).flips == ("si",)
    assert yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())["flip_axes"] == ["si"]


def test_flips_that_exchange_sides_are_warned_of(short_run, caplog):
    with caplog.at_level("WARNING", "dae3d"):
        dae3d.finetune(**short_run, flip_axes=["ap"])
    assert "flips along ap, with axial rotations, swap the two" in caplog.text


def test_a_run_begun_without_the_setting_goes_on_as_it_began(short_run, tmp_path, caplog):
    dae3d.finetune(**short_run)
    saved = tmp_path / "run" / "settings.yaml"
    fields = yaml.safe_load(saved.read_text())
    del fields["flip_axes"]
    saved.write_text(yaml.safe_dump(fields))
    with caplog.at_level("WARNING", "dae3d"):
        dae3d.finetune(**(short_run | {"max_steps": 2}), resume=True)
    assert read_weights(tmp_path / "run" / "weights" / "last.safetensors").info["flip_axes"] == [
        "lr",
        "ap",
        "si",
    ]
    assert "flips along lr and ap swap the two" in caplog.text


class Sides(torch.nn.Module):
    """Tells the kidneys of both sides apart without fault, by where they lie; counts its images."""

    windows = 0

    def forward(self, x):
        self.windows += len(x)
        organ, n = (x[:, :1] > 0.55).float(), x.shape[2]
        left = (torch.arange(n) < n // 2).float().view(1, 1, n, 1, 1)
        return torch.cat([5 * (1 - organ), 10 * organ * left, 10 * organ * (1 - left)], 1)


@pytest.fixture
def kidneys(tmp_path, monkeypatch):
    """Predict a scan of two kidneys with `Sides`; the number of images it saw, and whether all was found."""
    scan, truth = np.full((32, 32, 32), -1000, np.int16), np.zeros((32, 32, 32), np.uint8)
    for value, x in ((1, 4), (2, 20)):
        truth[x : x + 8, 10:20, 10:20] = value
    scan[truth > 0] = 300
    write_nifti(tmp_path / "scan.nii.gz", scan)

    def predict(names=SIDED, flips=None, **fields):
        recipe = KIDNEYS.model_copy(update={"labels": dict(enumerate(names))})
        network = Sides()
        monkeypatch.setattr(
            module, "load_ensemble", lambda weights, device: Ensemble([network], recipe, ["x"], flips)
        )
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        given = {"scans": [tmp_path / "scan.nii.gz"], "weights": ["x"], "out": out, "device": "cpu"}
        (path,) = dae3d.predict(**given, mirror=True, **fields)
        return network.windows, np.array_equal(np.asarray(nibabel.load(path).dataobj), truth)

    return predict


def test_mirroring_does_not_exchange_sides_unasked(kidneys, caplog):
    with caplog.at_level("WARNING", "dae3d"):
        assert kidneys() == (4, True)
        assert "not mirroring along lr, which would swap the two" in caplog.text
        caplog.clear()
        assert kidneys(mirror_axes=["lr"]) == (2, False)
        assert "(left kidney, right kidney), and mirroring along lr swaps the two" in caplog.text


def test_mirroring_is_along_the_axes_that_training_flipped(kidneys, caplog):
    with caplog.at_level("WARNING", "dae3d"):
        assert kidneys(PLAIN, flips=("si",)) == (2, True)
        assert not caplog.text
        assert kidneys(PLAIN, flips=("si",), mirror_axes=["si", "ap"]) == (4, True)
        assert "mirroring along ap, although training did not flip along it" in caplog.text
        caplog.clear()
        assert kidneys(PLAIN)[0] == 8
        assert "do not record which axes training flipped; assuming all" in caplog.text
    with pytest.raises(Dae3dError, match="trained without flips; leave --mirror out, or set --mirror-axes"):
        kidneys(PLAIN, flips=())
    with pytest.raises(Dae3dError, match="flipped only lr, and names of classes tell left from right"):
        kidneys(SIDED, flips=("lr",))


def test_mirror_axes_without_mirror_is_refused(tmp_path):
    with pytest.raises(Dae3dError, match="mirror_axes: requires --mirror"):
        dae3d.predict(scans=["a.nii.gz"], weights=["w"], out=tmp_path, mirror_axes=["lr"])
