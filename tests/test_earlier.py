"""Run folders and weight files made before there were several backbones and crops with three sides.

`earlier/` has their settings, the headers of their weights, and the names and shapes of the tensors.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import dae3d
from dae3d.models.network import RepairNetwork, Segmenter
from dae3d.models.weights import read_weights
from dae3d.settings import resolve
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.training.pretrain_settings import PretrainSettings

EARLIER = Path(__file__).parent / "earlier"
KINDS = {"pretrain": (PretrainSettings, RepairNetwork), "finetune": (FinetuneSettings, Segmenter)}


@pytest.fixture(params=KINDS)
def run(request, tmp_path):
    """A run folder with random weights."""
    made = json.loads((EARLIER / f"{request.param}.json").read_text())
    header = {
        name: value if name == "format" else json.dumps(value) for name, value in made["header"].items()
    }
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) * 0.1 for name, shape in made["tensors"].items()}
    (tmp_path / "made/weights").mkdir(parents=True)
    save_file(tensors, tmp_path / "made/weights/best.safetensors", metadata=header)
    shutil.copy(EARLIER / f"{request.param}.yaml", tmp_path / "made/settings.yaml")
    return request.param, tmp_path / "made", tensors


def test_weights_load_completely(run):
    kind, folder, tensors = run
    network = dae3d.load(folder, show=False)
    assert type(network) is KINDS[kind][1]
    assert network.load_report.missing == []
    assert network.load_report.skipped == {}
    for name, tensor in tensors.items():
        assert torch.equal(network.state_dict()[name], tensor)
    with torch.inference_mode():
        assert network(torch.rand(1, 1, 32, 64, 32)).shape[2:] == (32, 64, 32)


def test_settings_of_a_run_mean_what_they_meant(run):
    kind, folder, _ = run
    then = yaml.safe_load((folder / "settings.yaml").read_text())
    found = resolve(KINDS[kind][0], {"out": folder, "resume": True})
    now = yaml.safe_load(found.to_yaml())
    added = {"backbone": "swin-unetr", "size": None, "init": None, "monai_merging": None}
    added |= dict.fromkeys(
        now.keys() & {f"stage_{name}" for name in ("channels", "blocks", "strides", "kernels")}
    )
    changed = {"roi": [32, 32, 32], "out": str(folder), "resume": True}
    of_kind = {
        "pretrain": {"transfer": "both", "local_mask": "channels", "leave_out": None},
        "finetune": {"val_cases": None},
    }
    assert now == added | of_kind[kind] | then | changed


def test_training_goes_on_from_the_weights(run, tiny_store, tiny_finetune, tmp_path):
    _, folder, _ = run
    once = {
        "max_steps": 1,
        "save_every": 1,
        "log_every": 1,
        "val_every": 5,
        "accelerator": "cpu",
        "workers": 0,
    }
    sizes = ("embed_dim", "heads", "depths", "window")
    given = {name: value for name, value in tiny_finetune.items() if name not in sizes}
    made = dae3d.finetune(**given | once | {"init": folder, "out": tmp_path / "fine"})
    assert dae3d.load(made, show=False).architecture.embed_dim == 4


def test_a_residual_encoder_with_the_whole_decoder_goes_on_with_it(tiny_store, tiny_settings, tmp_path):
    """Its first runs had it although their settings say otherwise."""
    swin = ("embed_dim", "heads", "depths", "window")
    given = {name: value for name, value in tiny_settings.items() if name not in swin}
    given |= {"data": tiny_store, "backbone": "resenc", "size": "small", "save_every": 2}
    run = dae3d.pretrain(out=tmp_path / "run", max_steps=2, repair_from="full", **given)
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    (run / "settings.yaml").write_text(yaml.safe_dump(settings | {"repair_from": "pyramid"}))
    before = read_weights(run / "weights/last.safetensors")
    dae3d.pretrain(out=run, resume=True, max_steps=4)
    after = read_weights(run / "weights/last.safetensors")
    assert after.info["step"] == 4
    assert after.architecture == before.architecture
    assert after.state.keys() == before.state.keys()
