"""What the pictures of benchmarks/ rest on: the plain path is the same network, no second is misplaced."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dae3d.models.kernels.convolution import Convolution
from dae3d.models.kernels.norm import InstanceNorm
from dae3d.models.network import RepairNetwork
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.swin_unetr.blocks import ResidualBlock
from dae3d.models.swin_unetr.stage import SwinStage


def script(name):
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plain_path_starts_from_our_weights_and_goes_the_same_way():
    architecture = SwinArchitecture(embed_dim=4, heads=(1, 1, 2, 2), window=3, window_edges="reference")
    networks, drawn_next = [], []
    for kind in (RepairNetwork, script("curves").PlainSwinUNETR):
        torch.manual_seed(5)
        networks.append(kind(architecture, False).to(memory_format=torch.channels_last_3d))
        drawn_next.append(torch.rand(3))
    ours, plain = networks
    assert torch.equal(*drawn_next)
    replaced = SwinStage | InstanceNorm | Convolution | ResidualBlock
    assert not any(isinstance(module, replaced) for module in plain.modules())
    weights = plain.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in ours.state_dict().items())
    image = torch.rand(2, 1, 64, 64, 64)
    torch.testing.assert_close(plain(image), ours(image), rtol=1e-4, atol=1e-4)


def test_every_second_is_counted_once_and_backward_operations_where_they_belong():
    where = script("profile_step")
    layers = torch.nn.Sequential(torch.nn.Conv3d(2, 4, 3), torch.nn.InstanceNorm3d(4))
    scores = torch.nn.Softmax(-1)
    original = torch.nn.Softmax.forward
    try:
        where.mark({where.SCORES: (torch.nn.Softmax,)})
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
            scores(layers(torch.rand(1, 2, 12, 12, 12))).square().sum().backward()
    finally:
        torch.nn.Softmax.forward = original
    events = list(profiler.events())
    seconds = where.seconds_by_kind(events, on_gpu=False)
    assert sum(seconds.values()) == pytest.approx(sum(event.self_cpu_time_total for event in events) / 1e6)
    # Its backward operation runs outside the module.
    softmax = sum(event.self_cpu_time_total for event in events if "_softmax" in event.name) / 1e6
    assert seconds[where.SCORES] >= softmax
    kinds = {event.name: where.kind(event, {}) for event in events}
    assert kinds["aten::convolution_backward"] == "convolutions"
    assert kinds["aten::native_batch_norm_backward"] == where.NORMS
