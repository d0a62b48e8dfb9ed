"""The command `bench`, with the smallest sizes: what it measures, not how fast that is."""

import json
import math

import pytest

import dae3d
from dae3d.benchmarking.nnunet import layout
from dae3d.benchmarking.predict import segmentation
from dae3d.benchmarking.process import in_new_process
from dae3d.commands import bench
from dae3d.errors import Dae3dError, SettingsError

pytestmark = pytest.mark.slow

SMALL = {"embed_dim": 12, "heads": (1, 1, 2, 2), "window": 2, "roi": 64, "batch_size": 1, "steps": 1}


def rows_of(tmp_path, what, against, **more):
    out = dae3d.bench(
        what=what,
        against=against,
        device="cpu",
        crops=2,
        scan=(72, 64, 64),
        out=tmp_path / "bench.json",
        **SMALL,
        **more,
    )
    contents = json.loads(out.read_text())
    assert contents["versions"]["torch"]
    for row in contents["rows"]:
        assert all(math.isfinite(value) and value > 0 for value in row["figures"].values())
    return {row["way"]: row for row in contents["rows"]}


def test_training_steps(tmp_path, capsys):
    rows = rows_of(tmp_path, "model", "none", rounds=2)
    assert list(rows) == ["dae3d, float32", "dae3d, bf16 autocast"]
    seconds = [[run["seconds"] for run in row["runs"]] for row in rows.values()]
    # The median of two is their mean.
    assert [row["figures"]["seconds"] for row in rows.values()] == [
        pytest.approx(sum(s) / 2) for s in seconds
    ]
    assert rows["dae3d, bf16 autocast"]["ratio"] == pytest.approx(sum(seconds[0]) / sum(seconds[1]))
    assert "times as fast" in capsys.readouterr().out


def test_crops_of_a_store(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "_SCANS", 2)
    assert list(rows_of(tmp_path, "loader", "none")) == ["dae3d store", "dae3d loader process"]


def test_nnunets_blocks_fill_its_first_cache_and_its_chunks_the_last():
    # 16^3 float32 are 16 KiB of 25.6, twice that too many; 80 x 64 x 64 is the first to pass 1.1 MiB.
    assert layout((288, 336, 256), (96, 96, 96)) == ([16, 16, 16], [80, 64, 64])


def test_the_same_weights_give_the_same_labels_with_monai(tmp_path):
    rows = rows_of(tmp_path, "predict", "monai")
    assert list(rows) == ["monai", "monai, tuned", "dae3d"]
    assert all(row["figures"]["same_labels"] > 0.999 for row in rows.values())
    seconds = [row["figures"]["seconds"] for row in rows.values()]
    assert rows["dae3d"]["ratio"] == pytest.approx(seconds[0] / seconds[2])


def test_a_measurement_that_fails_says_why(tmp_path):
    with pytest.raises(Dae3dError, match=r"segmentation .*roi.*multiples of 32"):
        in_new_process(
            segmentation,
            network="dae3d",
            device="cpu",
            embed_dim=12,
            heads=(1, 1, 2, 2),
            window=2,
            roi=(40, 40, 40),
            overlap=0.5,
            scan=(40, 40, 40),
            tuned=True,
            labels=str(tmp_path / "labels.npy"),
        )


def test_the_residual_encoder_is_measured_against_nnu_nets(tmp_path):
    out = tmp_path / "bench.json"
    sizes = {"backbone": "resenc", "size": "small", "roi": (16, 24, 16), "batch_size": 1, "steps": 1}
    dae3d.bench(what="model", against="library", device="cpu", out=out, **sizes)
    rows = {row["way"]: row for row in json.loads(out.read_text())["rows"]}
    theirs = ["library, float32", "library, tuned, float32", "library, tuned, bf16 autocast"]
    assert list(rows) == [*theirs, "dae3d, float32", "dae3d, bf16 autocast"]
    assert all(row["figures"]["seconds"] > 0 for row in rows.values())
    for wrong, words in (({"what": "predict"}, "backbone:"), ({"against": "monai"}, "against: .*library")):
        with pytest.raises(SettingsError, match=words):
            dae3d.bench(device="cpu", out=out, **{"what": "model", **sizes, **wrong})
