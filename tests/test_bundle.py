"""MONAI bundles: MONAI runs them, and gives the labels that `predict` gives."""

import json

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.bundle import run as run_bundle

import dae3d
from conftest import smooth_volume
from dae3d.errors import Dae3dError
from dae3d.exporting.bundle import FILES
from dae3d.models.network import RepairNetwork, Segmenter
from dae3d.models.resenc import ResEncArchitecture
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.weights import read_weights, save_weights
from fine_tuned import LABELS, recipe_of
from scan_files import write_nifti

pytestmark = pytest.mark.slow

SIZES = {"embed_dim": 12, "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "window": 2}
MONAI = SwinArchitecture(**SIZES, patch_embed="linear")
# With windows of 32^3 voxels the last stage has one token, which norms of PyTorch refuse.
WIDE = {"roi": (64, 32, 32)}
OURS = SwinArchitecture(**SIZES)
RESENC = ResEncArchitecture(
    stage_channels=(4, 8, 12),
    stage_strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    stage_kernels=((3, 3, 3),) * 3,
    stage_blocks=(1, 1, 1),
    decoder_convolutions=(1, 1),
)


def weights_of(path, architecture, **fields):
    """Weights of a network whose labels follow the intensities of the scan, in blobs."""
    recipe = recipe_of(**fields)
    channels, classes = len(recipe.modalities), len(recipe.label_values)
    torch.manual_seed(0)
    fields = {name: getattr(architecture, name) for name in architecture.own()}
    network = Segmenter(type(architecture)(**fields, in_channels=channels, out_channels=classes))
    for name, tensor in network.decoder.head.named_parameters():
        torch.nn.init.normal_(tensor, std=1.0) if name.endswith("weight") else torch.nn.init.zeros_(tensor)
    info = {
        "task": "segmentation",
        "recipe": recipe.model_dump(mode="json"),
        "settings": {"roi": 32, "data": "/zebrafinch/task.json"},
        "data": [{"modality": "ct", "dataset": "organs", "train": 2, "val": 1, "voxels": 8}],
        "step": 5,
    }
    save_weights(path, network.state_dict(), network.architecture, info)
    return path


def scan(path, seed=3, shape=(70, 32, 30)):
    """A scan of 1.2 x 1 x 1.5 mm whose axes point left, posterior and superior."""
    voxels = np.round(smooth_volume(seed, shape) * 2000 - 1000).astype(np.int16)
    return write_nifti(path, voxels, np.diag([-1.2, -1.0, 1.5, 1.0]))


def in_monai(bundle, scans, out):
    """The label maps that MONAI makes of the scans in a folder, by file name."""
    run_bundle(
        config_file=str(bundle / "configs/inference.json"),
        bundle_root=str(bundle),
        dataset_dir=str(scans),
        output_dir=str(out),
    )
    return {path.name: nibabel.load(path) for path in out.glob("*.nii.gz")}


def share_of_equal_voxels(one, other):
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)
    return (np.asarray(one.dataobj) == np.asarray(other.dataobj)).mean()


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        (MONAI, WIDE | {"spacing": (1.5, 1.5, 1.5), "intensity": {"ct": "window:-800:800"}}),
        (MONAI, WIDE | {"intensity": {"ct": "zscore"}, "labels": {0: "background", 1: "organ"}}),
        (OURS, {"intensity": {"ct": "percentiles:0.5:99.5"}}),
        (RESENC, {"spacing": (1.5, 1.5, 1.5)}),
    ],
    ids=["MONAI's network", "z-scores", "our network", "resenc"],
)
def test_monai_gives_the_labels_of_predict(architecture, fields, tmp_path):
    weights = weights_of(tmp_path / "w.safetensors", architecture, **fields)
    bundle = dae3d.export(weights=weights, format="monai-bundle", out=tmp_path / "bundle")
    scans = tmp_path / "scans"
    scans.mkdir()
    scan(scans / "a.nii.gz")
    (expected,) = dae3d.predict(scans=[scans / "a.nii.gz"], weights=[weights], out=tmp_path / "ours")
    expected = nibabel.load(expected)
    (found,) = in_monai(bundle, scans, tmp_path / "theirs").values()
    counts = np.unique(np.asarray(expected.dataobj), return_counts=True)[1]
    assert len(counts) > 1
    assert sorted(counts)[-2] > 0.05 * counts.sum()
    assert share_of_equal_voxels(found, expected) >= 0.999
    target = json.loads((bundle / "configs/inference.json").read_text())["network_def"]["_target_"]
    assert target == ("SwinUNETR" if architecture is MONAI else "dae3d.load")
    packages = json.loads((bundle / "configs/metadata.json").read_text())["required_packages_version"]
    assert ("dae3d" in packages) == (architecture is not MONAI)
    # dae3d reads the bundle too.
    again = dae3d.predict(scans=[scans / "a.nii.gz"], weights=[bundle], out=tmp_path / "again")
    assert share_of_equal_voxels(nibabel.load(again[0]), expected) == 1


def test_several_channels_are_files_numbered_as_in_nnu_net(tmp_path):
    fields = {"modalities": ("t1", "t2"), **WIDE}
    weights = weights_of(tmp_path / "w.safetensors", MONAI, **fields)
    bundle = dae3d.export(weights=weights, format="monai-bundle", out=tmp_path / "bundle")
    scans = tmp_path / "scans"
    scans.mkdir()
    files = [scan(scans / f"a_000{channel}.nii.gz", seed=channel + 3) for channel in (0, 1)]
    (expected,) = dae3d.predict(
        scans=[tuple(files)], weights=[weights], out=tmp_path / "ours", modality=["t1", "t2"]
    )
    found = in_monai(bundle, scans, tmp_path / "theirs")
    assert list(found) == ["a_0000_seg.nii.gz"]
    assert share_of_equal_voxels(found["a_0000_seg.nii.gz"], nibabel.load(expected)) >= 0.999


def test_a_bundle_has_what_monai_asks_for(tmp_path):
    weights = weights_of(tmp_path / "w.safetensors", MONAI, **WIDE)
    given = {"format": "monai-bundle", "license": "cc-by-4.0"}
    bundle = dae3d.export(weights=weights, out=tmp_path / "bundle", **given)
    found = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert found == {*FILES, ".dae3d-monai-bundle"}
    assert "cc-by-4.0" in (bundle / "LICENSE").read_text()
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    fields = {
        "version",
        "monai_version",
        "pytorch_version",
        "numpy_version",
        "required_packages_version",
        "task",
        "description",
        "authors",
        "copyright",
        "network_data_format",
    }
    assert fields <= metadata.keys()
    outputs = metadata["network_data_format"]["outputs"]["pred"]
    assert outputs["channel_def"] == {str(i): name for i, name in enumerate(LABELS.values())}
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [64, 32, 32]
    workflow = ConfigWorkflow(
        str(bundle / "configs/inference.json"), workflow_type="infer", bundle_root=str(bundle)
    )
    workflow.initialize()
    assert workflow.version == metadata["version"]
    contents = b"".join(path.read_bytes() for path in bundle.rglob("*") if path.is_file())
    for word in (b"zebrafinch", str(tmp_path).encode()):
        assert word not in contents
    state = torch.load(bundle / "models/model.pt", weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    assert workflow.check_properties() == []
    scans = tmp_path / "scans"
    scans.mkdir()
    scan(scans / "a.nii.gz")
    given = {"bundle_root": str(bundle), "dataset_dir": str(scans), "output_dir": str(tmp_path / "evaluated")}
    config = str(bundle / "configs/inference.json")
    run_bundle(config_file=config, run_id="evaluate", evaluate=["$@evaluator.run()"], **given)
    (found,) = in_monai(bundle, scans, tmp_path / "run").values()
    evaluated = nibabel.load(tmp_path / "evaluated/a_seg.nii.gz")
    assert share_of_equal_voxels(evaluated, found) == 1


def test_without_a_licence_the_bundle_says_so(tmp_path):
    weights = weights_of(tmp_path / "w.safetensors", MONAI)
    bundle = dae3d.export(weights=weights, format="monai-bundle", out=tmp_path / "bundle")
    assert "No licence was named" in (bundle / "LICENSE").read_text()


@pytest.mark.parametrize(
    ("changes", "in_monai"),
    [
        ({}, True),
        ({"roi": 32}, False),
        ({"window": 3}, False),  # grids of 32^3 voxels are no multiples of it
        ({"window": 3, "window_edges": "reference"}, True),
        ({"patch_merging": "reference"}, False),
        ({"embed_dim": 8}, False),
    ],
)
def test_monai_s_network_is_used_only_where_it_is_the_same(changes, in_monai, tmp_path, capsys):
    fields = {name: getattr(MONAI, name) for name in MONAI.own()}
    recipe = {"roi": changes.get("roi", WIDE["roi"])}
    fields |= {name: value for name, value in changes.items() if name != "roi"}
    weights = weights_of(tmp_path / "w.safetensors", SwinArchitecture(**fields), **recipe)
    bundle = dae3d.export(weights=weights, format="monai-bundle", out=tmp_path / "bundle")
    target = json.loads((bundle / "configs/inference.json").read_text())["network_def"]["_target_"]
    assert target == ("SwinUNETR" if in_monai else "dae3d.load")
    assert ("users need dae3d too" in capsys.readouterr().out) == (not in_monai)
    assert read_weights(bundle).architecture == read_weights(weights).architecture


def test_what_cannot_be_a_bundle_is_refused(tmp_path):
    network = RepairNetwork(OURS)
    save_weights(tmp_path / "pre.safetensors", network.state_dict(), OURS, {"task": "pretrain"})
    given = {"format": "monai-bundle", "out": tmp_path / "bundle"}
    with pytest.raises(Dae3dError, match=r"is for weights of `dae3d finetune`.*for the task pretrain"):
        dae3d.export(weights=tmp_path / "pre.safetensors", **given)
    for fields, words in (
        ({"crop_foreground": True}, "crop_foreground"),
        ({"intensity": {"ct": "zscore:foreground"}}, "no equivalent of the intensity scaling"),
        ({"modalities": ("ct", "t1")}, "the same for all channels"),
    ):
        weights = weights_of(tmp_path / "w.safetensors", OURS, **fields)
        with pytest.raises(Dae3dError, match=words):
            dae3d.export(weights=weights, **given)
    assert not (tmp_path / "bundle").exists()
