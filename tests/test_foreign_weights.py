"""Weights that other programs wrote: read as those programs meant them, or refused in plain words."""

import argparse
import re

import numpy as np
import pytest
import torch
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR
from safetensors.torch import save_file

import dae3d
from dae3d.cli import main
from dae3d.errors import Dae3dError, SettingsError
from dae3d.models.network import FeatureEncoder, Segmenter
from dae3d.models.swin_unetr import ReferencePatchMerging
from dae3d.models.weights import read_weights

pytestmark = pytest.mark.slow

NETWORK = ("embed_dim", "depths", "heads", "window")
SIZES = {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 2}


def monai(**changes):
    torch.manual_seed(0)
    return MonaiSwinUNETR(**({"in_channels": 1, "out_channels": 3} | SIZES | changes)).eval()


def image():
    return torch.rand(1, 1, 64, 32, 32, generator=torch.Generator().manual_seed(1))


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


# Patch merging


@pytest.mark.parametrize(
    ("merging", "downsample"),
    [("merging", "merging"), ("mergingv2", "mergingv2"), ("reference", ReferencePatchMerging)],
)
@torch.inference_mode()
def test_every_order_of_octants_gives_the_logits_of_monai(merging, downsample, tmp_path, caplog):
    theirs = monai(downsample=downsample)
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    ours = dae3d.load(tmp_path / "w.pt", monai_merging=merging)
    torch.testing.assert_close(ours(image()), theirs(image()), rtol=0, atol=1e-5)
    assert ours.architecture.patch_merging == ("reference" if merging == "reference" else "straight")
    assert ours.info == {"task": "segmentation", "monai_merging": merging}
    assert not caplog.records
    # The order is in the file that it is exported to, and need not be told again.
    arguments = ["--weights", str(tmp_path / "w.pt"), "--monai-merging", merging]
    assert main(["export", *arguments, "--out", str(tmp_path / "ours.safetensors")]) == 0
    assert torch.equal(dae3d.load(tmp_path / "ours.safetensors")(image()), ours(image()))


@torch.inference_mode()
def test_without_a_word_the_published_order_is_assumed_and_said(tmp_path, capsys, caplog):
    theirs = monai(downsample=ReferencePatchMerging)
    torch.save(theirs.swinViT.state_dict(), tmp_path / "encoder.pt")
    encoder = dae3d.load(tmp_path / "encoder.pt")
    for ours, feature in zip(encoder(image()), theirs.swinViT(image()), strict=True):
        torch.testing.assert_close(ours, feature, rtol=0, atol=1e-5)
    assert 'encoder weights (assumed: patch merging "reference") into' in capsys.readouterr().out
    assert 'give monai_merging "merging"' in caplog.text


@torch.inference_mode()
def test_our_export_comes_back_bit_for_bit_after_monai_saved_it(tmp_path):
    torch.save(monai(downsample="mergingv2").state_dict(), tmp_path / "w.pt")
    dae3d.export(weights=tmp_path / "w.pt", monai_merging="mergingv2", out=tmp_path / "w.safetensors")
    dae3d.export(weights=tmp_path / "w.safetensors", format="monai", out=tmp_path / "monai.pt")
    between = monai(downsample="mergingv2")
    between.load_state_dict(torch.load(tmp_path / "monai.pt", weights_only=True))
    torch.save(between.state_dict(), tmp_path / "again.pt")
    before = dae3d.load(tmp_path / "w.safetensors").state_dict()
    after = dae3d.load(tmp_path / "again.pt", monai_merging="mergingv2").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_file_that_says_how_it_merges_is_not_told(tmp_path):
    torch.save(monai().state_dict(), tmp_path / "w.pt")
    out = dae3d.export(weights=tmp_path / "w.pt", monai_merging="merging", out=tmp_path / "ours.safetensors")
    with pytest.raises(Dae3dError, match=r"monai_merging: .*ours.safetensors records its patch merging"):
        dae3d.load(out, monai_merging="mergingv2")
    with pytest.raises(Dae3dError, match="monai_merging: must be one of 'reference', 'merging'"):
        dae3d.load(tmp_path / "w.pt", monai_merging="v2")


# What is beside the tensors


@pytest.mark.parametrize(
    "beside",
    [
        {"epoch": 3, "best_acc": np.mean([0.8, 0.9]), "step": np.int64(5), "dice": np.float32(0.5)},
        {"args": argparse.Namespace(lr=1e-4, seed=np.int32(1)), "host": np.str_("a")},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_scalars_of_numpy_and_command_lines_beside_the_tensors_are_no_hindrance(beside, zipped, tmp_path):
    state = monai().state_dict()
    torch.save({"state_dict": state, **beside}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    network = dae3d.load(tmp_path / "w.pt", monai_merging="merging")
    name = "swinViT.layers1.0.blocks.0.attn.qkv.weight"
    assert torch.equal(network.state_dict()["encoder.stages.0.blocks.0.attn.qkv.weight"], state[name])


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


@pytest.mark.parametrize(
    "around", [lambda trap: {"args": argparse.Namespace(lr=trap)}, lambda trap: [np.float64(1), trap]]
)
def test_nothing_beside_the_tensors_is_run(around, tmp_path):
    beside = around(Trap(tmp_path / "sprung"))
    torch.save({"state_dict": {}, "beside": beside}, tmp_path / "w.pt")
    with pytest.raises(Dae3dError, match=r"holds more than tensors and plain values: .*touch|getattr"):
        dae3d.load(tmp_path / "w.pt")
    assert not (tmp_path / "sprung").exists()


# Where the tensors are

STATE = monai().state_dict()


@pytest.mark.parametrize(
    "content",
    [
        prefixed("_orig_mod.", STATE),
        prefixed("module._orig_mod.", STATE),
        {"net": prefixed("module.backbone.", STATE)},
        {"state_dict": prefixed("model.", STATE), "pytorch-lightning_version": "2.5.0"},
        {"model_state": STATE, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
        {"network_weights": STATE},
        {"checkpoint": {"model": {"ema": prefixed("network.", STATE)}}},
        {"state_dict": {name.replace("swinViT", "swin_vit"): tensor for name, tensor in STATE.items()}},
    ],
)
def test_a_network_is_found_wherever_it_is(content, tmp_path):
    torch.save(content, tmp_path / "w.ckpt")
    network = dae3d.load(tmp_path / "w.ckpt", monai_merging="merging")
    assert isinstance(network, Segmenter)
    assert network.load_report.missing == []
    head = network.decoder.head.conv.conv.weight
    assert torch.equal(head, STATE["out.conv.conv.weight"])
    assert set(network.load_report.skipped.values()) == {"follows from the window size"}


PREFIXES = (
    *("module.", "_orig_mod.", "model.", "student.", "teacher.", "backbone.", "swinViT.", "encoder.", "ema."),
    *("module.student.backbone.", "ema_model.module."),
)


@pytest.mark.parametrize("entry", [None, "net", "state_dict", "ema"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_trainers_are_read(prefix, entry, tmp_path):
    state = prefixed(prefix, STATE)
    torch.save({entry: state, "epoch": 3} if entry else state, tmp_path / "w.pt")
    contents = read_weights(tmp_path / "w.pt", "merging")
    assert (contents.task, contents.architecture.embed_dim) == ("segmentation", 12)
    assert contents.misfits == {}
    expected = read_bare(STATE, tmp_path)
    assert contents.state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in contents.state.items())
    # The transformer alone, as MONAI saves it.
    bare = {n.removeprefix("swinViT."): t for n, t in STATE.items() if n.startswith("swinViT.")}
    torch.save(prefixed(prefix, bare), tmp_path / "w.pt")
    contents = read_weights(tmp_path / "w.pt", "merging")
    assert contents.task == "encoder"
    assert all(torch.equal(tensor, expected[name]) for name, tensor in contents.state.items())


def read_bare(state, folder):
    torch.save(state, folder / "bare.pt")
    return read_weights(folder / "bare.pt", "merging").state


@pytest.mark.parametrize("prefix", ["", "module.", "student.backbone."])
@pytest.mark.parametrize("entry", [None, "net", "state_dict"])
def test_the_convolutions_of_voco_are_named_as_what_does_not_fit(entry, prefix, tmp_path):
    state = prefixed(prefix, monai(use_v2=True).state_dict())
    torch.save({entry: state} if entry else state, tmp_path / "w.pt")
    with pytest.raises(Dae3dError) as error:
        dae3d.load(tmp_path / "w.pt", "encoder", monai_merging="merging")
    assert "SwinUNETR-V2, which has convolutions before its stages" in str(error.value)
    assert f"tensors that ours does not have: {prefix}swinViT.layers1c.0.layer" in str(error.value)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("average", ["teacher", "model_ema"])
def test_of_student_and_teacher_the_teacher_is_taken_and_said(flat, average, tmp_path, caplog):
    student, teacher = monai().state_dict(), monai(out_channels=4).state_dict()
    both = (
        prefixed("student.backbone.", student) | prefixed(f"{average}.backbone.", teacher)
        if flat
        else {"student": prefixed("backbone.", student), average: prefixed("backbone.", teacher)}
    )
    torch.save(both, tmp_path / "w.pt")
    network = dae3d.load(tmp_path / "w.pt", monai_merging="merging")
    assert torch.equal(network.decoder.head.conv.conv.weight, teacher["out.conv.conv.weight"])
    assert re.search(f"network of {average}.* assumed; the file also has student", caplog.text)


def test_safetensors_of_others_are_read_too(tmp_path):
    save_file(prefixed("model.", STATE), tmp_path / "model.safetensors")
    network = dae3d.load(tmp_path / "model.safetensors", monai_merging="merging")
    assert network.load_report.missing == []


def test_what_has_no_decoder_is_an_encoder(tmp_path):
    state = {name: tensor for name, tensor in STATE.items() if name.startswith("swinViT.")}
    torch.save(state | {"rotation_head.weight": torch.zeros(4, 192)}, tmp_path / "w.pt")
    assert isinstance(dae3d.load(tmp_path / "w.pt"), FeatureEncoder)
    with pytest.raises(Dae3dError, match="give the number of classes"):
        dae3d.load(tmp_path / "w.pt", "segmentation")


def test_another_network_is_refused_with_what_is_in_the_file(tmp_path):
    state = {"stem.conv.weight": torch.zeros(8, 1, 3, 3, 3), "stem.conv.bias": torch.zeros(8)}
    torch.save({"network_weights": state, "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(Dae3dError) as error:
        dae3d.load(tmp_path / "w.pth")
    for words in (
        "no network of dae3d in it",
        "2 tensors under 'network_weights': stem.conv.weight (8, 1, 3, 3, 3), stem.conv.bias (8,)",
        "expected swinViT.layers1.0.",
    ):
        assert words in str(error.value)


# Networks of another kind


@pytest.mark.parametrize(
    ("changes", "halves", "words"),
    [
        ({"use_v2": True}, "encoder", "SwinUNETR-V2.*swinViT.layers1c.0"),
        ({"norm_name": "batch"}, "decoder", "batch norms.*running_mean"),
        ({"norm_name": ("group", {"num_groups": 4})}, "decoder", "norms have weights"),
        ({"qkv_bias": False}, "encoder", "4 tensors missing: swinViT.layers1.0.blocks.0.attn.qkv.bias"),
        ({"mlp_ratio": 2.0}, "encoder", "tensors with other shapes: .*instead of"),
        ({"patch_norm": True}, "encoder", "2 tensors that ours does not have: swinViT.patch_embed.norm"),
    ],
)
def test_a_network_of_another_kind_is_refused_and_its_fitting_half_is_not(changes, halves, words, tmp_path):
    torch.save(monai(**changes).state_dict(), tmp_path / "w.pt")
    with pytest.raises(Dae3dError, match=f"weights of a different network. {halves}: .*{words}"):
        dae3d.load(tmp_path / "w.pt", monai_merging="merging")
    with pytest.raises(Dae3dError, match="different network"):
        dae3d.load(tmp_path / "w.pt", transfer=halves)
    other = "decoder" if halves == "encoder" else "encoder"
    report = dae3d.load(tmp_path / "w.pt", transfer=other).load_report
    assert all(name.startswith("encoder.") == (halves == "encoder") for name in report.missing)


def test_fine_tuning_refuses_another_network_before_anything_is_made(tiny_finetune, tmp_path):
    torch.save(monai(use_v2=True).state_dict(), tmp_path / "w.pt")
    settings = {name: value for name, value in tiny_finetune.items() if name not in NETWORK}
    settings |= {"init": tmp_path / "w.pt", "store": None, "out": tmp_path / "run"}
    with pytest.raises(
        Dae3dError, match=r'SwinUNETR-V2.*The decoder fits: load only that, with transfer "decoder"'
    ):
        dae3d.finetune(**settings)
    assert not (tmp_path / "run").exists()
    with pytest.raises(SettingsError, match=r'patch_merging: .* has reference, not straight .*"mergingv2"'):
        dae3d.finetune(**(settings | {"patch_merging": "straight", "transfer": "decoder"}))


def test_a_segmentation_network_without_its_head_needs_to_be_told_the_classes(tmp_path, caplog):
    state = {n: t for n, t in STATE.items() if not n.startswith(("out.", "encoder10."))}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(Dae3dError, match=r"decoder: 2 tensors missing: encoder10.layer.conv1.conv.weight"):
        dae3d.load(tmp_path / "w.pt", classes=2)
    torch.save({n: t for n, t in STATE.items() if not n.startswith("out.")}, tmp_path / "w.pt")
    with pytest.raises(Dae3dError, match="give the number of classes"):
        dae3d.load(tmp_path / "w.pt")
    network = dae3d.load(tmp_path / "w.pt", classes=2, monai_merging="merging")
    assert network.load_report.missing == ["decoder.head.conv.conv.weight", "decoder.head.conv.conv.bias"]
    state = {n: t for n, t in STATE.items() if n.startswith("swinViT")}
    torch.save(state, tmp_path / "encoder.pt")
    assert not caplog.records
    dae3d.load(tmp_path / "encoder.pt", "segmentation", classes=2, monai_merging="merging")
    assert "31 of the 31 tensors of the decoder keep random values" in caplog.text


def test_a_network_for_two_dimensions_is_refused(tmp_path):
    torch.save(monai(spatial_dims=2).state_dict(), tmp_path / "w.pt")
    with pytest.raises(Dae3dError, match="network for 2D images"):
        dae3d.load(tmp_path / "w.pt", transfer="decoder")


def test_windows_that_are_no_cubes_are_refused(tmp_path):
    torch.save(monai(window_size=(4, 4, 2)).state_dict(), tmp_path / "w.pt")
    with pytest.raises(Dae3dError, match=r"relative_position_bias_table .*instead of"):
        dae3d.load(tmp_path / "w.pt")


def test_features_need_no_decoder_of_ours(tmp_path):
    theirs = monai(norm_name="batch", downsample="mergingv2")
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    encoder = dae3d.load(tmp_path / "w.pt", "encoder", monai_merging="mergingv2")
    with torch.inference_mode():
        for ours, feature in zip(encoder(image()), theirs.swinViT(image()), strict=True):
            torch.testing.assert_close(ours, feature, rtol=0, atol=1e-5)


def test_an_encoder_that_is_not_whole_is_refused(tmp_path):
    torch.save(
        {name: tensor for name, tensor in STATE.items() if "patch_embed" not in name}, tmp_path / "w.pt"
    )
    with pytest.raises(Dae3dError, match=r"incomplete: tensor .*patch_embed"):
        dae3d.load(tmp_path / "w.pt")
