import math

import numpy as np
import pytest
import torch
from monai.metrics import SSIMMetric
from scipy.ndimage import correlate1d, gaussian_filter

from dae3d.evaluation import similarity
from dae3d.evaluation.quality import image_quality


def smooth_volume(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Structure at the scale of SSIM's window, with negative values, as z-scored MR has."""
    volume = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return (volume / volume.std()).astype(np.float32)


def tensor(*volumes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(volumes)[:, None])


def ssim_float64(image: np.ndarray, clean: np.ndarray) -> float:
    """Wang et al. (2004), equation 13, in float64 by separable windows, on intensities from 0 to 1."""
    low, span = float(clean.min()), float(clean.max()) - float(clean.min())
    x, y = (image.astype(np.float64) - low) / span, (clean.astype(np.float64) - low) / span
    sides = [min(11, side if side % 2 else side - 1) for side in clean.shape]

    def mean(volume: np.ndarray) -> np.ndarray:
        for axis, side in enumerate(sides):
            weights = np.exp(-0.5 * ((np.arange(side) - side // 2) / 1.5) ** 2)
            volume = correlate1d(volume, weights / weights.sum(), axis=axis)
        inside = tuple(slice(side // 2, n - side // 2) for side, n in zip(sides, clean.shape, strict=True))
        return volume[inside]

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(similarity.mean())


def test_l1_and_psnr_by_hand() -> None:
    clean = torch.zeros(2, 1, 12, 12, 12)
    clean[0, 0, 3, 4, 5] = 2.0  # data range 2
    clean[1, 0, 3, 4, 5] = -40.0  # data range 40
    image = clean + torch.tensor([0.1, 4.0]).view(2, 1, 1, 1, 1)
    measured = image_quality(image, clean)
    torch.testing.assert_close(measured["l1"], torch.tensor([0.1, 4.0]))
    # 10 log10(2^2 / 0.1^2) = 26.0206 and 10 log10(40^2 / 4^2) = 20.
    torch.testing.assert_close(measured["psnr"], torch.tensor([26.0206, 20.0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(24, 20, 28), (11, 16, 13), (4, 20, 7), (1, 30, 12)])
def test_ssim_equals_an_independent_computation(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    cleans = [smooth_volume(shape, 2), 1000 * smooth_volume(shape, 3) - 500]
    images = [
        cleans[0] + 0.3 * rng.normal(size=shape).astype(np.float32),
        0.7 * cleans[1] + 200 * rng.normal(size=shape).astype(np.float32),
    ]
    measured = image_quality(tensor(*images), tensor(*cleans))["ssim"]
    expected = [ssim_float64(image, clean) for image, clean in zip(images, cleans, strict=True)]
    assert all(0.05 < value < 0.98 for value in expected)
    np.testing.assert_allclose(measured, expected, atol=2e-5)


def test_ssim_equals_monai() -> None:
    clean = tensor(smooth_volume((20, 18, 16), 8))
    clean = (clean - clean.min()) / (clean.max() - clean.min())
    image = clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    metric = SSIMMetric(spatial_dims=3, data_range=1.0, win_size=11, kernel_sigma=1.5)
    # MONAI sums 1331 products in float32.
    torch.testing.assert_close(
        image_quality(image, clean)["ssim"], metric(image, clean)[:, 0], atol=1e-4, rtol=0
    )


def test_identical_images() -> None:
    clean = tensor(smooth_volume((16, 16, 16), 4))
    measured = image_quality(clean.clone(), clean)
    assert measured["l1"].item() == 0
    assert measured["psnr"].item() == math.inf
    assert measured["ssim"].item() == pytest.approx(1, abs=1e-6)


def test_the_unit_does_not_matter() -> None:
    clean = tensor(smooth_volume((16, 16, 16), 5))
    image = clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    plain, hounsfield = image_quality(image, clean), image_quality(image * 300 - 700, clean * 300 - 700)
    torch.testing.assert_close(hounsfield["psnr"], plain["psnr"], atol=1e-3, rtol=0)
    torch.testing.assert_close(hounsfield["ssim"], plain["ssim"], atol=1e-4, rtol=0)


def test_a_scan_is_measured_by_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = tensor(smooth_volume((31, 14, 15), 6))
    image = clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    whole = image_quality(image, clean)["ssim"]
    for thickness in (1, 4, 20):
        monkeypatch.setattr(similarity, "_SLAB_VOXELS", thickness * 14 * 15)
        torch.testing.assert_close(image_quality(image, clean)["ssim"], whole, atol=1e-6, rtol=0)


def test_mixed_precision_around_it_changes_nothing() -> None:
    clean = tensor(smooth_volume((16, 16, 16), 7))
    image = clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    plain = image_quality(image, clean)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = image_quality(image, clean)
    for name in plain:
        assert torch.equal(plain[name], mixed[name])


def test_a_constant_clean_image_has_range_1() -> None:
    clean = torch.full((1, 1, 12, 12, 12), 3.0)
    measured = image_quality(clean + 0.1, clean)
    assert measured["psnr"].item() == pytest.approx(20, abs=1e-3)
    assert math.isfinite(measured["ssim"].item())
