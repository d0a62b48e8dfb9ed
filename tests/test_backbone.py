"""Backbones: one of somebody else's, added from outside by a line, and those of the package."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import nibabel
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

import dae3d
from conftest import TINY, smooth_volume
from dae3d.errors import SettingsError
from dae3d.models.architecture import Architecture
from dae3d.models.backbones import BACKBONES
from dae3d.models.network import FeatureEncoder, RepairNetwork, Segmenter
from dae3d.models.swin_unetr import SwinSettings
from dae3d.settings import Settings, resolve
from dae3d.training.optimiser import parameter_groups
from dae3d.training.pretrain_settings import PretrainSettings


class Encoder(nn.Module):
    """Five convolutions of stride 2."""

    def __init__(self, width, in_channels):
        super().__init__()
        widths = [in_channels, *(width * 2**level for level in range(5))]
        self.stages = nn.ModuleList(nn.Conv3d(a, b, 3, 2, 1) for a, b in itertools.pairwise(widths))

    def forward(self, image, channel_keep=None, token_mask=None):
        maps, x = [], image
        for number, stage in enumerate(self.stages):
            x = stage(x).relu()
            if number == 0 and channel_keep is not None:
                x = x * channel_keep
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """Each feature map, and a head on the finest that gives 2^3 voxels a place."""

    def __init__(self, width, out_channels):
        super().__init__()
        self.voxels = nn.ConvTranspose3d(width, out_channels, 2, 2)
        self.head = nn.Sequential(self.voxels)

    def features(self, image, hidden):
        return list(hidden)

    def images(self, features):
        return [self.voxels(features[0])]


@dataclass(frozen=True)
class Plain(Architecture):
    backbone: ClassVar[str] = "plain"
    title: ClassVar[str] = "Five convolutions"
    settings: ClassVar[type[Settings]] = Settings
    width: int = 4

    multiple = (32, 32, 32)
    level_strides = tuple((stride,) * 3 for stride in (2, 4, 8, 16, 32))
    decoder_strides = level_strides
    image_parameters = ("encoder.stages.0.weight",)
    above_half = ()
    units = (nn.Conv3d,)

    @property
    def level_channels(self):
        return tuple(self.width * 2**level for level in range(5))

    @property
    def decoder_channels(self):
        return self.level_channels

    def encoder(self, checkpoint_activations, repairs):
        return Encoder(self.width, self.in_channels)

    def decoder(self, checkpoint_activations, repairs):
        return Decoder(self.width, self.out_channels)

    def auxiliary_heads(self):
        return nn.ModuleList()

    def distance(self, name):
        return 5 - int(name.split(".")[2]) if name.startswith("encoder.") else 0


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setitem(BACKBONES, "plain", Plain)


@pytest.mark.parametrize("name", list(BACKBONES))
@pytest.mark.parametrize("repair_from", ["full", "half", "pyramid"])
def test_what_all_backbones_share_is_as_set(name, repair_from, tmp_path):
    """A repair from half the resolution has fewer parameters; one from all of it ends in one head."""
    sizes = {"swin-unetr": {"embed_dim": 4, "heads": (1, 1, 2, 2)}, "resenc": {"size": "small"}}[name]
    given = {"data": tmp_path, "out": tmp_path / "run", "backbone": name, "roi": 32, **sizes}
    settings = resolve(PretrainSettings, {**given, "repair_from": repair_from, "restore_intensity": False})
    architecture = settings.architecture_of(settings.roi, in_channels=2)
    assert architecture.repair_from == repair_from
    assert not architecture.restore_intensity
    assert architecture.in_channels == 2
    network = RepairNetwork(architecture)
    assert hasattr(network.decoder, "repair_heads") == (repair_from != "full")
    image = torch.rand(1, 2, 32, 32, 32, requires_grad=True)
    maps = network.encode(image)
    others = [torch.rand_like(each) if number == 0 else each for number, each in enumerate(maps)]
    sees_full_resolution = not torch.equal(network.decode(image, maps), network.decode(image, others))
    assert sees_full_resolution == (repair_from == "full" or name == "swin-unetr")


@pytest.mark.parametrize("disruption", ["all", "mae", "varied"])
def test_it_is_pre_trained_with_every_loss_and_loaded_for_every_task(
    plain, tiny_store, tiny_settings, tmp_path, disruption
):
    given = {"max_steps": 2, "save_every": 1, "log_every": 1, "batch_size": 4, "disruption": disruption}
    given |= {
        name: value
        for name, value in tiny_settings.items()
        if name not in (*SwinSettings.model_fields, *given)
    }
    run = dae3d.pretrain(data=tiny_store, out=tmp_path / "run", backbone="plain", **given)
    network = dae3d.load(run)
    assert type(network) is RepairNetwork
    assert network.architecture == Plain(repair_from=PretrainSettings.model_fields["repair_from"].default)
    image = torch.rand(1, 1, 32, 64, 32)
    with torch.inference_mode():
        assert network(image).shape == image.shape
        segmenter = dae3d.load(run, task="segmentation", classes=3, transfer="encoder")
        assert type(segmenter) is Segmenter
        assert segmenter(image).shape == (1, 3, 32, 64, 32)
        encoder = dae3d.load(run, task="encoder")
        assert type(encoder) is FeatureEncoder
        for one, other in zip(encoder(image), network.encode(image), strict=True):
            np.testing.assert_array_equal(one, other)
    scales = [group["scale"] for group in parameter_groups(network, 0.0, layer_decay=0.5)]
    assert sorted(set(scales)) == [0.5**5, 0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]
    figures = dae3d.check(run=run, device="cpu").figures
    assert figures.channels == {f"level{level}": 4 * 2**level for level in range(5)}


# The backbones of the package, through every command

SHAPED = {
    "swin-unetr": {
        "embed_dim": 4,
        "heads": (1, 1, 2, 2),
        "depths": (1, 1, 1, 1),
        "window": 2,
        "roi": (64, 32, 32),
    },
    "resenc": {
        "stage_channels": (4, 6, 8),
        "stage_strides": ((1, 1, 1), (2, 2, 1), (2, 2, 2)),
        "stage_kernels": ((3, 3, 1), (3, 3, 1), (3, 3, 3)),
        "stage_blocks": (1, 1, 1),
        "roi": (24, 32, 16),
    },
}


@pytest.fixture(scope="module", params=list(BACKBONES))
def runs(request, tiny_store, tiny_finetune, tmp_path_factory):
    """A pre-training of a backbone with every loss, and a fine-tuning from it."""
    folder = tmp_path_factory.mktemp(request.param)
    shaped = {"backbone": request.param, **SHAPED[request.param], "accelerator": "cpu", "workers": 0}
    often = {"save_every": 1, "log_every": 1, "val_every": 2}
    pretrained = dae3d.pretrain(
        data=tiny_store, out=folder / "run", max_steps=3, batch_size=4, ema_decay=0.5, **shaped, **often
    )
    given = {name: value for name, value in tiny_finetune.items() if name not in TINY}
    settings = {"roi": shaped["roi"], "max_steps": 2, "batch_size": 2, "deep_supervision": True}
    given |= settings | often | {"accelerator": "cpu", "workers": 0}
    return request.param, pretrained, dae3d.finetune(init=pretrained, out=folder / "finetuned", **given)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A T1-like scan of 44 x 40 x 36 voxels of 1 mm."""
    path = tmp_path_factory.mktemp("scan") / "sub-9_T1w.nii.gz"
    voxels = np.round(smooth_volume(9, (44, 40, 36)) * 500 + 1).astype(np.int16)
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(path)
    return path


def test_every_command_works_with_every_backbone(runs, scan, tmp_path):
    backbone, pretrained, finetuned = runs
    for run in (pretrained, finetuned):
        settings = yaml.safe_load((run / "settings.yaml").read_text())
        assert settings["backbone"] == backbone
        # What the file records is complete: no size of the network is missing.
        assert None not in [settings[name] for name in SHAPED[backbone]]
    losses = (pretrained / "metrics.csv").read_text()
    for name in ("l1", "contrastive", "dense", "features"):
        assert f",train/{name}," in losses
    assert dae3d.load(pretrained, show=False).architecture.backbone == backbone
    rows = dae3d.reconstruct(scans=[scan], weights=pretrained, out=tmp_path / "repaired", device="cpu")
    assert {row["image"] for row in rows} == {"disrupted", "repaired"}
    assert nibabel.load(tmp_path / "repaired/sub-9_T1w/repaired.nii.gz").shape == (44, 40, 36)
    found = dae3d.embed(scans=[scan], weights=pretrained, out=tmp_path / "e.npz", device="cpu")
    widths = {"swin-unetr": 16 * 4, "resenc": 8}
    assert found.features.shape == (1, widths[backbone])
    [made] = dae3d.predict(scans=[scan], weights=[finetuned], out=tmp_path / "out", device="cpu")
    assert nibabel.load(made).shape == (44, 40, 36)
    again = dae3d.export(weights=finetuned, out=tmp_path / "w.safetensors")
    image = torch.rand(1, 1, 32, 64, 32)
    with torch.inference_mode():
        assert torch.equal(dae3d.load(again, show=False)(image), dae3d.load(finetuned, show=False)(image))
    check = dae3d.check(run=pretrained, device="cpu")
    levels = len(dae3d.load(pretrained, show=False).architecture.level_channels)
    assert list(check.figures.channels) == [f"level{level}" for level in range(levels)]
    assert check.figures.share.keys() == {*check.figures.channels, "all"}
    page = dae3d.report(run=pretrained).read_text()
    assert f"{levels - 1} ({widths[backbone]})" in page


def test_a_run_of_every_backbone_is_resumed(runs, tiny_store):
    _, pretrained, finetuned = runs
    for run, command in ((pretrained, dae3d.pretrain), (finetuned, dae3d.finetune)):
        before = len((run / "metrics.csv").read_text().splitlines())
        assert command(out=run, resume=True, max_steps=4) == run
        assert len((run / "metrics.csv").read_text().splitlines()) > before
    other = next(name for name in BACKBONES if name != runs[0])
    with pytest.raises(SettingsError, match=r"^backbone: .*started with|^roi: "):
        dae3d.pretrain(out=pretrained, resume=True, max_steps=5, backbone=other)


def test_weights_of_another_backbone_are_refused(runs, tiny_finetune, tmp_path):
    backbone, pretrained, _ = runs
    other = next(name for name in BACKBONES if name != backbone)
    given = {name: value for name, value in tiny_finetune.items() if name not in TINY}
    with pytest.raises(SettingsError, match=rf"^backbone: .* has {backbone}, not {other}"):
        dae3d.finetune(init=pretrained, out=tmp_path / "run", backbone=other, **given)


def test_pre_training_goes_on_from_weights(runs, tiny_store, tmp_path, capsys):
    backbone, pretrained, _ = runs
    still = {"max_steps": 1, "lr": 1e-12, "warmup_steps": 0, "warmup_lr": 0, "min_lr": 0, "weight_decay": 0}
    once = {"save_every": 1, "log_every": 1, "accelerator": "cpu", "workers": 0, "batch_size": 4}
    given = {"data": tiny_store, "init": pretrained, "roi": SHAPED[backbone]["roi"], **still, **once}
    run = dae3d.pretrain(out=tmp_path / "run", **given)
    assert "pretrain weights into a network for pretrain" in capsys.readouterr().out
    before = load_file(pretrained / "weights/best.safetensors")
    after = load_file(run / "weights/last.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)
    # What the weights were trained on stays known.
    assert len(dae3d.load(run, show=False).info["trained_on"]) == 2


def test_settings_of_another_backbone_are_refused_unless_a_config_has_them(tiny_store, tmp_path):
    given = {"data": tiny_store, "out": tmp_path / "run"}
    with pytest.raises(
        SettingsError, match=r"^size: is a setting of backbone resenc, but the network is swin"
    ):
        resolve(PretrainSettings, given | {"size": "small"})
    with pytest.raises(SettingsError, match=r"^embed_dim: is a setting of backbone swin-unetr, but"):
        resolve(PretrainSettings, given | {"backbone": "resenc", "embed_dim": 12})
    for name, value, with_ in (
        ("normalise_skips", False, {"backbone": "resenc", "roi": 32}),
        ("channel_mask_per_token", True, {"local_mask": "blocks"}),
    ):
        with pytest.raises(SettingsError, match=rf"^{name}: has no effect with"):
            resolve(PretrainSettings, given | with_ | {name: value})
    made = resolve(PretrainSettings, given | {"backbone": "resenc", "config": "small-cpu"})
    assert (made.backbone, made.embed_dim, made.roi) == ("resenc", None, (64, 64, 64))


def test_a_shipped_config_fits_every_backbone(runs, tiny_finetune, tmp_path):
    _, pretrained, _ = runs
    given = {name: value for name, value in tiny_finetune.items() if name not in TINY}
    given |= {
        "max_steps": 1,
        "warmup_steps": 1,
        "save_every": 1,
        "val_cases": 1,
        "log_every": 1,
        "workers": 0,
        "roi": 32,
    }
    run = dae3d.finetune(config="hippocampus", init=pretrained, out=tmp_path / "run", **given)
    assert (run / "weights/last.safetensors").is_file()


def test_a_size_unlike_that_of_the_weights_is_an_error(runs, tiny_finetune, tmp_path):
    backbone, pretrained, _ = runs
    given = {name: value for name, value in tiny_finetune.items() if name not in TINY}
    given |= {"init": pretrained, "out": tmp_path / "run"}
    name, value = {"swin-unetr": ("depths", (2, 1, 1, 1)), "resenc": ("stage_blocks", (2, 2, 2))}[backbone]
    with pytest.raises(SettingsError, match=rf"^{name}: the network of --init .* has .*, not "):
        dae3d.finetune(**given, **{name: value})
    if backbone == "resenc":
        with pytest.raises(SettingsError, match=r"^axes: backbone resenc has only straight axes"):
            dae3d.finetune(**given, axes="reference")
    name, value = {"swin-unetr": ("size", "small"), "resenc": ("window", 3)}[backbone]
    with pytest.raises(SettingsError, match=rf"^{name}: is a setting of backbone .*, but .* of --init "):
        dae3d.finetune(**given, **{name: value})
