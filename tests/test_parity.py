"""The network gives the published network's numbers from the same weights (see parity/README.md)."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from dae3d.models.reference_layout import from_reference
from dae3d.models.swin_unetr import Architecture, SwinUNETR

PARITY = Path(__file__).parent / "parity"
EXPECTED = np.load(PARITY / "expected.npz")
spec = importlib.util.spec_from_file_location("parity_weights", PARITY / "weights.py")
parity = importlib.util.module_from_spec(spec)
spec.loader.exec_module(parity)


def published_network(axes):
    network = SwinUNETR(Architecture(patch_merging="reference", restore_intensity=False), axes=axes).eval()
    state, _ = from_reference(parity.state_dict(0))
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("relative_position_index") for name in missing)
    return network


@pytest.fixture(scope="module", params=["straight", "reference"])
def outputs(request):
    network = published_network(request.param)
    image = parity.volume(0)
    with torch.inference_mode():
        hidden = network.encoder(image)
        reconstruction = network.decoder(image, hidden)
    prefix = {"straight": "pretrain", "reference": "pretrain_reference_axes"}[request.param]
    return prefix, image, hidden, reconstruction


def check(tensor, name):
    assert list(tensor.shape) == EXPECTED[f"{name}/shape"].tolist()
    values = tensor.double().flatten()
    sampled = values[torch.from_numpy(EXPECTED[f"{name}/index"])].numpy()
    np.testing.assert_allclose(sampled, EXPECTED[f"{name}/value"], atol=1e-4, rtol=0)
    assert values.mean().item() == pytest.approx(float(EXPECTED[f"{name}/mean"]), abs=1e-4)
    assert values.std().item() == pytest.approx(float(EXPECTED[f"{name}/std"]), abs=1e-4)


def test_hidden_states_and_reconstruction(outputs):
    prefix, image, hidden, reconstruction = outputs
    for i, feature in enumerate(hidden):
        check(feature, f"{prefix}/hidden{i}")
    check(reconstruction, f"{prefix}/reconstruction")
    l1 = torch.nn.functional.l1_loss(reconstruction, image).item()
    assert l1 == pytest.approx(float(EXPECTED[f"{prefix}/l1"]), abs=1e-4)


def test_relative_position_index_is_ij_ordered():
    index = published_network("straight").encoder.stages[0].blocks[0].attn.relative_position_index
    coordinates = np.stack(np.unravel_index(np.arange(343), (7, 7, 7)))
    difference = coordinates[:, :, None] - coordinates[:, None, :] + 6
    np.testing.assert_array_equal(index.numpy(), difference[0] * 169 + difference[1] * 13 + difference[2])
