"""Weights on disk: ours come back exactly, published ones are taken whole, and what is neither is named."""

import json
import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dae3d.errors import Dae3dError
from dae3d.models.loading import load
from dae3d.models.network import RepairNetwork
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.weights import save_weights
from published import parity, published_network

pytestmark = pytest.mark.slow

SMALL = SwinArchitecture(
    embed_dim=4, depths=(1, 2, 1, 1), heads=(1, 1, 2, 2), window=3, restore_intensity=False
)
INFO = {"step": 7, "modalities": ["ct", "t1"], "settings": {"lr": 1e-4}, "nothing": None}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return RepairNetwork(SMALL).eval()


@pytest.fixture
def saved(network, tmp_path):
    save_weights(tmp_path / "folder" / "w.safetensors", network.state_dict(), SMALL, INFO)
    return tmp_path / "folder" / "w.safetensors"


# Ours


def test_what_is_saved_comes_back_exactly(network, saved):
    loaded = load(saved)
    assert loaded.info == INFO
    assert loaded.weights == saved
    assert not loaded.training
    assert loaded.architecture == SMALL
    ours, theirs = network.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    learned = [name for name in ours if not name.endswith("relative_position_index")]
    assert loaded.load_report.taken == sorted(learned)
    assert (loaded.load_report.skipped, loaded.load_report.missing) == ({}, [])
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.inference_mode():
        assert torch.equal(network(image), loaded(image))


def test_the_header_says_what_network_it_is_and_how_it_was_trained(saved):
    with safe_open(saved, framework="np") as file:
        header = file.metadata()
        names = file.keys()
    assert header["format"] == "1"
    assert json.loads(header["architecture"]) == json.loads(
        json.dumps({"backbone": "swin-unetr", **asdict(SMALL)})
    )
    assert json.loads(header["info"]) == INFO
    assert not [name for name in names if name.endswith("relative_position_index")]


def test_saving_leaves_nothing_else_and_replaces_what_was_there(network, saved):
    save_weights(saved, network.state_dict(), SMALL, {"step": 8})
    assert load(saved).info == {"step": 8}
    assert list(saved.parent.iterdir()) == [saved]


def test_weights_in_the_memory_layout_of_training_are_saved_as_they_are(network, tmp_path):
    state = network.to(memory_format=torch.channels_last_3d).state_dict()
    save_weights(tmp_path / "w.safetensors", state, SMALL, {})
    loaded = load_file(tmp_path / "w.safetensors")
    for name, tensor in loaded.items():
        assert torch.equal(tensor, state[name]), name


def test_a_run_folder_gives_its_best_weights_and_else_the_last(tiny_run, tmp_path):
    best = load(tiny_run)
    assert best.weights == tiny_run / "weights/best.safetensors"
    assert best.info["step"] == best.info["best_validation"]["step"]
    (tmp_path / "weights").mkdir()
    last = tmp_path / "weights/last.safetensors"
    last.write_bytes((tiny_run / "weights/last.safetensors").read_bytes())
    assert load(tmp_path).weights == last


def test_tensors_that_do_not_fit_are_left_out_with_the_reason(network, tmp_path):
    state = network.state_dict()
    state["decoder.head.conv.conv.weight"] = torch.zeros(14, 4, 1, 1, 1)
    state["decoder.extra"] = torch.zeros(3)
    del state["encoder.mask_token"]
    save_weights(tmp_path / "w.safetensors", state, SMALL, {})
    report = load(tmp_path / "w.safetensors").load_report
    assert report.skipped == {
        "decoder.extra": "the network has no such tensor",
        "decoder.head.conv.conv.weight": "shape (14, 4, 1, 1, 1), the network has (1, 4, 1, 1, 1)",
    }
    assert report.missing == ["encoder.mask_token", "decoder.head.conv.conv.weight"]


# Published


@pytest.fixture(scope="module")
def published_state():
    """All 170 tensors of a published checkpoint."""
    floats = parity.state_dict(0)
    indices = {
        k["name"]: torch.zeros(k["shape"], dtype=torch.int64) for k in parity.KEYS if k["kind"] == "index"
    }
    assert len(floats) + len(indices) == 170
    return floats | indices


@pytest.fixture
def publish(published_state, tmp_path):
    """Writes a published checkpoint; from several processes, its names have a prefix."""
    path = tmp_path / "ckpt_best.pth"

    def write(prefix=""):
        model = {prefix + name: tensor for name, tensor in published_state.items()}
        rest = {"optimizer": {}, "lr_scheduler": {}, "max_accuracy": 0.0, "epoch": 3}
        torch.save({"model": model, **rest}, path)
        return path

    yield write
    path.unlink()  # 250 MB


@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_published_tensor_is_accounted_for(publish, published_state, prefix):
    loaded = load(publish(prefix))
    report = loaded.load_report
    assert report.missing == []
    assert len(report.taken) + len(report.skipped) == len(published_state)
    reasons = {name.removeprefix(prefix): reason for name, reason in report.skipped.items()}
    assert all(name.startswith(prefix) for name in report.skipped)
    indices = {name for name in published_state if name.endswith("relative_position_index")}
    assert {name for name, reason in reasons.items() if reason == "follows from the window size"} == indices
    assert {name for name, reason in reasons.items() if "never uses it" in reason} == {
        "encoder.norm.weight",
        "encoder.norm.bias",
        *(f"encoder{i}.layer.conv3.conv.weight" for i in (2, 3, 4, 10)),
    }
    assert reasons.keys() <= indices | {name for name in reasons if "never uses it" in reasons[name]}

    assert loaded.architecture == SwinArchitecture(
        embed_dim=48,
        depths=(2, 2, 2, 2),
        heads=(3, 6, 12, 24),
        window=7,
        patch_merging="reference",
        restore_intensity=False,
        normalise_skips=False,
        window_edges="reference",
        axes="reference",
    )
    assert loaded.info == {"axes": "reference"}
    assert loaded.architecture.axes == "reference"
    # The indices that the file holds (zeros here) are not taken.
    index = loaded.encoder.stages[0].blocks[0].attn.relative_position_index
    assert len(index.unique()) == 13**3


def test_in_straight_axes_on_demand_it_is_the_network_of_the_parity_check(publish):
    loaded = load(publish(), axes="straight")
    assert loaded.architecture.axes == "straight"
    expected = published_network("straight")
    image = parity.volume(1, (1, 1, 32, 32, 32))
    with torch.inference_mode():
        assert torch.equal(loaded(image), expected(image))


def test_the_published_axes_fit_a_cube_of_twice_the_embedding():
    # Small enough to run: a network whose tokens are as many along an axis as they have channels.
    architecture = SwinArchitecture(embed_dim=32, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1), window=2)
    torch.manual_seed(0)
    straight = RepairNetwork(architecture).eval()
    swapped = RepairNetwork(replace(architecture, axes="reference")).eval()
    swapped.load_state_dict(straight.state_dict())
    image = torch.rand(1, 1, 64, 64, 64)
    with torch.inference_mode():
        tokens = straight.encoder.patch_embed(image)
        np.testing.assert_array_equal(swapped.encoder(image)[0], tokens.numpy().transpose(0, 2, 3, 4, 1))


# Neither


def write_text(path):
    path.write_text("weights")


def write_code(path):
    path.write_bytes(pickle.dumps({"model": Trap(path.with_name("sprung"))}, protocol=2))


def write_torch_code(path):
    torch.save({"model": Trap(path.with_name("sprung"))}, path)


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("w.txt", write_text),
        ("w", write_text),
        ("w.safetensors", write_text),
        ("w.pth", write_text),
        ("code.pth", write_code),
        ("torch-code.pth", write_torch_code),
        ("code.safetensors", write_code),
        ("no-model.pth", lambda path: torch.save({"state_dict": {}}, path)),
        ("list.pth", lambda path: torch.save([1, 2], path)),
        ("other.pth", lambda path: torch.save({"model": {"conv.weight": torch.zeros(3)}}, path)),
        ("no-tensor.pth", lambda path: torch.save({"model": {"encoder.mask_token": 3}}, path)),
        ("other.safetensors", lambda path: save_file({"conv.weight": torch.zeros(3)}, path)),
        ("empty.safetensors", lambda path: path.write_bytes(b"")),
    ],
)
def test_what_holds_no_weights_is_named_and_never_run(tmp_path, name, write):
    path = tmp_path / name
    write(path)
    with pytest.raises(Dae3dError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kept", [0.5, 0.01])
def test_a_file_cut_short_is_named(saved, kept):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(Dae3dError, match="not a valid weights file") as error:
        load(saved)
    assert str(saved) in str(error.value)


def test_a_checkpoint_cut_short_is_named(tmp_path):
    path = tmp_path / "ckpt.pth"
    torch.save({"model": {"encoder.mask_token": torch.zeros(1, 1, 4000)}}, path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(Dae3dError, match="damaged, or not a weights file") as error:
        load(path)
    assert str(path) in str(error.value)


def test_weights_of_another_network_altogether_are_an_error(tmp_path):
    save_weights(tmp_path / "w.safetensors", {"conv.weight": torch.zeros(3)}, SMALL, {})
    with pytest.raises(Dae3dError, match="none of its 1 tensors fits"):
        load(tmp_path / "w.safetensors")


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(Dae3dError, match="no such file or run folder"):
        load(tmp_path / "nothing.safetensors")
    with pytest.raises(Dae3dError, match="no weights/best"):
        load(tmp_path)
