"""Loading weights for other tasks, from other layouts, for other inputs: what is taken, what comes out."""

import json
from dataclasses import replace

import pytest
import torch
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR
from safetensors.torch import save_file

import dae3d
from dae3d.errors import Dae3dError
from dae3d.models.loading import load_into
from dae3d.models.network import FeatureEncoder, RepairNetwork, Segmenter
from dae3d.models.swin_unetr import ReferencePatchMerging, SwinArchitecture
from dae3d.models.weights import read_weights, save_weights

pytestmark = pytest.mark.slow

SIZES = {"embed_dim": 12, "depths": (1, 2, 1, 1), "heads": (1, 1, 2, 2), "window": 2}
HEAD = ["decoder.head.conv.conv.weight", "decoder.head.conv.conv.bias"]


def made(kind, path, info, **changes):
    """A network with random weights, saved."""
    torch.manual_seed(0)
    network = kind(SwinArchitecture(**(SIZES | changes))).eval()
    save_weights(path, network.state_dict(), network.architecture, info)
    return network


@pytest.fixture
def pretrained(tmp_path):
    return made(RepairNetwork, tmp_path / "pretrained.safetensors", {})


@pytest.fixture
def segmenter(tmp_path):
    return made(Segmenter, tmp_path / "segmenter.safetensors", {"task": "segmentation"}, out_channels=3)


def image(channels=1, side=32):
    return torch.rand(2, channels, side, 32, 32, generator=torch.Generator().manual_seed(1))


def learned(network):
    return {n: t for n, t in network.state_dict().items() if not n.endswith("relative_position_index")}


def same(network, other, names):
    return all(torch.equal(network.state_dict()[name], other.state_dict()[name]) for name in names)


# Tasks


@torch.inference_mode()
def test_a_file_is_loaded_for_what_it_was_trained_for(pretrained, segmenter, tmp_path):
    repairing = dae3d.load(str(tmp_path / "pretrained.safetensors"))
    assert torch.equal(repairing(image()), pretrained(image()))
    segmenting = dae3d.load(tmp_path / "segmenter.safetensors")
    assert torch.equal(segmenting(image()), segmenter(image()))
    assert segmenting(image()).shape == (2, 3, 32, 32, 32)
    assert not segmenting.training
    assert segmenting.load_report.taken == sorted(learned(segmenter))


@torch.inference_mode()
def test_the_encoder_gives_its_five_maps_normalised_over_channels(pretrained, tmp_path):
    encoder = dae3d.load(tmp_path / "pretrained.safetensors", task="encoder")
    maps = encoder(image())
    assert [tuple(m.shape) for m in maps] == [(2, 12 * 2**i, *(3 * [16 // 2**i])) for i in range(5)]
    for ours, raw in zip(maps, pretrained.encoder(image()), strict=True):
        raw = raw.double()
        mean = raw.mean(dim=1, keepdim=True)
        variance = (raw - mean).square().mean(dim=1, keepdim=True)
        torch.testing.assert_close(ours.double(), (raw - mean) / (variance + 1e-5).sqrt(), rtol=0, atol=1e-5)
    report = encoder.load_report
    assert report.missing == []
    assert "decoder.head.conv.conv.bias" in report.skipped
    assert report.skipped["encoder.mask_token"] == "only pre-training masks tokens"


@pytest.mark.parametrize("classes", [1, 5])
def test_the_head_of_pre_training_is_never_one_for_segmentation(pretrained, tmp_path, classes):
    network = dae3d.load(tmp_path / "pretrained.safetensors", "segmentation", classes=classes)
    report = network.load_report
    assert report.missing == HEAD
    assert {report.skipped[name] for name in HEAD} == {
        "the head was trained for pretrain, not for segmentation"
    }
    assert set(report.taken) == set(learned(pretrained)) - {*HEAD, "encoder.mask_token"}
    assert same(network, pretrained, report.taken)
    assert network(image()).shape[1] == classes


def test_nor_the_other_way_round(segmenter, tmp_path):
    network = dae3d.load(tmp_path / "segmenter.safetensors", "pretrain")
    assert sorted(network.load_report.missing) == sorted([*HEAD, "encoder.mask_token"])
    assert network(image()).shape == image().shape


def test_a_head_for_other_classes_is_left_out_and_said(segmenter, tmp_path):
    report = dae3d.load(tmp_path / "segmenter.safetensors", "segmentation", classes=4).load_report
    assert report.missing == HEAD
    assert report.skipped == {
        "decoder.head.conv.conv.weight": "shape (3, 12, 1, 1, 1), the network has (4, 12, 1, 1, 1)",
        "decoder.head.conv.conv.bias": "shape (3,), the network has (4,)",
    }


def test_classes_have_to_be_known(pretrained, tmp_path):
    with pytest.raises(Dae3dError, match=r"give the number of classes.*fine-tune first"):
        dae3d.load(tmp_path / "pretrained.safetensors", "segmentation")
    with pytest.raises(Dae3dError, match="classes: must be 1 or more, not 0"):
        dae3d.load(tmp_path / "pretrained.safetensors", "segmentation", classes=0)
    with pytest.raises(Dae3dError, match="classes: only for"):
        dae3d.load(tmp_path / "pretrained.safetensors", "encoder", classes=2)


@pytest.mark.parametrize("given", [{"task": "segment"}, {"transfer": "none"}, {"axes": "swapped"}])
def test_a_wrong_word_is_named_with_the_right_ones(given, pretrained, tmp_path):
    name, value = next(iter(given.items()))
    with pytest.raises(Dae3dError, match=f"{name}: must be one of .*, not '{value}'"):
        dae3d.load(tmp_path / "pretrained.safetensors", **given)


# Halves


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_one_half_is_taken_and_the_other_is_not(half, segmenter, tmp_path):
    torch.manual_seed(7)
    network = dae3d.load(tmp_path / "segmenter.safetensors", transfer=half)
    names = {name for name in learned(segmenter) if name.startswith(half)}
    report = network.load_report
    assert set(report.taken) == names
    assert set(report.missing) == set(learned(segmenter)) - names
    assert set(report.skipped.values()) == {f"only the {half} is transferred"}
    assert same(network, segmenter, names)
    weights = [name for name in report.missing if name.endswith("conv.weight")]
    assert not any(same(network, segmenter, [name]) for name in weights)
    assert all(name in names for name in HEAD) == (half == "decoder")


def test_taking_nothing_is_an_error(pretrained, tmp_path):
    with pytest.raises(Dae3dError, match=r"pretrained.safetensors: none of its \d+ tensors fits the network"):
        dae3d.load(tmp_path / "pretrained.safetensors", "encoder", transfer="decoder")


# Channels


@pytest.mark.parametrize("patch_embed", ["conv", "linear"])
@torch.inference_mode()
def test_weights_of_one_channel_see_an_image_repeated_in_several_as_they_saw_it(patch_embed, tmp_path):
    path = tmp_path / "w.safetensors"
    one = made(Segmenter, path, {"task": "segmentation"}, out_channels=3, patch_embed=patch_embed)
    four = dae3d.load(path, channels=4)
    embedding = "patch_embed.conv1.conv" if patch_embed == "conv" else "patch_embed"
    assert set(four.load_report.adapted) == {
        f"encoder.{embedding}.weight",
        "decoder.skips.0.layer.conv1.conv.weight",
        "decoder.skips.0.layer.conv3.conv.weight",
    }
    assert set(four.load_report.adapted.values()) == {"repeated for 4 input channels, divided by 4"}
    assert four.architecture.in_channels == 4
    single, repeated = image(), image().repeat(1, 4, 1, 1, 1)
    first, first_of_four = (
        network.encoder.patch_embed.conv1 if patch_embed == "conv" else network.encoder.patch_embed
        for network in (one, four)
    )
    torch.testing.assert_close(first_of_four(repeated), first(single), rtol=0, atol=1e-5)
    torch.testing.assert_close(four(repeated), one(single), rtol=0, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
@torch.inference_mode()
def test_weights_of_several_channels_see_an_image_repeated_in_another_number_as_they_saw_it(
    channels, tmp_path
):
    sizes = {"in_channels": 2, "out_channels": 3}
    two = made(Segmenter, tmp_path / "w.safetensors", {"task": "segmentation"}, **sizes)
    other = dae3d.load(tmp_path / "w.safetensors", channels=channels)
    assert other.load_report.missing == []
    assert set(other.load_report.adapted.values()) == {
        f"2 input channels summed, repeated for {channels} input channels, divided by {channels}"
    }
    before, after = image().repeat(1, 2, 1, 1, 1), image().repeat(1, channels, 1, 1, 1)
    torch.testing.assert_close(other(after), two(before), rtol=0, atol=1e-4)


# What is said


def test_every_load_prints_what_became_of_the_tensors(pretrained, tmp_path, capsys):
    network = dae3d.load(tmp_path / "pretrained.safetensors", "segmentation", classes=2, channels=2)
    said = capsys.readouterr().out
    counts = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line}
    # 6 tensors of the patch embedding, 13 of each of 5 blocks, 3 of each of 4 mergings; 9 blocks and 5
    # transposed convolutions in the decoder.
    assert counts["encoder"] == [str(6 + 5 * 13 + 4 * 3 - 1), "1", "0"]
    assert counts["decoder"] == [str(3 + 4 * 2 + 5 * 4 - 2), "2", "0"]
    assert counts["head"] == ["0", "0", "2"]
    assert "adapted 3 (repeated for 2 input channels" in said
    assert "skipped 2 (the head was trained for pretrain, not for segmentation): decoder.head" in said
    assert "missing 2 (keep their random values): decoder.head.conv.conv.weight" in said
    assert str(network.load_report).split() == said.split()
    dae3d.load(tmp_path / "pretrained.safetensors", show=False)
    assert capsys.readouterr().out == ""


def test_weights_for_another_patch_merging_are_warned_of(pretrained, tmp_path, caplog):
    network = Segmenter(SwinArchitecture(**SIZES, patch_merging="reference"))
    load_into(network, read_weights(tmp_path / "pretrained.safetensors"), "decoder")
    assert not caplog.records
    load_into(network, read_weights(tmp_path / "pretrained.safetensors"))
    assert 'trained with patch_merging "straight"; with "reference"' in caplog.text


# Files


def test_headers_of_before_there_were_patch_embeddings_to_choose_from(tmp_path):
    network = made(RepairNetwork, tmp_path / "new.safetensors", {})
    fields = {
        **{name: list(value) if isinstance(value, tuple) else value for name, value in SIZES.items()},
        "patch_merging": "straight",
        "restore_intensity": True,
        "in_channels": 1,
        "out_channels": 1,
    }
    header = {"format": "1", "architecture": json.dumps(fields), "info": json.dumps({"step": 3})}
    save_file(learned(network), tmp_path / "old.safetensors", metadata=header)
    loaded = dae3d.load(tmp_path / "old.safetensors")
    earlier = {"normalise_skips": False, "window_edges": "reference"}
    assert loaded.architecture == replace(network.architecture, **earlier)
    assert loaded.load_report.missing == []


def monai_network():
    """MONAI's own, with the patch merging that it had when its weights were published."""
    torch.manual_seed(0)
    sizes = {"depths": SIZES["depths"], "num_heads": SIZES["heads"], "window_size": SIZES["window"]}
    return MonaiSwinUNETR(1, 3, feature_size=12, **sizes, downsample=ReferencePatchMerging).eval()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("entry", ["state_dict", None])
@torch.inference_mode()
def test_a_state_dict_of_monai_gives_the_logits_that_monai_gives(prefix, entry, tmp_path, caplog):
    network = monai_network()
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    torch.save({entry: state} if entry else state, tmp_path / "monai.pth")
    loaded = dae3d.load(tmp_path / "monai.pth")
    assert isinstance(loaded, Segmenter)
    assert loaded.architecture == SwinArchitecture(
        **SIZES,
        patch_merging="reference",
        restore_intensity=False,
        normalise_skips=False,
        out_channels=3,
        patch_embed="linear",
        window_edges="reference",
    )
    large = image(side=64)  # MONAI takes no bottleneck of one voxel
    torch.testing.assert_close(loaded(large), network(large), rtol=0, atol=1e-5)
    assert loaded.load_report.missing == []
    assert set(loaded.load_report.skipped.values()) == {"follows from the window size"}
    assert 'patch merging "reference" assumed' in caplog.text


def swin_vit_file(path):
    """The layout of `model_swinvit.pt`, from several processes and with the heads of its pre-training."""
    encoder = monai_network().swinViT.state_dict()
    state = {"module." + name.replace(".linear", ".fc"): tensor for name, tensor in encoder.items()} | {
        "module.norm.weight": torch.ones(192),
        "module.rotation_head.weight": torch.zeros(4, 192),
        "module.contrastive_head.bias": torch.zeros(512),
        "module.conv.0.weight": torch.zeros(192, 96, 3, 3, 3),
    }
    torch.save({"state_dict": state, "epoch": 3, "optimizer": {}}, path)
    return path


@torch.inference_mode()
def test_the_published_encoder_of_monai_gives_the_features_that_monai_gives(tmp_path):
    path = swin_vit_file(tmp_path / "model_swinvit.pt")
    encoder = dae3d.load(path)
    assert isinstance(encoder, FeatureEncoder)
    monai = MonaiSwinUNETR(
        1,
        3,
        feature_size=12,
        depths=SIZES["depths"],
        num_heads=SIZES["heads"],
        window_size=2,
        downsample=ReferencePatchMerging,
    ).eval()
    monai.load_from(torch.load(path, weights_only=True))
    for ours, theirs in zip(encoder(image()), monai.swinViT(image(), normalize=True), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    skipped = encoder.load_report.skipped
    heads = ["module.rotation_head.weight", "module.contrastive_head.bias", "module.conv.0.weight"]
    assert {skipped[name] for name in heads} == {"belongs to the heads of its own pre-training"}
    assert skipped["module.norm.weight"] == "the published network never uses it"
    assert encoder.load_report.missing == []


def test_the_published_encoder_of_monai_starts_a_segmentation_network(tmp_path):
    network = dae3d.load(swin_vit_file(tmp_path / "w.pt"), "segmentation", classes=2, channels=2)
    assert list(network.load_report.adapted) == ["encoder.patch_embed.weight"]
    assert {name.split(".")[0] for name in network.load_report.missing} == {"decoder"}
    assert network(image(2)).shape == (2, 2, 32, 32, 32)
    with pytest.raises(Dae3dError, match="give the number of classes"):
        dae3d.load(tmp_path / "w.pt", "segmentation")
