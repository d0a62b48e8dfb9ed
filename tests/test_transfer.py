"""What fine-tuning takes over of other weights, and which part of the network learns."""

import json

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import dae3d
from conftest import labelled_case, write_task
from dae3d.errors import Dae3dError, SettingsError
from dae3d.models.load_report import part_of
from dae3d.models.weights import read_weights, save_weights
from dae3d.store.recipe import CaseRecipe
from dae3d.training.callbacks import find_checkpoints

pytestmark = pytest.mark.slow

# One step at a learning rate of 0: the weights at the end are those at the start.
STANDING = {"max_steps": 1, "warmup_steps": 1, "warmup_lr": 0, "val_every": 100, "save_every": 1}
# A learning rate from the first step on, and no validation before the end.
AT_ONCE = {"warmup_steps": 0, "weight_decay": 0, "val_every": 100, "save_every": 1}


def weights(run, name="last"):
    return load_file(run / f"weights/{name}.safetensors")


def same(ours, theirs, start):
    """Whether all tensors of a half of two networks are equal."""
    names = [name for name in theirs if name.startswith(start) and name != "encoder.mask_token"]
    assert names
    return all(torch.equal(ours[name], theirs[name]) for name in names)


@pytest.mark.parametrize("transfer", ["both", "encoder", "decoder", "none"])
def test_the_half_that_is_transferred_begins_as_it_was(transfer, tiny_run, tiny_finetune, tmp_path, capsys):
    run = dae3d.finetune(init=tiny_run, transfer=transfer, out=tmp_path / "run", **(tiny_finetune | STANDING))
    ours, theirs = weights(run), weights(tiny_run, "best")
    theirs = {name: tensor for name, tensor in theirs.items() if part_of(name) != "head"}
    assert same(ours, theirs, "encoder.") == (transfer in ("both", "encoder"))
    assert same(ours, theirs, "decoder.") == (transfer in ("both", "decoder"))
    assert ours["decoder.head.conv.conv.weight"].shape[0] == 3
    printed = capsys.readouterr().out
    assert ("the head was trained for pretrain, not for segmentation" in printed) == (
        transfer in ("both", "decoder")
    )
    # With none, it is still a network of the sizes of --init.
    architecture = dae3d.load(run, show=False).architecture
    assert (architecture.embed_dim, architecture.heads, architecture.window) == (4, (1, 1, 2, 2), 2)


def test_the_weights_of_a_fine_tuned_network_are_taken_with_their_head(finetuned, tiny_finetune, tmp_path):
    run = dae3d.finetune(init=finetuned, out=tmp_path / "run", **(tiny_finetune | STANDING))
    ours, theirs = weights(run), weights(finetuned, "best")
    assert ours.keys() == theirs.keys()
    assert same(ours, theirs, "")


@pytest.mark.parametrize(
    ("size", "value"),
    [
        ("embed_dim", 8),
        ("depths", (2, 1, 1, 1)),
        ("heads", (1, 2, 2, 2)),
        ("window_edges", "reference"),
        ("patch_embed", "linear"),
        ("patch_merging", "reference"),
    ],
)
def test_a_size_unlike_that_of_the_weights_is_an_error(size, value, tiny_run, tiny_finetune, tmp_path):
    with pytest.raises(SettingsError, match=rf"^{size}: .*--init .* has .*, not "):
        dae3d.finetune(out=tmp_path / "run", **(tiny_finetune | {"init": tiny_run, size: value}))
    # So it is when everything is given.
    complete = {"axes": "straight", "patch_embed": "conv", "patch_merging": "straight"}
    with pytest.raises(SettingsError, match=rf"^{size}: "):
        dae3d.finetune(out=tmp_path / "run", **(tiny_finetune | complete | {"init": tiny_run, size: value}))
    assert not (tmp_path / "run").exists()


def test_sizes_that_do_not_fit_together_are_an_error(tiny_finetune, tmp_path):
    with pytest.raises(SettingsError, match="heads: stage 1 has 4 channels, not a multiple of 3"):
        dae3d.finetune(out=tmp_path / "run", **(tiny_finetune | {"heads": (3, 1, 1, 1)}))
    with pytest.raises(SettingsError, match="roi: with reference axes all sides must be 8, not 32 x 32 x 32"):
        dae3d.finetune(out=tmp_path / "run", **(tiny_finetune | {"axes": "reference"}))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"transfer": "encoder"}, "transfer: encoder needs --init"),
        ({"freeze": "encoder"}, "freeze: .*--init"),
        ({"freeze_steps": 5}, "freeze_steps: needs --freeze"),
        ({"label_fraction": 0.5, "train_cases": 2}, "train_cases: cannot be combined with label_fraction"),
        ({"intensity": {"t1": "window"}}, "intensity: .*window:LOW:HIGH"),
        ({"spacing": (1, 1, 0)}, "spacing: "),
    ],
)
def test_settings_that_contradict_each_other_are_named(wrong, message, tiny_finetune, tmp_path):
    with pytest.raises(SettingsError, match=message):
        dae3d.finetune(out=tmp_path / "run", **(tiny_finetune | wrong))


def test_a_frozen_encoder_stays_as_it_was(tiny_run, tiny_finetune, tmp_path):
    settings = tiny_finetune | AT_ONCE | {"init": tiny_run, "freeze": "encoder", "max_steps": 2}
    run = dae3d.finetune(out=tmp_path / "run", **(settings | {"weight_decay": 0.5}))
    ours, theirs = weights(run), weights(tiny_run, "best")
    assert same(ours, theirs, "encoder.")
    assert not same(ours, theirs, "decoder.ups")


def test_an_encoder_frozen_for_some_steps_learns_after_them(tiny_run, tiny_finetune, tmp_path):
    settings = tiny_finetune | AT_ONCE | {"init": tiny_run, "freeze": "encoder", "freeze_steps": 2}
    run = dae3d.finetune(
        out=tmp_path / "run", **(settings | {"weight_decay": 0.5, "max_steps": 3, "keep": 3})
    )
    theirs = weights(tiny_run, "best")
    kept = {}
    for path in find_checkpoints(run / "checkpoints"):
        state = torch.load(path, weights_only=False)["state_dict"]
        state = {name.removeprefix("network."): tensor for name, tensor in state.items()}
        kept[path.name] = same(state, theirs, "encoder.")
        assert not same(state, theirs, "decoder.ups")
    assert kept == {"step-00000001.ckpt": True, "step-00000002.ckpt": True, "step-00000003.ckpt": False}


def test_a_stage_further_from_the_output_takes_smaller_steps(tiny_run, tiny_finetune, tmp_path):
    # Adam's first step is the learning rate for every weight with a gradient.
    settings = tiny_finetune | AT_ONCE | {"init": tiny_run, "transfer": "both", "layer_decay": 0.5}
    settings |= {"max_steps": 1, "lr": 1e-3}
    run = dae3d.finetune(out=tmp_path / "run", **settings)
    ours, theirs = weights(run), weights(tiny_run, "best")
    expected = {"decoder.ups": 1.0, "decoder.skips": 1.0, "encoder.patch_embed": 0.5**5}
    expected |= {f"encoder.stages.{stage}": 0.5 ** (4 - stage) for stage in range(4)}
    for start, scale in expected.items():
        moved = [(ours[n] - theirs[n]).abs().max() for n in theirs if n.startswith(start)]
        assert float(max(moved)) == pytest.approx(1e-3 * scale, rel=0.02), start


def with_other_classes(task, folder, names):
    """The same list of cases, with other names of its classes."""
    content = json.loads(task.read_text()) | {"labels": names}
    for entry in content["training"] + content["validation"]:
        for key in ("image", "label"):
            entry[key] = str(task.parent / np.ravel(entry[key])[0])
    (folder / "other.json").write_text(json.dumps(content))
    return folder / "other.json"


def test_a_head_for_other_classes_of_the_same_number_is_refused(finetuned, tiny_finetune, tmp_path, capsys):
    names = {"0": "background", "1": "organ", "4": "cyst"}
    task = with_other_classes(tiny_finetune["data"], tmp_path, names)
    settings = tiny_finetune | STANDING | {"data": task, "init": finetuned}
    run = dae3d.finetune(out=tmp_path / "run", **settings)
    ours, theirs = weights(run), weights(finetuned, "best")
    assert not same(ours, theirs, "decoder.head.conv.conv.weight")
    assert same(ours, theirs, "decoder.ups")
    assert "its class 2 is 'lesion', here it is 'cyst'" in capsys.readouterr().out


def test_a_head_whose_classes_are_not_known_is_taken_and_said(finetuned, tiny_finetune, tmp_path, caplog):
    dae3d.export(weights=finetuned, format="reference", out=tmp_path / "w.pth")
    state = torch.load(tmp_path / "w.pth", weights_only=True)["state_dict"]
    torch.save({"state_dict": state}, tmp_path / "bare.pth")
    settings = tiny_finetune | STANDING | {"init": tmp_path / "bare.pth", "monai_merging": "mergingv2"}
    run = dae3d.finetune(out=tmp_path / "run", **settings)
    assert same(weights(run), weights(finetuned, "best"), "")
    assert "the head was loaded, although the file does not name its classes" in caplog.text


@pytest.mark.parametrize("freeze_steps", [0, 1])
def test_what_was_not_taken_over_is_not_frozen(freeze_steps, tiny_run, tiny_finetune, tmp_path):
    contents = read_weights(tiny_run)
    state = {n: t for n, t in contents.state.items() if not n.startswith("encoder.stages.3")}
    save_weights(tmp_path / "w.safetensors", state, contents.architecture, contents.info)
    settings = tiny_finetune | AT_ONCE | {"init": tmp_path / "w.safetensors", "freeze": "encoder"}
    with pytest.raises(Dae3dError, match=r"freeze: 16 tensors of the encoder .* random values: encoder.st"):
        dae3d.finetune(out=tmp_path / "run", **(settings | {"freeze_steps": freeze_steps, "max_steps": 2}))


@pytest.fixture(scope="module")
def two_channels(tmp_path_factory):
    """A task with a T1 and a FLAIR image a case."""
    folder = tmp_path_factory.mktemp("channels")
    entries = []
    for i in range(3):
        images = labelled_case(10 + i, (30, 26, 28), lesion=True)
        files = {f"case{i}_t1": images[0], f"case{i}_flair": 900 - images[0], f"case{i}_seg": images[1]}
        for name, voxels in files.items():
            nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(folder / f"{name}.nii.gz")
        *channels, label = (f"{name}.nii.gz" for name in files)
        entries.append({"image": channels, "label": label, "fold": i})
    path = write_task(folder, "two", training=entries)
    content = json.loads(path.read_text()) | {"modality": {"0": "T1w", "1": "FLAIR"}}
    path.write_text(json.dumps(content))
    return path


def stretched(folder, spacings):
    """A list of cases that differ in their voxel sizes; the last one validates."""
    entries = []
    for i, spacing in enumerate(spacings):
        for name, voxels in zip(
            ("T1w", "seg"), labelled_case(30 + i, (34, 33, 35), lesion=True), strict=True
        ):
            # Axes to the left, posterior and superior, the first and the second exchanged.
            affine = np.zeros((4, 4))
            affine[0, 1], affine[1, 0], affine[2, 2] = -spacing[0], -spacing[1], spacing[2]
            affine[3, 3] = 1
            nibabel.Nifti1Image(voxels, affine).to_filename(folder / f"c{i}_{name}.nii.gz")
        entries.append({"image": f"c{i}_T1w.nii.gz", "label": f"c{i}_seg.nii.gz"})
    return write_task(folder, "stretched", training=entries[:-1], validation=entries[-1:])


@pytest.mark.parametrize(
    ("spacings", "spacing", "said"),
    [
        # The tiny store has voxels of 1 mm. The last case validates, and does not count.
        ([(1, 1, 3), (1, 1.1, 1.1), (1.1, 1, 1), (4, 4, 4)], None, None),
        ([(1, 1.25, 1), (1, 1.3, 1), (1, 1, 1), (1, 1, 1)], None, "1 x 1.25 x 1 mm"),
        ([(0.8, 1, 1), (0.8, 1, 1), (0.8, 1, 1)], None, "0.8 x 1 x 1 mm"),
        ([(0.8, 1, 3), (0.8, 1, 3), (0.8, 1, 3)], (1.1, 1.1, 1.1), None),
        ([(1, 1, 1), (1, 1, 1), (1, 1, 1)], (1, 1, 2), "1 x 1 x 2 mm"),
    ],
)
def test_voxels_of_another_size_than_those_pre_trained_on_are_warned_of(
    spacings, spacing, said, tiny_run, tiny_finetune, tmp_path, caplog
):
    task = stretched(tmp_path, spacings)
    settings = tiny_finetune | STANDING | {"data": task, "store": None, "spacing": spacing}
    dae3d.finetune(init=tiny_run, out=tmp_path / "run", **settings)
    warned = [record.message for record in caplog.records if "voxels of" in record.message]
    assert len(warned) == (said is not None)
    if said:
        assert f"trained on voxels of 1 x 1 x 1 mm (median), but the cases have {said}" in warned[0]
        assert "--spacing 1 1 1 resamples" in warned[0]


def test_weights_that_do_not_say_their_voxel_size_are_not_warned_of(
    tiny_run, tiny_finetune, tmp_path, caplog
):
    network = dae3d.load(tiny_run, show=False)
    assert network.info["spacing"] == [1, 1, 1]
    for name, info in {
        "old": {key: value for key, value in network.info.items() if key != "spacing"},
        "prepared": {**network.info, "spacing": None, "preparation": {"spacing": [2, 1, 1]}},
    }.items():
        save_weights(tmp_path / f"{name}.safetensors", network.state_dict(), network.architecture, info)
        settings = tiny_finetune | STANDING | {"init": tmp_path / f"{name}.safetensors"}
        dae3d.finetune(out=tmp_path / name, **settings)
        warned = [record.message for record in caplog.records if "voxels of" in record.message]
        assert [message.split("(")[0].split("of ")[1] for message in warned] == (
            ["2 x 1 x 1 mm "] if name == "prepared" else []
        )


def test_weights_of_one_channel_begin_a_network_of_two(
    two_channels, tiny_run, tiny_finetune, tmp_path, capsys
):
    preparation = {"crop_foreground": True, "intensity": {"flair": "percentiles:0.5:99.5"}}
    settings = tiny_finetune | STANDING | preparation | {"data": two_channels, "store": None, "fold": 1}
    run = dae3d.finetune(init=tiny_run, out=tmp_path / "run", **settings)
    assert "repeated for 2 input channels, divided by 2" in capsys.readouterr().out
    name = "encoder.patch_embed.conv1.conv.weight"
    ours, theirs = weights(run)[name], weights(tiny_run, "best")[name]
    assert ours.shape[1] == 2
    torch.testing.assert_close(ours.sum(1), theirs[:, 0])
    record = json.loads((run / "run.json").read_text())
    assert record["cases"] == {"training": ["case0_t1", "case2_t1"], "validation": ["case1_t1"]}
    network = dae3d.load(run, show=False)
    recipe = CaseRecipe.model_validate(network.info["recipe"])
    assert recipe.modalities == ("t1", "flair")
    assert (recipe.crop_foreground, recipe.intensity) == (True, preparation["intensity"])
    assert network(torch.rand(1, 2, 32, 32, 32)).shape == (1, 3, 32, 32, 32)


def test_an_encoder_of_two_channels_is_frozen_with_the_sum_of_them_in_one(
    two_channels, tiny_finetune, tmp_path, caplog
):
    first = tiny_finetune | STANDING | {"data": two_channels, "store": None, "fold": 1}
    pair = dae3d.finetune(out=tmp_path / "pair", **first)
    settings = tiny_finetune | AT_ONCE | {"init": pair, "freeze": "encoder", "max_steps": 1}
    run = dae3d.finetune(out=tmp_path / "run", **settings)
    ours, theirs = weights(run), weights(pair, "best")
    name = "encoder.patch_embed.conv1.conv.weight"
    torch.testing.assert_close(ours[name][:, 0], theirs[name][:, 0] + theirs[name][:, 1])
    assert same(ours, theirs, "encoder.stages")
    assert "trained on the channels t1+flair, but the cases have t1" in caplog.text
