"""Weights on the Hub: addresses, `push`, and `hf://` wherever weights are named, against a hub of our own."""

import sys

import pytest
import torch
import yaml

import dae3d
from dae3d.cli import main
from dae3d.errors import Dae3dError, SettingsError
from dae3d.models.hub import HubAddress, hub_address
from dae3d.models.network import RepairNetwork, Segmenter
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.weights import read_weights, save_weights
from dae3d.training.pretrain_settings import PretrainSettings
from fake_hub import FakeHub
from fine_tuned import ct_scan, fine_tuned

pytestmark = pytest.mark.slow

SMALL = {"embed_dim": 4, "heads": (1, 1, 2, 2), "depths": (1, 1, 1, 1), "window": 2}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of our own, and huggingface_hub imported for it."""
    server = FakeHub()
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)
    for name, value in {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "hf-home"),
        "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    yield server
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        del sys.modules[name]
    server.shutdown()
    server.server_close()


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(3)
    network = RepairNetwork(SwinArchitecture(**SMALL))
    info = {"task": "pretrain", "settings": {"roi": 32, "data": "/secret"}, "modalities": ["ct"]}
    save_weights(tmp_path / "w.safetensors", network.state_dict(), network.architecture, info)
    return tmp_path / "w.safetensors"


# Addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://org/name", HubAddress("org/name")),
        ("hf:/org/name", HubAddress("org/name")),
        ("hf://org/name/", HubAddress("org/name")),
        ("hf://my-org/n.1_x/deep/w.pt", HubAddress("my-org/n.1_x", "", "deep/w.pt")),
        ("hf://org/name@v1.0/w.pt", HubAddress("org/name", "v1.0", "w.pt")),
        ("org/name", None),
        ("./hf:/org/name", None),
        ("/data/hf:/org/name", None),
    ],
)
def test_both_spellings_of_an_address_are_read(text, address):
    assert hub_address(text) == address
    if address:
        assert hub_address(str(address)) == address


@pytest.mark.parametrize("text", ["hf://org", "hf://", "hf:/org/", "hf://org/name@/w", "hf://o r/name"])
def test_what_begins_like_an_address_and_is_none_is_refused(text):
    with pytest.raises(ValueError, match="must be hf://ORG/NAME or"):
        hub_address(text)
    with pytest.raises(SettingsError, match="init: must be hf://ORG/NAME"):
        dae3d.pretrain(data="store", out="run", init=text)
    with pytest.raises(Dae3dError, match="must be hf://ORG/NAME"):
        dae3d.load(text)


@pytest.mark.parametrize("given", ["hf://org/name/w.pt", "hf:/org/name/w.pt"])
def test_settings_leave_an_address_alone(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = PretrainSettings(data="store", out="run", init=given).with_absolute_paths()
    assert settings.init == "hf://org/name/w.pt"
    assert settings.data == tmp_path / "store"
    assert yaml.safe_load(settings.to_yaml())["init"] == "hf://org/name/w.pt"
    assert PretrainSettings._moved(settings.model_dump(mode="json"), tmp_path / "elsewhere")["init"] == (
        "hf://org/name/w.pt"
    )
    local = PretrainSettings(data="store", out="run", init="name/w.pt").with_absolute_paths()
    assert local.init == tmp_path / "name/w.pt"


# Without the library


def test_without_the_extra_one_error_says_what_to_install(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    out = str(tmp_path / "out.safetensors")
    for arguments in (
        ["push", str(weights), "org/name"],
        ["export", "--weights", "hf://org/name", "--out", out],
        ["finetune", "--data", "task.json", "--out", "run", "--init", "hf://org/name"],
    ):
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "pip install 'dae3d[hub]'" in said


# To the Hub and back


@pytest.mark.parametrize("private", [True, False])
def test_what_is_pushed_comes_back(hub, weights, private, capsys):
    address = dae3d.push(weights=weights, repository="org/name", license="mit", private=private)
    assert address == "hf://org/name"
    assert sorted(hub.repositories["org/name"]) == ["README.md", "config.json", "model.safetensors"]
    assert hub.private == {"org/name": private}
    files = hub.repositories["org/name"]
    card = files["README.md"].decode()
    assert "license: mit\n" in card
    assert 'dae3d.load("hf://org/name")' in card
    assert not any(b"/secret" in content for content in files.values())
    ours, theirs = dae3d.load(weights), dae3d.load(address)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    downloads = hub.downloads
    dae3d.load("hf:/org/name/model.safetensors")
    assert hub.downloads == downloads  # it is in the cache


def test_a_second_push_replaces_the_first_and_nothing_else(hub, weights):
    dae3d.push(weights=weights, repository="org/name")
    hub.repositories["org/name"]["notes.txt"] = b"mine"
    dae3d.push(weights=weights, repository="hf://org/name", license="mit")
    assert hub.repositories["org/name"]["notes.txt"] == b"mine"
    assert b"license: mit" in hub.repositories["org/name"]["README.md"]
    hub.repositories["org/other"] = {"README.md": b"mine", ".gitattributes": b""}
    hub.private["org/other"] = False
    with pytest.raises(Dae3dError, match=r"org/other has README\.md that dae3d did not write"):
        dae3d.push(weights=weights, repository="org/other")
    assert hub.repositories["org/other"]["README.md"] == b"mine"
    with pytest.raises(Dae3dError, match="private: org/name exists and is public"):
        dae3d.push(weights=weights, repository="org/name", private=True)


def test_every_command_takes_an_address(hub, tmp_path, tiny_store, tiny_settings, weights):
    tuned = fine_tuned(tmp_path / "tuned.safetensors")
    dae3d.push(weights=weights, repository="org/pretrained")
    dae3d.push(weights=tuned, repository="org/tuned")
    scan = ct_scan(tmp_path / "scan.nii.gz")
    here, there = (
        dae3d.predict(scans=[scan], weights=[each], out=tmp_path / name)[0].read_bytes()
        for each, name in ((tuned, "a"), ("hf://org/tuned", "b"))
    )
    assert here == there
    given = {"scans": [scan], "modality": "ct", "weights": "hf://org/pretrained"}
    assert len(dae3d.embed(**given, out=tmp_path / "e.npz").features) == 1
    assert main(["export", "--weights", "hf://org/tuned", "--out", str(tmp_path / "w.safetensors")]) == 0
    assert isinstance(dae3d.load(tmp_path / "w.safetensors"), Segmenter)
    settings = {name: value for name, value in tiny_settings.items() if name != "window"}
    run = dae3d.pretrain(
        data=tiny_store, out=tmp_path / "run", init="hf://org/pretrained", max_steps=2, **settings
    )
    assert read_weights(run).info["settings"]["init"] == "hf://org/pretrained"
    # Resuming needs neither the Hub nor the file.
    hub.repositories.clear()
    dae3d.pretrain(out=run, resume=True, max_steps=3)
    assert read_weights(run / "weights/last.safetensors").info["step"] == 3


def test_errors_of_the_hub_name_the_address(hub, weights, monkeypatch):
    with pytest.raises(Dae3dError, match="hf://org/none: no such repository, or no access"):
        dae3d.load("hf://org/none")
    hub.repositories["org/name"] = {"a.pt": b"", "README.md": b""}
    hub.private["org/name"] = False
    with pytest.raises(
        Dae3dError,
        match=r"hf://org/name: the repository has no model\.safetensors; it has a\.pt, README\.md.*name/FILE",
    ):
        dae3d.load("hf://org/name")
    with pytest.raises(Dae3dError, match="not a weights file"):
        dae3d.load("hf://org/name/README.md")
    for name in ("org", "org/name/file", "a/b@c"):
        with pytest.raises(SettingsError, match="repository: must be"):
            dae3d.push(weights=weights, repository=name)


def test_without_a_connection_the_address_is_named(hub, monkeypatch):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(Dae3dError, match=r"hf://org/name: cannot be downloaded and is not in the cache"):
        dae3d.load("hf://org/name")
