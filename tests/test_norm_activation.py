"""Both ways of instance norm with sum and activation: by definition, in the layout given, without copies."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from dae3d.models.kernels.cpu_norm import CpuNorm
from dae3d.models.kernels.native_norm import NativeNorm, layout
from dae3d.models.kernels.small_norm import SmallNorm

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last_3d}
SUMS = ("no residual", "residual as it is", "residual's norm")
EPS = 1e-5
NEAR = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
WAYS = [(NativeNorm, form, dtype, device) for form in LAYOUTS for dtype in NEAR for device in DEVICES]
WAYS += [(CpuNorm, "channels-last", dtype, "cpu") for dtype in (torch.float32, torch.bfloat16)]
AFFINE = [(*way, affine) for way in WAYS for affine in (False, True)]
AFFINE += [(SmallNorm, "channels-last", dtype, "cpu", True) for dtype in (torch.float32, torch.bfloat16)]


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def norm(x: Tensor) -> Tensor:
    centred = x - x.mean((2, 3, 4), keepdim=True)
    return centred / (centred.square().mean((2, 3, 4), keepdim=True) + EPS).sqrt()


def defined(
    x: Tensor, residual: Tensor | None, normalise_residual: bool, slope: float, affine: list[Tensor]
) -> Tensor:
    maps = [each.view(-1, 1, 1, 1) for each in affine] or [1, 0, 1, 0]
    total = norm(x) * maps[0] + maps[1]
    if residual is not None:
        total = total + (norm(residual) * maps[2] + maps[3] if normalise_residual else residual)
    return functional.leaky_relu(total, slope)


def volumes(
    shape: tuple[int, ...], dtype: torch.dtype, form: str, how_many: int, device: str
) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    made = [20 + 3 * torch.randn(shape, generator=random) for _ in range(how_many)]
    return [x.to(device, dtype).to(memory_format=LAYOUTS[form]) for x in made]


@pytest.mark.parametrize("slope", [0.01, 1.0])
@pytest.mark.parametrize("terms", SUMS)
@pytest.mark.parametrize("gradient_form", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("way", "form", "dtype", "device", "affine"), AFFINE)
def test_values_and_gradients(way, form, dtype, device, batch, gradient_form, terms, affine, slope):
    x, residual, weight = volumes((batch, 6, 9, 8, 7), dtype, form, 3, device)
    x.requires_grad_()
    given = residual.requires_grad_() if terms != SUMS[0] else None
    random = torch.Generator().manual_seed(1)
    norms = affine * (2 if terms == SUMS[2] else 1)
    kind = torch.promote_types(dtype, torch.float32)
    maps = [torch.randn(6, generator=random).to(device, kind).requires_grad_() for _ in range(2 * norms)]
    found = way.apply(x, given, terms == SUMS[2], EPS, slope, *maps)
    weight = weight - 20
    found.backward(weight.contiguous(memory_format=LAYOUTS[gradient_form]))
    exact, other = (v.detach().double().requires_grad_() for v in (x, residual))
    exact_maps = [each.detach().double().requires_grad_() for each in maps]
    expected = defined(exact, None if given is None else other, terms == SUMS[2], slope, exact_maps)
    expected.backward(weight.double())
    assert found.dtype == dtype
    assert layout(found) == layout(x)
    near = NEAR[dtype]
    pairs = [(found, expected), (x.grad, exact.grad)]
    pairs += [] if given is None else [(residual.grad, other.grad)]
    for ours, theirs in pairs:
        apart = (ours.double() - theirs).abs()
        # Where rounding puts a value on the other side of zero, its gradient is the other.
        assert apart.quantile(0.99) <= near
        assert torch.linalg.vector_norm(apart) <= near * torch.linalg.vector_norm(theirs)
    # Sums over all voxels, of values of either sign.
    sums = (batch * 9 * 8 * 7) ** 0.5
    for ours, theirs in zip(maps, exact_maps, strict=True):
        assert (ours.grad.double() - theirs.grad).abs().max() <= near * sums


@pytest.mark.parametrize("form", LAYOUTS)
@pytest.mark.parametrize("device", DEVICES)
def test_neither_pass_copies_a_volume(device, form):
    x, residual = volumes((1, 6, 9, 8, 7), torch.float32, form, 2, device)
    x.requires_grad_()
    residual.requires_grad_()
    with Operations() as operations:
        found = NativeNorm.apply(x, residual, True, EPS, 0.01)
        found.backward(torch.ones_like(found))
    assert operations.count["native_batch_norm"] == 2
    assert operations.count["native_batch_norm_backward"] == 2
    assert not {"copy_", "clone", "_to_copy", "stack", "cat"} & set(operations.count)
