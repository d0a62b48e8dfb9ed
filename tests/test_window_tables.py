"""Weights of other attention windows: their biases by offset are interpolated, which is said."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dae3d
from dae3d.errors import SettingsError
from dae3d.models.loading import load_into
from dae3d.models.network import FeatureEncoder, RepairNetwork
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.swin_unetr.window_tables import resized, window_of
from dae3d.models.weights import read_weights, save_weights

SIZES = {"embed_dim": 4, "heads": (1, 1, 2, 2), "depths": (1, 1, 1, 1)}


def table_of(window, value):
    """A table of one head by the offset along each axis as a share of the largest one."""
    offsets = np.arange(1 - window, window) / (window - 1)
    x, y, z = np.meshgrid(offsets, offsets, offsets, indexing="ij")
    return torch.tensor(value(x, y, z).reshape(-1, 1), dtype=torch.float32)


def test_the_same_window_keeps_the_table():
    table = torch.randn(11**3, 3)
    assert resized(table, 6) is table


windows = st.integers(2, 8)
slopes = st.lists(st.floats(-3, 3), min_size=4, max_size=4)


@given(before=windows, now=windows, slopes=slopes)
def test_a_linear_function_of_the_offset_stays_that_function(before, now, slopes):
    a, b, c, d = slopes

    def line(x, y, z):
        return a * x + b * y + c * z + d

    found = resized(table_of(before, line), now)
    torch.testing.assert_close(found, table_of(now, line), rtol=0, atol=1e-5)


@given(before=windows, now=windows)
def test_heads_are_apart_and_the_zero_offset_stays(before, now):
    table = torch.randn((2 * before - 1) ** 3, 2, generator=torch.Generator().manual_seed(1))
    found = resized(table, now)
    assert window_of(found) == now
    for head in (0, 1):
        torch.testing.assert_close(found[:, head : head + 1], resized(table[:, head : head + 1], now))
    torch.testing.assert_close(found[len(found) // 2], table[len(table) // 2])
    assert found.min() >= table.min() - 1e-6
    assert found.max() <= table.max() + 1e-6


def test_a_table_of_windows_that_are_no_cubes_is_refused():
    assert window_of(torch.zeros(7 * 7 * 3, 2)) is None
    with pytest.raises(ValueError, match="not those of a cubic window"):
        resized(torch.zeros(7 * 7 * 3, 2), 4)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    network = RepairNetwork(SwinArchitecture(**SIZES, window=2, repair_from="pyramid"))
    save_weights(tmp_path / "w.safetensors", network.state_dict(), network.architecture, {"task": "pretrain"})
    return tmp_path / "w.safetensors"


def test_the_report_says_what_was_adapted(weights):
    network = FeatureEncoder(SwinArchitecture(**SIZES, window=3))
    report = load_into(network, read_weights(weights), "encoder", show=False)
    tables = [f"encoder.stages.{stage}.blocks.0.attn.relative_position_bias_table" for stage in range(4)]
    assert report.adapted == dict.fromkeys(tables, "interpolated from attention windows of 2^3 tokens to 3^3")
    assert report.missing == []
    assert "adapted 4 (interpolated from attention windows of 2^3 tokens to 3^3)" in str(report)
    state = read_weights(weights).state
    for name in tables:
        assert torch.equal(network.state_dict()[name], resized(state[name], 3))


@pytest.mark.slow
def test_training_starts_from_weights_of_another_window(
    weights, tiny_store, tiny_settings, tiny_finetune, tmp_path, capsys
):
    run = dae3d.pretrain(
        **(tiny_settings | {"window": 3}), data=tiny_store, out=tmp_path / "run", init=weights, max_steps=1
    )
    assert "adapted 4 (interpolated from attention windows of 2^3" in capsys.readouterr().out
    assert read_weights(run).architecture.window == 3
    # Resumed, it keeps that window.
    dae3d.pretrain(out=run, resume=True, max_steps=2)
    given = tiny_finetune | {"window": 4, "max_steps": 1, "out": tmp_path / "tuned"}
    tuned = dae3d.finetune(**given, init=run)
    assert "from attention windows of 3^3 tokens to 4^3" in capsys.readouterr().out
    assert read_weights(tuned).architecture.window == 4


def test_other_sizes_of_another_network_are_still_refused(weights, tiny_store, tiny_settings, tmp_path):
    settings = tiny_settings | {"embed_dim": 8, "window": 3}
    with pytest.raises(SettingsError, match=r"embed_dim: the network of --init .* has 4, not 8"):
        dae3d.pretrain(**settings, data=tiny_store, out=tmp_path / "run", init=weights)
