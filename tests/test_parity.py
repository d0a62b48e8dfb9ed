"""The networks give the published networks' numbers from the same weights (see parity/README.md)."""

import json

import numpy as np
import pytest
import torch

import dae3d
from dae3d.models.swin_unetr.architecture import normalised
from dae3d.models.swin_unetr.layouts import FINETUNING
from published import PARITY, parity

pytestmark = pytest.mark.slow

EXPECTED = np.load(PARITY / "expected.npz")
FINETUNE_SHAPES = {
    key["name"]: key["shape"] for key in json.loads((PARITY / "finetune_keys.json").read_text())
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A published checkpoint, without the relative position indices."""
    path = tmp_path_factory.mktemp("published") / "ckpt_best.pth"
    torch.save({"model": parity.state_dict(0), "epoch": 3}, path)
    yield path
    path.unlink()  # 250 MB


@pytest.fixture(scope="module")
def image():
    return parity.volume(0)


@pytest.fixture(scope="module")
def straight(checkpoint, image):
    """The published network with its tokens left in place, and its hidden states."""
    network = dae3d.load(checkpoint, axes="straight")
    with torch.inference_mode():
        return network, network.encoder(image)


def check(tensor, name):
    assert list(tensor.shape) == EXPECTED[f"{name}/shape"].tolist()
    values = tensor.double().flatten()
    sampled = values[torch.from_numpy(EXPECTED[f"{name}/index"])].numpy()
    np.testing.assert_allclose(sampled, EXPECTED[f"{name}/value"], atol=1e-4, rtol=0)
    assert values.mean().item() == pytest.approx(float(EXPECTED[f"{name}/mean"]), abs=1e-4)
    assert values.std().item() == pytest.approx(float(EXPECTED[f"{name}/std"]), abs=1e-4)


def check_repair(network, hidden, image, prefix):
    for i, feature in enumerate(hidden):
        check(feature, f"{prefix}/hidden{i}")
    with torch.inference_mode():
        reconstruction = network.decoder(image, hidden)
    check(reconstruction, f"{prefix}/reconstruction")
    l1 = torch.nn.functional.l1_loss(reconstruction, image).item()
    assert l1 == pytest.approx(float(EXPECTED[f"{prefix}/l1"]), abs=1e-4)


def test_pre_training_with_tokens_left_in_place(straight, image):
    check_repair(*straight, image, "pretrain")


def test_pre_training_as_published_is_the_default_for_published_weights(checkpoint, image):
    network = dae3d.load(checkpoint)
    with torch.inference_mode():
        hidden = network.encoder(image)
    check_repair(network, hidden, image, "pretrain_reference_axes")


@pytest.mark.parametrize("transfer", ["both", "encoder", "decoder"])
def test_fine_tuning(transfer, checkpoint, straight, image):
    network = dae3d.load(checkpoint, "segmentation", classes=14, transfer=transfer, axes="straight")
    report, prefix = network.load_report, f"finetune_{transfer}"
    taken = {FINETUNING.theirs(name) for name in report.taken}
    never_used = {f"encoder{i}.layer.conv3.conv.weight" for i in (2, 3, 4, 10)}
    assert taken | (never_used if transfer != "encoder" else set()) == set(EXPECTED[f"{prefix}/loaded_keys"])

    missing = {name: FINETUNING.theirs(name) for name in report.missing}
    rest = {
        name: parity.tensor(f"finetune.{theirs}", FINETUNE_SHAPES[theirs], 0)
        for name, theirs in missing.items()
    }
    network.load_state_dict(rest, strict=False)
    published, hidden = straight
    with torch.inference_mode():
        if transfer == "decoder":
            hidden = network.encoder(image)
        else:
            for name, tensor in network.encoder.state_dict().items():
                assert torch.equal(tensor, published.encoder.state_dict()[name]), name
        features = normalised(hidden)
        logits = network.decoder(image, features)
    for i, feature in enumerate(features):
        check(feature, f"{prefix}/hidden{i}")
    check(logits, f"{prefix}/logits")


def test_relative_position_index_is_ij_ordered(straight):
    index = straight[0].encoder.stages[0].blocks[0].attn.relative_position_index
    coordinates = np.stack(np.unravel_index(np.arange(343), (7, 7, 7)))
    difference = coordinates[:, :, None] - coordinates[:, None, :] + 6
    np.testing.assert_array_equal(index.numpy(), difference[0] * 169 + difference[1] * 13 + difference[2])
