"""Training with compiled blocks."""

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

import dae3d
from dae3d.errors import Dae3dError
from dae3d.training.callbacks import Rows, find_checkpoints
from run_rows import rows

pytestmark = pytest.mark.slow


def test_nothing_is_compiled_after_the_first_step_and_names_stay(
    tiny_run, tiny_store, tiny_settings, tmp_path, monkeypatch, caplog
):
    compiled, end = [], Rows.on_train_batch_end

    def count(self, *arguments):
        compiled.append(counters["stats"]["unique_graphs"])
        end(self, *arguments)

    monkeypatch.setattr(Rows, "on_train_batch_end", count)
    torch._dynamo.reset()
    counters.clear()
    # Of batches of 3, the validation's second has one of its 4 crops.
    settings = tiny_settings | {"batch_size": 3, "val_crops": 2, "max_steps": 7, "val_every": 3}
    settings["dense_weight"] = 0.0  # pairs would need an even batch
    with caplog.at_level("INFO"):
        run = dae3d.pretrain(data=tiny_store, out=tmp_path / "run", compile="on", **settings)
    assert compiled[0] >= 4
    assert compiled == [compiled[0]] * 7
    assert counters["stats"]["unique_graphs"] == compiled[0]
    assert "compiled in" in caplog.text

    plain = dae3d.pretrain(data=tiny_store, out=tmp_path / "plain", compile="off", **settings)
    ours, theirs = rows(run), rows(plain)
    assert ours.keys() == theirs.keys()
    for key in theirs:
        if key[1] in ("train/loss", "val/loss"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3), key
    weights = [load_file(r / "weights/last.safetensors") for r in (run, plain)]
    assert weights[0].keys() == weights[1].keys()
    # A run that was compiled goes on uncompiled.
    find_checkpoints(run / "checkpoints")[0].unlink()
    dae3d.pretrain(out=run, resume=True, compile="off")
    assert rows(run).keys() == theirs.keys()


def test_no_compiler_is_one_clear_error(tiny_store, tiny_settings, tmp_path, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/no/such/compiler",))
    monkeypatch.setattr("torch._inductor.config.fx_graph_cache", False)
    with pytest.raises(Dae3dError, match=r"compile: .*--compile off"):
        dae3d.pretrain(data=tiny_store, out=tmp_path / "run", compile="on", max_steps=2, **tiny_settings)
