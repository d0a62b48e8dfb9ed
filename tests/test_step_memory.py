"""Memory of a training step, by calculation: against counts by hand, and against what a process takes."""

import pytest
import torch
from torch import nn

from dae3d.models.swin_unetr.attention import attention
from dae3d.models.swin_unetr.windows import Group
from dae3d.planning.size import device_memory, parse_bytes, uses_bf16
from dae3d.planning.step_memory import META, step_memory
from dae3d.planning.trial import FinetuneTrial, PretrainTrial
from dae3d.training.beginning import with_all_sizes
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.training.pretrain_settings import PretrainSettings

FLOAT = 4  # bytes


def memory_of(network: nn.Module, *shape: int, bf16: bool = False):
    image = torch.empty(shape, device=META)
    return step_memory(
        network.to(META), lambda batch: network(batch["image"]).sum(), {"image": image}, "gpu", bf16
    )


def test_one_convolution_counted_by_hand():
    found = memory_of(nn.Conv3d(2, 3, 3, padding=1, bias=False), 1, 2, 4, 4, 4)
    weights = 3 * 2 * 3**3 * FLOAT
    output, loss = 3 * 4**3 * FLOAT, FLOAT
    assert (found.weights, found.gradients, found.optimiser) == (weights, weights, 2 * weights)
    assert found.batch == 2 * 4**3 * FLOAT
    # The forward pass is the highest point: the gradients of the step before are still there.
    assert found.activations == output + loss
    assert found.total == 4 * weights + found.batch + output + loss


def test_the_backward_pass_holds_the_saved_map_and_two_gradients():
    narrow = nn.Sequential(nn.Conv3d(1, 8, 1, bias=False), nn.ReLU(), nn.Conv3d(8, 1, 1, bias=False))
    found = memory_of(narrow, 1, 1, 8, 8, 8)
    a_map = 8 * 8**3 * FLOAT
    of_conv = 8 * FLOAT
    # Saved output of the ReLU, gradient of its output, gradient of its input; loss and its gradient.
    highest = 3 * a_map + 2 * FLOAT + of_conv
    assert found.total == 3 * 2 * of_conv + found.batch + highest


def test_bfloat16_halves_the_output_of_a_convolution():
    single, half = (memory_of(nn.Conv3d(1, 64, 1, bias=False), 1, 1, 16, 16, 16, bf16=way) for way in (0, 1))
    output = 64 * 16**3 * FLOAT
    assert single.activations == pytest.approx(output, rel=0.01)
    # And a copy of the image and the weights.
    assert half.activations == pytest.approx(output / 2 + 16**3 * 2, rel=0.01)
    assert half.weights == single.weights


def test_on_a_cpu_attention_keeps_its_scores():
    count, tokens, heads, width = 6, 64, 2, 4
    bias = nn.Parameter(torch.empty(heads, tokens, tokens, device=META))
    qkv = torch.empty(count, tokens, 3, heads, width, device=META)
    groups = [Group(0, count, None)]

    def loss(batch):
        return attention(batch["qkv"], bias, groups).sum()

    module = nn.ParameterList([bias])
    of_gpu, of_cpu = (step_memory(module, loss, {"qkv": qkv}, kind, False) for kind in ("gpu", "cpu"))
    scores = count * heads * tokens**2 * FLOAT
    # Weights of the forward pass, their gradient, and that of the scores.
    assert 3 * scores <= of_cpu.activations + of_cpu.gradients < 4 * scores
    # The gradient of the bias for each window.
    assert scores <= of_gpu.activations + of_gpu.gradients < 3 * scores


def small(tmp_path, **given) -> PretrainSettings:
    sizes = {"embed_dim": 12, "heads": (1, 2, 4, 8), "window": 4} if "backbone" not in given else {}
    values = {"roi": 64, "batch_size": 2, "accelerator": "cpu", **sizes, **given}
    return with_all_sizes(PretrainSettings(data=tmp_path, out=tmp_path, **values), (1.0, 1.0, 1.0))


def test_frozen_parameters_take_no_gradients(tmp_path):
    whole, part = (
        PretrainTrial(small(tmp_path, roi=32, freeze=half)).memory(2, (32, 32, 32))
        for half in ("none", "decoder")
    )
    assert part.weights == whole.weights
    assert part.gradients < whole.gradients / 2
    assert part.optimiser < whole.optimiser / 2


def test_crops_of_all_kinds_count_in_proportion(tmp_path):
    trial = PretrainTrial(small(tmp_path, backbone="resenc", size="small", roi=32))
    two, four = (trial.memory(count, (32, 32, 32)) for count in (2, 4))
    assert four.activations == pytest.approx(2 * two.activations, rel=0.02)
    assert (four.weights, four.batch) == (two.weights, 2 * two.batch)


def test_more_classes_take_more_in_fine_tuning(tmp_path):
    sizes = {"embed_dim": 12, "heads": (1, 2, 4, 8), "window": 4, "roi": 64}
    given = FinetuneSettings(data=tmp_path, out=tmp_path, **sizes)
    few, many = (FinetuneTrial(given, 1, classes).memory(1, (64, 64, 64)) for classes in (2, 42))
    # At least the logits, their softmax and its gradient.
    assert many.total - few.total >= 3 * 40 * 64**3 * FLOAT


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * 10**9),
        ("80GiB", 80 * 2**30),
        ("1.5 gb", 15 * 10**8),
        ("512 MiB", 2**29),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["24", "GB", "24 apples", "-1GB", "0GB", "", "1e3GB", "24G"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="24GB"):
        parse_bytes(text)


def test_a_cpu_computes_in_float32_and_a_gpu_in_bfloat16():
    assert not uses_bf16("cpu")
    assert uses_bf16("cpu", "bf16-mixed")
    assert uses_bf16("gpu") or torch.cuda.is_available()
    assert device_memory("cpu") > 0
