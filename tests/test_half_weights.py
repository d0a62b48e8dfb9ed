"""Weights of a network that repairs from half resolution: for other tasks, and in other layouts."""

import logging

import pytest
import torch
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR

import dae3d
from dae3d.models.load_report import part_of
from dae3d.models.network import RepairNetwork, Segmenter
from dae3d.models.swin_unetr import ReferencePatchMerging, SwinArchitecture
from dae3d.models.weights import save_weights

pytestmark = pytest.mark.slow

SIZES = {"embed_dim": 12, "depths": (1, 2, 1, 1), "heads": (1, 1, 2, 2), "window": 2}
ABOVE = ("decoder.skips.0.", "decoder.ups.4.")
REASON = "pre-training ended at half resolution; layers above it start from random values"


def made(path, **changes):
    torch.manual_seed(0)
    network = RepairNetwork(SwinArchitecture(**SIZES, repair_from="half", **changes)).eval()
    save_weights(path, network.state_dict(), network.architecture, {"task": "pretrain"})
    return network


@pytest.fixture
def half(tmp_path):
    return made(tmp_path / "half.safetensors")


def image():
    return torch.rand(1, 1, 64, 32, 32, generator=torch.Generator().manual_seed(1))


def test_repair_heads_are_heads():
    assert part_of("decoder.repair_heads.1.conv.conv.weight") == "head"
    assert part_of("decoder.ups.3.transp_conv.conv.weight") == "decoder"


@torch.inference_mode()
def test_it_comes_back_whole(half, tmp_path):
    loaded = dae3d.load(tmp_path / "half.safetensors")
    assert loaded.architecture == half.architecture
    assert not loaded.load_report.missing
    assert torch.equal(loaded(image()), half(image()))


def test_what_a_segmentation_network_has_above_is_said_once_and_not_warned_of(half, tmp_path, capsys, caplog):
    with caplog.at_level(logging.INFO):
        loaded = dae3d.load(tmp_path / "half.safetensors", task="segmentation", classes=3)
    assert isinstance(loaded, Segmenter)
    report = loaded.load_report
    assert report.expected
    assert {name for name in report.missing if part_of(name) != "head"} == report.expected.keys()
    assert all(name.startswith(ABOVE) for name in report.expected)
    theirs, ours = loaded.state_dict(), half.state_dict()
    shared = [name for name in theirs if name in ours and part_of(name) != "head"]
    assert all(torch.equal(theirs[name], ours[name]) for name in shared)
    assert set(report.skipped.values()) == {
        "the head was trained for pretrain, not for segmentation",
        "only pre-training masks tokens",
    }
    printed = capsys.readouterr().out
    assert printed.count(REASON) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_else_is_missing_is_warned_of(half, tmp_path, caplog):
    state = {n: t for n, t in half.state_dict().items() if not n.startswith("decoder.ups.3.")}
    save_weights(tmp_path / "less.safetensors", state, half.architecture, {"task": "pretrain"})
    dae3d.load(tmp_path / "less.safetensors", task="segmentation", classes=3)
    assert "tensors of the decoder keep random values" in caplog.text
    assert "decoder.ups.3." in caplog.text
    assert "decoder.ups.4." not in caplog.text


def test_the_encoder_alone_says_nothing_of_the_decoder(half, tmp_path, capsys, caplog):
    dae3d.load(tmp_path / "half.safetensors", task="segmentation", classes=3, transfer="encoder")
    assert REASON not in capsys.readouterr().out
    assert caplog.text == ""


def test_fine_tuning_takes_both_halves_and_says_so_once(
    tiny_store, tiny_settings, tiny_finetune, tmp_path, capsys, caplog
):
    once = {"max_steps": 1, "save_every": 1, "val_every": 1}
    settings = tiny_settings | once | {"repair_from": "half", "batch_size": 2}
    run = dae3d.pretrain(data=tiny_store, out=tmp_path / "run", **settings)
    capsys.readouterr()
    caplog.clear()
    dae3d.finetune(init=run, transfer="both", out=tmp_path / "fine", **(tiny_finetune | once))
    assert capsys.readouterr().out.count(REASON) == 1
    assert "keep random values" not in caplog.text


# Other layouts


@torch.inference_mode()
def test_in_the_published_layout_the_encoder_comes_back_and_the_rest_is_said(half, tmp_path, capsys, caplog):
    out = dae3d.export(weights=tmp_path / "half.safetensors", format="reference", out=tmp_path / "ckpt.pth")
    printed = capsys.readouterr().out
    assert "left out (this layout has no such tensor): decoder.repair_heads.0" in printed
    assert "ends at half resolution" in printed
    assert "strict=False" in printed
    assert "multiplies its output" not in printed
    names = torch.load(out, weights_only=True)["model"]
    assert not [name for name in names if name.startswith(("encoder1.", "decoder1.", "out."))]
    assert {"encoder2.layer.conv1.conv.weight", "decoder2.transp_conv.conv.weight"} <= names.keys()

    loaded = dae3d.load(out)
    assert loaded.architecture == half.architecture
    assert {part_of(name) for name in loaded.load_report.missing} == {"head"}
    assert "the file has no heads" in caplog.text
    for ours, theirs in zip(loaded.encode(image()), half.encode(image()), strict=True):
        assert torch.equal(ours, theirs)
    dae3d.load(out, task="segmentation", classes=2)


@pytest.mark.parametrize("merging", ["straight", "reference"])
@pytest.mark.parametrize("patch_embed", ["linear", "conv"])
def test_in_monai_all_but_the_last_block_and_the_head_loads(patch_embed, merging, tmp_path, capsys):
    made(tmp_path / "half.safetensors", patch_embed=patch_embed, patch_merging=merging)
    out = dae3d.export(weights=tmp_path / "half.safetensors", format="monai", out=tmp_path / "monai.pt")
    printed = capsys.readouterr().out
    assert "ends at half resolution" in printed
    assert "weights_only=True), strict=False)" in printed
    network = MonaiSwinUNETR(
        in_channels=1,
        out_channels=1,
        feature_size=12,
        depths=(1, 2, 1, 1),
        num_heads=(1, 1, 2, 2),
        window_size=2,
        downsample="mergingv2" if merging == "straight" else ReferencePatchMerging,
    )
    state = torch.load(out, weights_only=True)
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert unexpected == []
    above = {name.split(".")[0] for name in missing}
    assert above == {"encoder1", "decoder1", "out"} | ({"swinViT"} if patch_embed == "conv" else set())
    embedding = [name for name in missing if name.startswith("swinViT.")]
    assert all(name.startswith("swinViT.patch_embed.") for name in embedding)


def test_our_own_format_keeps_everything(half, tmp_path, capsys):
    out = dae3d.export(weights=tmp_path / "half.safetensors", out=tmp_path / "again.safetensors")
    assert "left out" not in capsys.readouterr().out
    assert not dae3d.load(out).load_report.missing
