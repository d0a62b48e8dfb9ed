"""The residual encoder U-Net against nnU-Net's own, and files of nnU-Net and nnssl."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn

import dae3d
from dae3d.cli import main
from dae3d.errors import Dae3dError
from dae3d.models.network import FeatureEncoder, RepairNetwork, Segmenter
from dae3d.models.resenc import ResEncArchitecture
from dae3d.models.resenc.foreign import to_nnunet
from dae3d.models.resenc.topology import topology
from dae3d.models.weights import read_weights, save_weights

ISOTROPIC = ResEncArchitecture(
    stage_channels=(4, 8, 12),
    stage_strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    stage_kernels=((3, 3, 3),) * 3,
    stage_blocks=(1, 2, 2),
    decoder_convolutions=(1, 2),
    out_channels=3,
)
THICK_SLICES = replace(
    ISOTROPIC,
    stage_strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)),
    stage_kernels=((3, 3, 1), (3, 3, 1), (3, 3, 3)),
)


def library(architecture, axes=(2, 1, 0), deep_supervision=False):
    """nnU-Net's network, whose axes are `axes` of ours."""

    def turned(sides):
        return [[each[axis] for axis in axes] for each in sides]

    return ResidualEncoderUNet(
        input_channels=architecture.in_channels,
        n_stages=3,
        features_per_stage=list(architecture.stage_channels),
        conv_op=nn.Conv3d,
        kernel_sizes=turned(architecture.stage_kernels),
        strides=turned(architecture.stage_strides),
        n_blocks_per_stage=list(architecture.stage_blocks),
        num_classes=architecture.out_channels,
        n_conv_per_stage_decoder=list(architecture.decoder_convolutions),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=deep_supervision,
    ).eval()


def scrambled(network):
    """Random values also where networks begin with zeros and ones."""
    torch.manual_seed(1)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn_like(tensor) / max(tensor[0].numel(), 4) ** 0.5)
    return network.eval()


def kwargs(architecture, axes=(2, 1, 0)):
    return {
        "n_stages": 3,
        "features_per_stage": list(architecture.stage_channels),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[each[axis] for axis in axes] for each in architecture.stage_kernels],
        "strides": [[each[axis] for axis in axes] for each in architecture.stage_strides],
        "n_blocks_per_stage": list(architecture.stage_blocks),
        "n_conv_per_stage_decoder": list(architecture.decoder_convolutions),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


NAME = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


def plans(architecture, transpose=(0, 1, 2)):
    axes = [(2, 1, 0)[axis] for axis in transpose]
    network = {"network_class_name": NAME, "arch_kwargs": kwargs(architecture, axes)}
    configurations = {
        "3d_fullres": {"architecture": network, "patch_size": [8, 8, 8]},
        "3d_other": {"inherits_from": "3d_fullres"},
    }
    return {"configurations": configurations, "transpose_forward": list(transpose)}


def image(*sides, channels=1):
    return torch.randn(1, channels, *sides, generator=torch.Generator().manual_seed(2))


# The network


@pytest.mark.parametrize("architecture", [ISOTROPIC, THICK_SLICES], ids=["isotropic", "thick slices"])
@torch.inference_mode()
def test_its_outputs_are_those_of_nnu_net_with_its_axes_reversed(architecture):
    ours = scrambled(Segmenter(replace(architecture, deep_supervision=True)))
    theirs = library(architecture, deep_supervision=True)
    theirs.load_state_dict(to_nnunet(ours.state_dict(), architecture).state)  # strictly: all names
    x = image(16, 24, 8)
    expected = theirs(x.permute(0, 1, 4, 3, 2))
    for one, other in zip(ours.all_logits(x), expected, strict=True):
        torch.testing.assert_close(one, other.permute(0, 1, 4, 3, 2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours(x), ours.all_logits(x)[0])


def test_gradients_are_those_of_nnu_net():
    ours = scrambled(Segmenter(replace(THICK_SLICES, deep_supervision=True)))
    theirs = library(THICK_SLICES)
    theirs.load_state_dict(to_nnunet(ours.state_dict(), THICK_SLICES).state)
    x, weight = image(16, 24, 8), image(16, 24, 8, channels=3)
    (ours(x) * weight).sum().backward()
    (theirs(x.permute(0, 1, 4, 3, 2)) * weight.permute(0, 1, 4, 3, 2)).sum().backward()
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    renamed = to_nnunet(found, THICK_SLICES).state
    compared = [name for name in renamed if wanted.get(name) is not None]
    assert len(compared) > 40
    # A bias before a norm has a gradient of 0, of which rounding errors remain.
    largest = max(float(wanted[name].abs().max()) for name in compared)
    for name in compared:
        torch.testing.assert_close(renamed[name], wanted[name], rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("repair_from", ["full", "half", "pyramid"])
@pytest.mark.parametrize("architecture", [ISOTROPIC, THICK_SLICES], ids=["isotropic", "thick slices"])
def test_it_repairs_images_at_every_resolution(repair_from, architecture):
    network = RepairNetwork(replace(architecture, repair_from=repair_from, out_channels=1))
    x = image(16, 24, 8)
    images = network.images(x, network.decoder.features(x, network.encode(x)))
    coarse = {"full": [], "half": [(4, 6)], "pyramid": [(4, 6)]}[repair_from]
    depths = [4 if architecture is THICK_SLICES else 2]
    assert [tuple(each.shape[2:]) for each in images] == [
        (16, 24, 8),
        *((*sides, depth) for sides, depth in zip(coarse, depths, strict=False)),
    ]
    sum(each.square().mean() for each in images).backward()
    # The finest stage of the encoder feeds the next one, so everything learns.
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_masked_channels_of_the_stem_do_not_reach_the_network():
    network = scrambled(FeatureEncoder(ISOTROPIC)).encoder
    keep = torch.ones(1, 4, 1, 1, 1)
    keep[:, 1] = 0
    with torch.inference_mode():
        masked = network(image(8, 8, 8), channel_keep=keep)
        network.stem.convs[0].norm.weight[1] = network.stem.convs[0].norm.bias[1] = 0
        torch.testing.assert_close(masked, network(image(8, 8, 8)))


def test_sides_that_do_not_fit_are_an_error():
    with pytest.raises(Dae3dError, match="multiples of 4 x 4 x 2, not 8 x 8 x 3"):
        Segmenter(THICK_SLICES)(image(8, 8, 3))


# Strides and kernels by nnU-Net's rule


@pytest.mark.parametrize(
    ("roi", "spacing", "strides", "kernels"),
    [
        # The plan of nnU-Net 2.8.1 for the hippocampus of the Decathlon, axes reversed.
        ((40, 56, 40), (1, 1, 1), [(2, 2, 2)] * 3, [(3, 3, 3)] * 4),
        # By hand: slices of 5 mm are not halved until in-plane spacing is above 2.5 mm.
        (
            (64, 64, 16),
            (1, 1, 5),
            [(2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)],
            [(3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3)],
        ),
        # An axis of 8 voxels alone is not halved: it would need 12.
        ((8, 4, 4), (1, 1, 1), [], [(3, 3, 3)]),
        ((12, 4, 4), (1, 1, 1), [(2, 1, 1)], [(3, 3, 3)] * 2),
    ],
)
def test_strides_and_kernels_follow_from_shape_and_spacing(roi, spacing, strides, kernels):
    assert topology(roi, spacing) == (((1, 1, 1), *strides), tuple(kernels))


# Files of nnU-Net and nnssl


@pytest.fixture
def weights(tmp_path):
    """Our file of a pre-training network, and the network."""
    network = scrambled(RepairNetwork(replace(THICK_SLICES, repair_from="pyramid", out_channels=1)))
    info = {
        "task": "pretrain",
        "spacing": [1.0, 1.0, 5.0],
        "modalities": ["ct"],
        "settings": {"roi": [16, 24, 8]},
    }
    save_weights(tmp_path / "ours.safetensors", network.state_dict(), network.architecture, info)
    return tmp_path / "ours.safetensors", network


def export(*words):
    return main(["export", *map(str, words)])


@torch.inference_mode()
def test_nnssl_format_is_a_file_for_the_encoder_of_nnu_net(weights, tmp_path, capsys):
    path, network = weights
    assert export("--weights", path, "--format", "nnssl", "--out", tmp_path / "nnssl.pth") == 0
    assert "--intensity ct=zscore" in capsys.readouterr().out
    file = torch.load(tmp_path / "nnssl.pth", weights_only=True)
    plan = file["nnssl_adaptation_plan"]
    assert plan["architecture_plans"]["arch_class_name"] == NAME
    assert plan["architecture_plans"]["arch_kwargs"] == kwargs(THICK_SLICES)
    assert plan["recommended_downstream_patchsize"] == [8, 24, 16]
    assert plan["pretrain_plan"]["configurations"]["onemmiso"]["spacing"] == [5.0, 1.0, 1.0]
    # As nnU-Net loads it: stem and stages, strictly.
    theirs = library(THICK_SLICES)
    for key, module in (("key_to_stem", theirs.encoder.stem), ("key_to_encoder", theirs.encoder.stages)):
        prefix = plan[key] + "."
        state = {
            n.removeprefix(prefix): t for n, t in file["network_weights"].items() if n.startswith(prefix)
        }
        module.load_state_dict(state)
    for key in plan["keys_to_in_proj"]:
        assert f"{key}.weight" in file["network_weights"]
    x = image(16, 24, 8)
    for one, other in zip(network.encode(x), theirs.encoder(x.permute(0, 1, 4, 3, 2)), strict=True):
        torch.testing.assert_close(one, other.permute(0, 1, 4, 3, 2), rtol=1e-4, atol=1e-5)
    # Our own header is in it, so it is read as what it is.
    again = dae3d.load(tmp_path / "nnssl.pth", task="encoder", show=False)
    torch.testing.assert_close(again(x), network.encode(x))
    assert again.info["modalities"] == ["ct"]


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
@torch.inference_mode()
def test_nnunet_format_is_the_whole_network_of_the_plans(transpose, weights, tmp_path, capsys):
    path, network = weights
    (tmp_path / "plans.json").write_text(json.dumps(plans(THICK_SLICES, transpose)))
    words = ["--weights", path, "--format", "nnunet", "--plans", tmp_path / "plans.json"]
    assert export(*words, "--configuration", "3d_other", "--channels", 2, "--out", tmp_path / "w.pth") == 0
    assert "-p plans -pretrained_weights" in capsys.readouterr().out
    state = torch.load(tmp_path / "w.pth", weights_only=False)["network_weights"]
    axes = [(2, 1, 0)[axis] for axis in transpose]
    theirs = library(replace(THICK_SLICES, in_channels=2), axes)
    # As `-pretrained_weights` checks it: every key but those of segmentation layers, with its shape.
    for name, tensor in theirs.state_dict().items():
        if ".seg_layers." not in name:
            assert state[name].shape == tensor.shape, name
    theirs.load_state_dict(theirs.state_dict() | state)
    x = image(16, 24, 8)
    turned = x.permute(0, 1, *(2 + axis for axis in axes)).repeat(1, 2, 1, 1, 1)
    for one, other in zip(network.encode(x), theirs.encoder(turned), strict=True):
        back = other.permute(0, 1, *(2 + axes.index(axis) for axis in range(3)))
        torch.testing.assert_close(one, back, rtol=1e-4, atol=1e-5)


def test_plans_of_another_network_are_refused_with_what_differs(weights, tmp_path, capsys):
    path, _ = weights
    words = ["--weights", path, "--format", "nnunet", "--out", tmp_path / "w.pth", "--plans"]
    (tmp_path / "plans.json").write_text(json.dumps(plans(ISOTROPIC)))
    assert export(*words, tmp_path / "plans.json") == 1
    error = capsys.readouterr().err
    assert "strides" in error
    assert "1,1,1 2,2,2 2,2,2 instead of 1,1,1 2,2,1 2,2,2" in error
    (tmp_path / "plans.json").write_text("{}")
    assert export(*words, tmp_path / "plans.json") == 1
    assert "not a plans file of nnU-Net: 'configurations' is missing" in capsys.readouterr().err
    assert export(*words, tmp_path / "none.json") == 1
    assert "none.json: No such file" in capsys.readouterr().err
    assert not (tmp_path / "w.pth").exists()


def saved(tmp_path, kind):
    """A file as nnU-Net, nnssl or somebody with `torch.save` writes it, and the library's network."""
    theirs = scrambled(library(THICK_SLICES, deep_supervision=True))
    state = theirs.state_dict()
    file = {
        "nnU-Net": {
            "network_weights": state,
            "init_args": {"plans": plans(THICK_SLICES), "configuration": "3d_other", "fold": 0},
            "trainer_name": "nnUNetTrainer",
        },
        "nnssl": {
            "network_weights": {name: t for name, t in state.items() if name.startswith("encoder.")},
            "nnssl_adaptation_plan": {
                "architecture_plans": {"arch_class_name": NAME, "arch_kwargs": kwargs(THICK_SLICES)}
            },
        },
        "state dict": {"state_dict": {f"module._orig_mod.{name}": t for name, t in state.items()}},
    }[kind]
    torch.save(file, tmp_path / "theirs.pth")
    return tmp_path / "theirs.pth", theirs


@pytest.mark.parametrize("kind", ["nnU-Net", "nnssl", "state dict"])
@torch.inference_mode()
def test_files_of_nnu_net_and_nnssl_are_read(kind, tmp_path):
    path, theirs = saved(tmp_path, kind)
    x = image(16, 24, 8)
    turned = x.permute(0, 1, 4, 3, 2)
    encoder = dae3d.load(path, task="encoder", show=False)
    assert encoder.architecture.stage_strides == THICK_SLICES.stage_strides
    assert encoder.architecture.stage_kernels == THICK_SLICES.stage_kernels
    for one, other in zip(encoder(x), theirs.encoder(turned), strict=True):
        torch.testing.assert_close(one, other.permute(0, 1, 4, 3, 2), rtol=1e-4, atol=1e-5)
    if kind != "nnssl":
        segmenter = dae3d.load(path, show=False)
        assert type(segmenter) is Segmenter
        for one, other in zip(segmenter.all_logits(x), theirs(turned), strict=True):
            torch.testing.assert_close(one, other.permute(0, 1, 4, 3, 2), rtol=1e-4, atol=1e-5)


def test_an_encoder_without_a_plan_is_refused(tmp_path):
    _, theirs = saved(tmp_path, "state dict")
    state = {name: t for name, t in theirs.state_dict().items() if name.startswith("encoder.")}
    torch.save(state, tmp_path / "encoder.pth")
    with pytest.raises(Dae3dError, match="strides are not known; dae3d needs the whole checkpoint"):
        dae3d.load(tmp_path / "encoder.pth", task="encoder")


def test_another_network_of_nnu_net_is_refused_by_its_name(tmp_path):
    path, _ = saved(tmp_path, "nnssl")
    file = torch.load(path, weights_only=True)
    file["nnssl_adaptation_plan"]["architecture_plans"]["arch_class_name"] = "PrimusM"
    torch.save(file, path)
    with pytest.raises(Dae3dError, match="its network is PrimusM"):
        dae3d.load(path, task="encoder")


# Settings


def test_sizes_that_do_not_fit_together_are_refused(tiny_store, tmp_path):
    given = {"data": tiny_store, "out": tmp_path / "run", "backbone": "resenc", "roi": 32}
    with pytest.raises(Dae3dError, match="stage_channels: must have an entry for each of the 4 stages"):
        dae3d.pretrain(**given, stage_channels=[4, 8])
    with pytest.raises(Dae3dError, match="stage_kernels: sides must be odd"):
        dae3d.pretrain(**given, stage_kernels=[2, 2, 2, 2])
    with pytest.raises(Dae3dError, match="stage_strides: the first must be 1"):
        dae3d.pretrain(**given, stage_strides=[2, 2, 2, 2])
    assert not (tmp_path / "run").exists()


def test_strides_are_read_as_words(tmp_path, capsys):
    words = ["pretrain", "--data", "s", "--out", "r", "--backbone", "resenc", "--print-settings"]
    assert main([*words, "--roi", "32", "--stage-strides", "1", "2,2,1", "2"]) == 0
    printed = capsys.readouterr().out
    assert "stage_strides:\n- [1, 1, 1]\n- [2, 2, 1]\n- [2, 2, 2]\n" in printed
    np.testing.assert_equal(main([*words, "--roi", "32", "--stage-strides", "1", "2,2"]), 1)
    assert "stage_strides" in capsys.readouterr().err


@pytest.mark.parametrize("entry", [None, "net", "state_dict", "network_weights", "ema"])
@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "student.", "teacher.", "backbone.", "encoder.", "ema."),
        *("module.student.backbone.", "ema_model.module."),
    ],
)
def test_prefixes_of_trainers_are_read(prefix, entry, tmp_path):
    ours = scrambled(Segmenter(ISOTROPIC))
    state = {prefix + name: tensor for name, tensor in to_nnunet(ours.state_dict(), ISOTROPIC).state.items()}
    torch.save({entry: state, "epoch": 3} if entry else state, tmp_path / "w.pt")
    contents = read_weights(tmp_path / "w.pt")
    assert contents.task == "segmentation"
    assert contents.architecture.stage_channels == ISOTROPIC.stage_channels
    expected = ours.state_dict()
    assert contents.state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in contents.state.items())


def test_of_student_and_teacher_the_teacher_is_taken(tmp_path, caplog):
    networks = {name: scrambled(Segmenter(ISOTROPIC)) for name in ("student", "teacher")}
    torch.nn.init.zeros_(networks["teacher"].encoder.stem.convs[0].conv.weight)
    state = {
        f"{who}.{name}": tensor
        for who, network in networks.items()
        for name, tensor in to_nnunet(network.state_dict(), ISOTROPIC).state.items()
    }
    torch.save(state, tmp_path / "w.pt")
    network = dae3d.load(tmp_path / "w.pt")
    assert not network.encoder.stem.convs[0].conv.weight.any()
    assert "network of teacher. assumed; the file also has student." in caplog.text
