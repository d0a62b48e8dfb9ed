"""What runs within nnU-Net, without nnU-Net; docs/nnunet.md has runs with it."""

from dataclasses import replace

import pytest
import torch

import dae3d
from dae3d.cli import main
from dae3d.models.network import RepairNetwork
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.weights import save_weights
from dae3d.nnunet.network import build, load_weights, with_our_plan

SMALL = SwinArchitecture(embed_dim=4, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=2, repair_from="half")
PLANS = {
    "transpose_forward": [0, 1, 2],
    "configurations": {
        "3d_fullres": {"patch_size": [40, 56, 30], "batch_size": 2},
        "3d_cascade": {"inherits_from": "3d_fullres"},
    },
}


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    network = RepairNetwork(SMALL)
    save_weights(tmp_path / "w.safetensors", network.state_dict(), SMALL, {"task": "pretrain"})
    return tmp_path / "w.safetensors"


@pytest.mark.parametrize("configuration", ["3d_fullres", "3d_cascade"])
def test_the_plan_has_the_network_and_a_patch_that_fits_it(configuration, weights):
    made = with_our_plan(PLANS, configuration, weights)
    assert made["configurations"][configuration]["patch_size"] == [64, 64, 32]
    assert PLANS["configurations"]["3d_fullres"]["patch_size"] == [40, 56, 30]
    # Plans of a trained model stay as they are, wherever its first weights are.
    assert with_our_plan(made, configuration, weights.with_name("gone")) is made


@pytest.mark.parametrize(("transpose", "axes"), [((0, 1, 2), (2, 1, 0)), ((2, 0, 1), (0, 2, 1))])
@torch.inference_mode()
def test_the_network_sees_images_in_nnu_nets_order_of_axes(transpose, axes, weights):
    plans = with_our_plan({**PLANS, "transpose_forward": list(transpose)}, "3d_fullres", weights)
    network = build(plans, channels=2, classes=3).eval()
    report = load_weights(network, weights)
    assert "pretrain weights into a network for segmentation, encoder only" in str(report)
    assert all(name.startswith("decoder.") for name in report.missing)
    # Two equal channels are as one, for the encoder of the file.
    ours = torch.rand(1, 1, 32, 64, 32)
    turned = ours.permute(0, 1, *(2 + axis for axis in axes)).repeat(1, 2, 1, 1, 1)
    encoder = dae3d.load(weights, task="encoder", show=False)
    theirs = network.segmenter.encoder(ours.repeat(1, 2, 1, 1, 1))
    for one, other in zip(
        encoder(ours), network.segmenter.architecture.passed_on(theirs, False), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    logits = network(turned)
    assert logits.shape == (1, 3, *turned.shape[2:])
    back = logits.permute(0, 1, *(2 + axes.index(axis) for axis in range(3)))
    torch.testing.assert_close(back, network.segmenter(ours.repeat(1, 2, 1, 1, 1)))


def test_export_writes_the_trainer_and_the_weights_that_it_loads(weights, tmp_path, capsys):
    words = [
        "export",
        "--weights",
        str(weights),
        "--format",
        "nnunet-trainer",
        "--out",
        str(tmp_path / "trainers"),
    ]
    assert main(words) == 0
    assert "nnUNet_extTrainer=" in capsys.readouterr().out
    compile((tmp_path / "trainers/nnUNetTrainerDae3d.py").read_text(), "trainer", "exec")
    again = dae3d.load(tmp_path / "trainers/dae3d-weights.safetensors", show=False)
    assert again.architecture == replace(SMALL)
    assert main(words) == 0
    (tmp_path / "trainers/nnUNetTrainerDae3d.py").write_text("# mine\n")
    assert main(words) == 1
    assert "was not written by dae3d" in capsys.readouterr().err
    assert (tmp_path / "trainers/nnUNetTrainerDae3d.py").read_text() == "# mine\n"
