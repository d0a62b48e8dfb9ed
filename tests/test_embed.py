import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

import dae3d
from conftest import smooth_volume
from dae3d.commands import embed as module
from dae3d.errors import Dae3dError, SettingsError
from dae3d.inference.corners import window_corners
from dae3d.models.network import FeatureEncoder, RepairNetwork, Segmenter
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.weights import save_weights
from dae3d.scans import given as given_scans
from dae3d.scans.given import Image
from dae3d.store.examine import AS_ACQUIRED

pytestmark = pytest.mark.slow

SIZES = {"embed_dim": 4, "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "window": 2}
WIDTH = 16 * 4


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Random weights of a network that was trained on crops of 32^3."""
    torch.manual_seed(3)
    network = RepairNetwork(SwinArchitecture(**SIZES))
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(path, network.state_dict(), network.architecture, {"settings": {"roi": 32}})
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    """A T1-like scan of 50 x 40 x 36 voxels of 2 mm, the outer quarter of one side empty."""
    voxels = np.round(smooth_volume(1, (50, 40, 36)) * 400 + 100).astype(np.int16)
    voxels[38:] = 0
    path = tmp_path_factory.mktemp("scan") / "sub-01_T1w.nii.gz"
    nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 2.0, 1.0])).to_filename(path)
    return path


def encoder_of(weights: Path) -> FeatureEncoder:
    encoder = dae3d.load(weights, task="encoder", show=False)
    assert isinstance(encoder, FeatureEncoder)
    return encoder


def z_scored(path: Path) -> np.ndarray:
    """The scan as pre-training sees MR, computed here."""
    voxels = nibabel.load(path).get_fdata()
    inside = voxels[voxels != 0]
    return np.where(voxels == 0, 0, (voxels - inside.mean()) / inside.std()).astype(np.float32)


def test_features_are_the_mean_over_windows_of_the_normalised_last_map(weights, scan, tmp_path):
    found = dae3d.embed(scans=[str(scan)], weights=weights, out=tmp_path / "e.npz")
    # Bright voxels lie in the first 38 planes: two windows of 32 along x and y, and z is 36 deep.
    image = torch.from_numpy(z_scored(scan))[None, None]
    windows = []
    bright = module._read(module._Case(str(scan), (Image.of(scan),), "t1"), None, AS_ACQUIRED, None)[1]
    (x0, y0, z0), (x1, y1, z1) = bright
    assert x1 <= 38
    assert min(x1 - x0, y1 - y0, z1 - z0) > 32
    encoder = encoder_of(weights)
    with torch.no_grad():
        for x in (x0, x1 - 32):
            for y in (y0, y1 - 32):
                for z in (z0, z1 - 32):
                    window = image[:, :, x : x + 32, y : y + 32, z : z + 32]
                    raw = encoder.encoder(window)[4][0]
                    tokens = raw.reshape(WIDTH, -1)
                    deviation = (tokens.var(dim=0, unbiased=False) + 1e-5).sqrt()
                    windows.append(((tokens - tokens.mean(dim=0)) / deviation).mean(dim=1))
    expected = torch.stack(windows).mean(dim=0).numpy()
    assert found.features.shape == (1, WIDTH)
    np.testing.assert_allclose(found.features[0], expected, atol=1e-5)


def test_the_file_holds_what_is_returned(weights, scan, tmp_path):
    other = tmp_path / "other.nii.gz"
    nibabel.Nifti1Image(smooth_volume(2, (20, 33, 34)) * 100, np.eye(4)).to_filename(other)
    found = dae3d.embed(
        scans=[str(scan), str(other)], weights=weights, out=tmp_path / "deep" / "e.npz", rule=["other*=flair"]
    )
    with np.load(tmp_path / "deep" / "e.npz") as file:
        assert set(file.files) == {"features", "scans", "modalities"}
        assert file["features"].dtype == np.float32
        np.testing.assert_array_equal(file["features"], found.features)
        assert file["scans"].tolist() == [str(scan), str(other)]
        assert file["modalities"].tolist() == ["t1", "flair"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["e.npz"]
    assert np.abs(found.features[0] - found.features[1]).max() > 1e-3


def test_the_same_scan_gives_the_same_vector(weights, scan, tmp_path):
    first = dae3d.embed(scans=[str(scan)], weights=weights, out=tmp_path / "a.npz")
    again = dae3d.embed(scans=[str(scan)] * 2, weights=weights, out=tmp_path / "b.npz", window_batch=3)
    assert again.scans == [str(scan)]
    np.testing.assert_allclose(again.features, first.features, atol=1e-5)


@pytest.mark.parametrize("stored", ["LPS", "SRA", "PIR"])
def test_the_way_a_scan_is_stored_does_not_matter(weights, scan, tmp_path, stored):
    image = nibabel.load(scan)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(stored))
    turned = nibabel.Nifti1Image(
        np.ascontiguousarray(apply_orientation(np.asarray(image.dataobj), turn)),
        image.affine @ inv_ornt_aff(turn, image.shape),
    )
    assert "".join(nibabel.aff2axcodes(turned.affine)) == stored
    turned.to_filename(tmp_path / "sub-01_T1w.nii.gz")
    found = [
        dae3d.embed(scans=[str(path)], weights=weights, out=tmp_path / "e.npz").features
        for path in (scan, tmp_path / "sub-01_T1w.nii.gz")
    ]
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)


def test_fine_tuned_weights_prepare_a_case_as_they_were_trained(scan, tmp_path):
    torch.manual_seed(4)
    network = Segmenter(SwinArchitecture(**SIZES, in_channels=2, out_channels=3))
    recipe = {
        "modalities": ["ct", "t1"],
        "labels": {"0": "background", "1": "a", "2": "b"},
        "spacing": [2.0, 2.0, 2.0],
        "intensity": {"ct": "window:100:300"},
        "roi": 32,
    }
    info = {"task": "segmentation", "recipe": recipe, "settings": {"roi": 32}}
    save_weights(tmp_path / "w.safetensors", network.state_dict(), network.architecture, info)
    name = f"{scan},{scan}"
    found = dae3d.embed(
        scans=[(scan, scan)], weights=tmp_path / "w.safetensors", out=tmp_path / "e.npz", roi=64
    )
    voxels = nibabel.load(scan).get_fdata()
    ct = np.clip((voxels - 100) / 200, 0, 1).astype(np.float32)
    window = torch.zeros(1, 2, 64, 64, 64)
    x, y, z = ((64 - side) // 2 for side in voxels.shape)
    window[0, :, x : x + 50, y : y + 40, z : z + 36] = torch.from_numpy(np.stack([ct, z_scored(scan)]))
    with torch.no_grad():
        expected = encoder_of(tmp_path / "w.safetensors")(window)[4].mean(dim=(0, 2, 3, 4)).numpy()
    np.testing.assert_allclose(found.features[0], expected, atol=1e-5)
    assert (found.scans, found.modalities) == ([name], ["ct+t1"])


# What cannot be used


def test_a_scan_that_cannot_be_read_is_left_out_and_named(weights, scan, tmp_path, caplog, capsys):
    bad, missing = tmp_path / "bad_T1w.nii.gz", tmp_path / "none_T1w.nii.gz"
    bad.write_bytes(b"\x1f\x8b not a scan")
    scans = [str(bad), str(scan), str(missing)]
    found = dae3d.embed(scans=scans, weights=weights, out=tmp_path / "e.npz", modality="t1")
    assert found.scans == [str(scan)]
    assert set(found.left_out) == {str(bad), str(missing)}
    assert caplog.text.count("left out: ") == 2
    printed = capsys.readouterr().out
    assert "2 left out:" in printed
    assert str(missing) in printed


def test_scans_that_are_all_bad_are_an_error(weights, tmp_path):
    with pytest.raises(Dae3dError, match="none of the scans"):
        dae3d.embed(scans=[str(tmp_path / "no.nii")], weights=weights, out=tmp_path / "e.npz", modality="t1")
    assert not (tmp_path / "e.npz").exists()


def test_an_unknown_modality_stops_before_any_work(weights, scan, tmp_path, monkeypatch):
    plain = tmp_path / "scan.nii.gz"
    plain.write_bytes(scan.read_bytes())
    monkeypatch.setattr(given_scans, "read_volume", lambda path, volume: pytest.fail("read a scan"))
    with pytest.raises(Dae3dError, match=r"scan\.nii\.gz: unknown modality"):
        dae3d.embed(scans=[str(scan), str(plain)], weights=weights, out=tmp_path / "e.npz")


@pytest.mark.parametrize("name", ["e.csv", "e", "e.npy"])
def test_other_kinds_of_file_are_refused(weights, scan, tmp_path, name):
    with pytest.raises(SettingsError, match=r"out: must end in \.npz or \.parquet"):
        dae3d.embed(scans=[str(scan)], weights=weights, out=tmp_path / name)


def test_a_network_of_unknown_channels_is_refused(scan, tmp_path):
    network = Segmenter(SwinArchitecture(**SIZES, in_channels=4, out_channels=3))
    save_weights(
        tmp_path / "w.safetensors", network.state_dict(), network.architecture, {"task": "segmentation"}
    )
    with pytest.raises(Dae3dError, match="takes 4 channels"):
        dae3d.embed(scans=[str(scan)], weights=tmp_path / "w.safetensors", out=tmp_path / "e.npz")


@pytest.mark.parametrize("name", ["a.nii,b.nii", "no,such.nii,file.nii"])
def test_several_files_for_one_channel_are_refused(weights, tmp_path, name):
    with pytest.raises(Dae3dError, match=r"\d files, but the weights take one per scan"):
        dae3d.embed(scans=[name], weights=weights, out=tmp_path / "e.npz", modality="t1")


def test_a_comma_may_be_part_of_a_name_and_paths_are_taken(weights, scan, tmp_path):
    comma = tmp_path / "a,b.nii.gz"
    comma.write_bytes(scan.read_bytes())
    found = dae3d.embed(scans=[comma], weights=weights, out=tmp_path / "e.npz", modality="t1")
    assert found.scans == [str(comma)]


# Parquet


def test_without_pyarrow_parquet_is_refused_at_once(weights, scan, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(module, "load", lambda *args, **kwargs: pytest.fail("loaded weights"))
    with pytest.raises(Dae3dError, match=r"pyarrow.*dae3d\[parquet\].*\.npz"):
        dae3d.embed(scans=[str(scan)], weights=weights, out=tmp_path / "e.parquet")


def test_parquet_holds_the_same(weights, scan, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    found = dae3d.embed(scans=[str(scan)], weights=weights, out=tmp_path / "e.parquet")
    table = parquet.read_table(tmp_path / "e.parquet")
    assert table.column_names == ["scan", "modality", "features"]
    assert table["scan"].to_pylist() == [str(scan)]
    assert table["modality"].to_pylist() == ["t1"]
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), np.float32), found.features)


# A folder of .npy files


def npy_files(folder):
    return {path.name: np.load(path, allow_pickle=False) for path in sorted(folder.glob("*.npy"))}


def test_a_folder_has_one_vector_of_float32_a_scan(weights, three_scans, tmp_path):
    table = dae3d.embed(scans=three_scans, weights=weights, out=tmp_path / "e.npz")
    out = tmp_path / "deep" / "e"
    dae3d.embed(scans=three_scans, weights=weights, out=out, format="npy")
    found = npy_files(out)
    assert list(found) == [f"sub-{number}_T1w.npy" for number in range(3)]
    for vector, row in zip(found.values(), table.features, strict=True):
        assert (vector.dtype, vector.shape) == (np.float32, (WIDTH,))
        np.testing.assert_array_equal(vector, row)
    assert [path.name for path in out.parent.iterdir()] == ["e"]


def test_scans_of_one_name_are_numbered(weights, scan, tmp_path):
    other = tmp_path / "other" / scan.name
    other.parent.mkdir()
    nibabel.Nifti1Image(smooth_volume(7, (32, 32, 32)) * 100 + 1, np.eye(4)).to_filename(other)
    found = dae3d.embed(scans=[scan, other], weights=weights, out=tmp_path / "e", format="npy")
    files = npy_files(tmp_path / "e")
    assert list(files) == ["sub-01_T1w-1.npy", "sub-01_T1w-2.npy"]
    np.testing.assert_array_equal(np.stack(list(files.values())), found.features)


def test_a_folder_replaces_its_like_and_nothing_else(weights, three_scans, tmp_path):
    given = {"weights": weights, "out": tmp_path / "e", "format": "npy"}
    dae3d.embed(scans=three_scans, **given)
    dae3d.embed(scans=three_scans[1:], **given)
    assert list(npy_files(tmp_path / "e")) == ["sub-1_T1w.npy", "sub-2_T1w.npy"]
    (tmp_path / "e" / "notes.txt").write_text("mine")
    with pytest.raises(Dae3dError, match=r"not a folder of embeddings .*notes\.txt is in it"):
        dae3d.embed(scans=three_scans, **given)
    assert (tmp_path / "e" / "notes.txt").read_text() == "mine"
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    np.save(theirs / "a.npy", np.zeros(3))
    with pytest.raises(Dae3dError, match=r"not a folder of embeddings .*a\.npy is in it"):
        dae3d.embed(scans=three_scans, **(given | {"out": theirs}))
    with pytest.raises(Dae3dError, match="is a file"):
        dae3d.embed(scans=three_scans, **(given | {"out": weights}))


def test_a_folder_appears_when_all_is_done_and_continues(weights, three_scans, reads, tmp_path):
    given = {"scans": three_scans, "weights": weights, "out": tmp_path / "e", "format": "npy"}
    with pytest.raises(KeyboardInterrupt):
        dae3d.embed(**given)
    assert not (tmp_path / "e").exists()
    dae3d.embed(**given)
    assert reads[2:] == ["sub-1_T1w.nii.gz", "sub-2_T1w.nii.gz"]
    assert len(npy_files(tmp_path / "e")) == 3
    assert not (tmp_path / ".e.unfinished").exists()


def test_the_ending_is_that_of_the_format(weights, scan, tmp_path):
    with pytest.raises(SettingsError, match=r"out: must end in \.parquet, not 'e\.npz'"):
        dae3d.embed(scans=[scan], weights=weights, out=tmp_path / "e.npz", format="parquet")


# Stopped and begun again


@pytest.fixture
def three_scans(tmp_path) -> list[str]:
    paths = [tmp_path / f"sub-{number}_T1w.nii.gz" for number in range(3)]
    for number, path in enumerate(paths):
        nibabel.Nifti1Image(smooth_volume(number, (32, 32, 32)) * 100 + 1, np.eye(4)).to_filename(path)
    return [str(path) for path in paths]


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the scans that are read, and Ctrl-C at one called sub-1 while there is none after it."""
    names: list[str] = []
    read = given_scans.read_volume

    def noted(path, volume):
        names.append(path.name)
        if names == ["sub-0_T1w.nii.gz", "sub-1_T1w.nii.gz"]:
            raise KeyboardInterrupt
        return read(path, volume)

    monkeypatch.setattr(given_scans, "read_volume", noted)
    return names


def test_what_was_finished_is_not_done_again(weights, three_scans, reads, tmp_path):
    out = tmp_path / "e.npz"
    with pytest.raises(KeyboardInterrupt):
        dae3d.embed(scans=three_scans, weights=weights, out=out)
    assert not out.exists()
    unfinished = tmp_path / ".e.npz.unfinished"
    with unfinished.open("a") as file:
        file.write('{"name": "cut sho')
    stopped = dae3d.embed(scans=three_scans, weights=weights, out=out)
    assert reads[2:] == ["sub-1_T1w.nii.gz", "sub-2_T1w.nii.gz"]
    assert not unfinished.exists()
    whole = dae3d.embed(scans=three_scans, weights=weights, out=tmp_path / "whole.npz")
    np.testing.assert_array_equal(stopped.features, whole.features)
    assert stopped.scans == whole.scans == three_scans


@pytest.mark.parametrize("change", ["scan", "modality"])
def test_what_was_finished_otherwise_is_done_again(weights, three_scans, reads, tmp_path, change):
    given = {"scans": three_scans, "weights": weights, "out": tmp_path / "e.npz"}
    with pytest.raises(KeyboardInterrupt):
        dae3d.embed(**given)
    if change == "scan":
        nibabel.Nifti1Image(smooth_volume(9, (33, 32, 32)), np.eye(4)).to_filename(three_scans[0])
    else:
        given |= {"rule": ["sub-0*=ct"]}
    dae3d.embed(**given)
    assert reads[2:] == [Path(name).name for name in three_scans]


@pytest.mark.parametrize("change", ["overlap", "weights"])
def test_what_was_finished_otherwise_is_not_lost(weights, three_scans, reads, tmp_path, change):
    given = {"scans": three_scans, "weights": weights, "out": tmp_path / "e.npz"}
    with pytest.raises(KeyboardInterrupt):
        dae3d.embed(**given)
    other = dict(given)
    if change == "weights":
        network = RepairNetwork(SwinArchitecture(**SIZES))
        other["weights"] = tmp_path / "w.safetensors"
        save_weights(other["weights"], network.state_dict(), network.architecture, {"settings": {"roi": 32}})
    else:
        other["overlap"] = 0.5
    with pytest.raises(Dae3dError, match=rf"\.e\.npz\.unfinished: made with other .*{change}.*another --out"):
        dae3d.embed(**other)
    dae3d.embed(**given)
    assert reads[2:] == ["sub-1_T1w.nii.gz", "sub-2_T1w.nii.gz"]


def test_the_journal_is_plain_json_lines(weights, three_scans, reads, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        dae3d.embed(scans=three_scans, weights=weights, out=tmp_path / "e.npz")
    lines = [json.loads(line) for line in (tmp_path / ".e.npz.unfinished").read_text().splitlines()]
    assert lines[0]["roi"] == [32, 32, 32]
    assert [line["name"] for line in lines[1:]] == three_scans[:1]
    assert len(lines[1]["result"]["features"]) == WIDTH


# Windows


@hypothesis_settings(max_examples=200)
@given(data=st.data(), overlap=st.sampled_from([0.0, 0.25, 0.5, 0.9]))
def test_windows_cover_the_foreground_and_no_more_than_they_must(data, overlap):
    sides = data.draw(st.tuples(*[st.sampled_from([8, 32, 48])] * 3))
    shape = data.draw(st.tuples(*[st.integers(1, 150)] * 3))
    starts = [data.draw(st.integers(0, side - 1)) for side in shape]
    stops = [data.draw(st.integers(start + 1, side)) for start, side in zip(starts, shape, strict=True)]
    corners = window_corners(shape, (tuple(starts), tuple(stops)), sides, overlap)
    for axis, (side, roi, start, stop) in enumerate(zip(shape, sides, starts, stops, strict=True)):
        firsts = sorted({corner[axis] for corner in corners})
        assert firsts[0] <= start
        assert firsts[-1] + roi >= stop
        gaps = np.diff(firsts)
        assert (gaps <= roi * (1 - overlap) + 1).all()
        assert gaps.size == 0 or gaps.max() - gaps.min() <= 1
        if side >= roi:
            assert 0 <= firsts[0] <= firsts[-1] <= side - roi
        if stop - start <= roi or side < roi:
            assert len(firsts) == 1
        elif overlap == 0:
            assert len(firsts) == -(-(stop - start) // roi)
    assert len(corners) == len(set(corners))


def test_a_window_is_centred_where_it_can_be():
    assert window_corners((100, 100, 20), ((40, 90, 3), (60, 100, 9)), (32, 32, 32), 0.0) == [(34, 68, -6)]
