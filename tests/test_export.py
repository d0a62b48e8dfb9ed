"""Weights in other layouts: what is written, what MONAI makes of it, and that ours come back exactly."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import dae3d
from dae3d.cli import main
from dae3d.errors import Dae3dError
from dae3d.exporting.swin import to_reference
from dae3d.models.load_report import LoadReport
from dae3d.models.network import FeatureEncoder, RepairNetwork, Segmenter
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.weights import save_weights
from published import PARITY

pytestmark = pytest.mark.slow

SIZES = {"embed_dim": 12, "depths": (1, 2, 1, 1), "heads": (1, 1, 2, 2), "window": 2}
INFO = {
    RepairNetwork: {"step": 5, "settings": {"lr": 1e-4}},
    Segmenter: {"task": "segmentation", "recipe": {"labels": {"1": "liver"}}},
    FeatureEncoder: {"task": "encoder"},
}


def saved(kind, path, **changes):
    torch.manual_seed(0)
    network = kind(SwinArchitecture(**(SIZES | changes))).eval()
    save_weights(path, network.state_dict(), network.architecture, INFO[kind])
    return network


def image(channels=1):
    return torch.rand(1, channels, 64, 32, 32, generator=torch.Generator().manual_seed(1))


# Ours


def test_safetensors_are_the_same_again(tmp_path, capsys):
    saved(Segmenter, tmp_path / "a.safetensors", out_channels=3, deep_supervision=True)
    assert (
        main(
            ["export", "--weights", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "b.safetensors")]
        )
        == 0
    )
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    first, again = (dae3d.load(tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    assert (first.info, first.architecture) == (again.info, again.architecture)
    assert f"{len(a)} tensors, format safetensors" in capsys.readouterr().out


# Published


@pytest.mark.parametrize(
    ("kind", "classes", "keys"), [(RepairNetwork, 1, "keys.json"), (Segmenter, 14, "finetune_keys.json")]
)
def test_the_published_layout_has_every_name_and_shape_of_the_published_files(kind, classes, keys):
    # Shapes alone: on this device tensors have no values.
    with torch.device("meta"):
        network = kind(SwinArchitecture(out_channels=classes))
    network.load_report = LoadReport(taken=list(network.state_dict()), skipped={}, missing=[])
    exported = to_reference(network)
    published = {key["name"]: key["shape"] for key in json.loads((PARITY / keys).read_text())}
    assert {name: list(tensor.shape) for name, tensor in exported.state.items()} == published
    assert exported.left_out == {}


@pytest.mark.parametrize("kind", [RepairNetwork, Segmenter])
@pytest.mark.parametrize("changes", [{}, {"patch_embed": "linear"}, {"patch_merging": "reference"}])
@torch.inference_mode()
def test_our_weights_come_back_exactly_from_the_published_layout(kind, changes, tmp_path):
    network = saved(kind, tmp_path / "w.safetensors", **changes)
    out = dae3d.export(weights=tmp_path / "w.safetensors", format="reference", out=tmp_path / "ckpt.pth")
    loaded = dae3d.load(out)
    assert isinstance(loaded, kind)
    assert (loaded.architecture, loaded.info) == (network.architecture, INFO[kind])
    assert torch.equal(loaded(image()), network(image()))
    assert loaded.load_report.missing == []
    assert set(loaded.load_report.skipped.values()) == {
        "follows from the window size",
        "the published network never uses it",
    }
    assert sorted(torch.load(out, weights_only=True)) == [
        "dae3d",
        "model" if kind is RepairNetwork else "state_dict",
    ]


def test_another_reader_of_the_published_layout_finds_a_published_checkpoint(tmp_path):
    published = {
        "patch_merging": "reference",
        "restore_intensity": False,
        "normalise_skips": False,
        "window_edges": "reference",
    }
    network = saved(RepairNetwork, tmp_path / "w.safetensors", **published)
    dae3d.export(weights=tmp_path / "w.safetensors", format="reference", out=tmp_path / "ckpt.pth")
    model = torch.load(tmp_path / "ckpt.pth", weights_only=True)["model"]
    torch.save({"model": model}, tmp_path / "bare.pth")
    loaded = dae3d.load(tmp_path / "bare.pth")
    # Nothing says that this one was trained with straight axes.
    assert loaded.architecture == replace(network.architecture, axes="reference")
    assert loaded.info == {"axes": "reference"}


def test_what_the_published_network_does_otherwise_is_said(tmp_path, capsys):
    saved(RepairNetwork, tmp_path / "w.safetensors")
    dae3d.export(weights=tmp_path / "w.safetensors", format="reference", out=tmp_path / "ckpt.pth")
    said = capsys.readouterr().out
    for words in (
        "merges other octants",
        "multiplies its output by the standard deviation",
        "does not normalise the decoder's features",
        "swaps depth and channels",
        "multiples of 32 there is no padding",
    ):
        assert words in said


def test_heads_for_deep_supervision_stay_behind(tmp_path, capsys):
    network = saved(Segmenter, tmp_path / "w.safetensors", out_channels=2, deep_supervision=True)
    dae3d.export(weights=tmp_path / "w.safetensors", format="reference", out=tmp_path / "ckpt.pth")
    said = capsys.readouterr().out
    assert "left out (this layout has no such tensor): auxiliary_heads.0.conv.conv.weight" in said
    loaded = dae3d.load(tmp_path / "ckpt.pth")
    assert loaded.load_report.missing == []
    with torch.inference_mode():
        assert torch.equal(loaded(image()), network(image()))


# MONAI


def in_monai(said):
    """The network that the printed lines of Python make."""
    lines = said.split("In MONAI:\n")[1].splitlines()
    names = {"torch": torch}
    exec("\n".join(line.strip() for line in lines), names)
    return names["network"].eval()


@pytest.mark.parametrize("merging", ["straight", "reference"])
@torch.inference_mode()
def test_a_network_with_monai_s_patch_embedding_gives_the_same_logits_in_monai(merging, tmp_path, capsys):
    sizes = {"in_channels": 2, "out_channels": 3, "patch_embed": "linear", "patch_merging": merging}
    network = saved(Segmenter, tmp_path / "w.safetensors", **sizes)
    dae3d.export(weights=tmp_path / "w.safetensors", format="monai", out=tmp_path / "monai.pt")
    said = capsys.readouterr().out
    assert "left out" not in said
    logits = network(image(2))
    torch.testing.assert_close(in_monai(said)(image(2)), logits, rtol=0, atol=1e-5)
    loaded = dae3d.load(tmp_path / "monai.pt")
    assert (loaded.architecture, loaded.info) == (network.architecture, INFO[Segmenter])
    assert torch.equal(loaded(image(2)), logits)


@torch.inference_mode()
def test_pre_training_weights_repair_in_monai_but_for_the_intensity(tmp_path, capsys):
    network = saved(RepairNetwork, tmp_path / "w.safetensors", patch_embed="linear")
    dae3d.export(weights=tmp_path / "w.safetensors", format="monai", out=tmp_path / "monai.pt")
    said = capsys.readouterr().out
    assert "left out (this layout has no such tensor): encoder.mask_token" in said
    by_hand = in_monai(said)(image()) * image().std() + image().mean()
    torch.testing.assert_close(by_hand, network(image()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("window", "side", "alike"),
    [
        # Grids of 32, 16, 8 and 4 tokens, then twice these, then half.
        (4, (64, 64, 64), True),
        (4, (64, 128, 64), True),
        (4, (64, 64, 32), False),
        # 48, 24, 12, 6; then 32, 16, 8, 4, which are padded to 33, 18, 9, 6.
        (3, (96, 96, 96), True),
        (3, (64, 64, 64), False),
        # Below the window, grids are cut.
        (6, (64, 64, 64), False),
        (6, (96, 96, 96), True),
    ],
)
@torch.inference_mode()
def test_where_exact_edges_are_the_same_in_monai_is_said(window, side, alike, tmp_path, capsys):
    sizes = {"patch_embed": "linear", "window": window, "out_channels": 2}
    volume = torch.rand(1, 1, *side, generator=torch.Generator().manual_seed(1))
    for edges in ("exact", "reference"):
        network = saved(Segmenter, tmp_path / "w.safetensors", window_edges=edges, **sizes)
        # Biases that differ, as they do after training.
        for name, table in network.named_parameters():
            if name.endswith("bias_table"):
                table.normal_(generator=torch.Generator().manual_seed(2))
        save_weights(tmp_path / "w.safetensors", network.state_dict(), network.architecture, INFO[Segmenter])
        dae3d.export(weights=tmp_path / "w.safetensors", format="monai", out=tmp_path / "monai.pt")
        said = capsys.readouterr().out
        told = f"sides are all multiples of {'64' if window == 4 else '96'} there is no padding" in said
        assert told == (edges == "exact")
        difference = (in_monai(said)(volume) - network(volume)).abs().max()
        assert (difference < 1e-4) == (alike or edges == "reference")


def test_a_patch_embedding_that_monai_has_not_is_left_out_and_said(tmp_path, capsys):
    network = saved(Segmenter, tmp_path / "w.safetensors")
    dae3d.export(weights=tmp_path / "w.safetensors", format="monai", out=tmp_path / "monai.pt")
    said = capsys.readouterr().out
    embedding = [name for name in network.state_dict() if name.startswith("encoder.patch_embed.")]
    assert f"left out (MONAI's patch embedding is a single 2^3 convolution): {', '.join(embedding)}" in said
    state = torch.load(tmp_path / "monai.pt", weights_only=True)
    missing, unexpected = in_monai(said).load_state_dict(state, strict=False)
    assert missing == ["swinViT.patch_embed.proj.weight", "swinViT.patch_embed.proj.bias"]
    assert unexpected == []


# What cannot be


def test_what_cannot_be_written_is_said(tmp_path):
    saved(Segmenter, tmp_path / "odd.safetensors", embed_dim=4)
    saved(FeatureEncoder, tmp_path / "encoder.safetensors")
    weights, out = tmp_path / "odd.safetensors", tmp_path / "out.pt"
    with pytest.raises(Dae3dError, match="multiple of 12, but it is 4"):
        dae3d.export(weights=weights, format="monai", out=out)
    for layout in ("monai", "reference"):
        with pytest.raises(Dae3dError, match=r"encoder.safetensors: these are weights of an encoder only"):
            dae3d.export(weights=tmp_path / "encoder.safetensors", format=layout, out=out)
    with pytest.raises(Dae3dError, match=r"out: must end in \.safetensors, not 'out\.pt'"):
        dae3d.export(weights=weights, out=out)
    with pytest.raises(Dae3dError, match=r"out: must end in \.pt or \.pth"):
        dae3d.export(weights=weights, format="monai", out=tmp_path / "out.safetensors")
    assert not out.exists()
