import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from dae3d.evaluation.baselines import SIGMAS, best_baselines, gaussian, trilinear


def nearest(volume: np.ndarray, factor: int) -> np.ndarray:
    """Every factor-th voxel, repeated over its block."""
    blocks = volume[::factor, ::factor, ::factor]
    for axis in range(3):
        blocks = blocks.repeat(factor, axis)
    return blocks[: volume.shape[0], : volume.shape[1], : volume.shape[2]]


def tensor(*volumes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(volumes)[:, None].astype(np.float32))


def test_trilinear_recovers_a_ramp() -> None:
    x, y, z = np.meshgrid(np.arange(16), np.arange(24), np.arange(20), indexing="ij")
    ramp = 2.0 * x - 3.0 * y + 0.5 * z + 7
    repaired = trilinear(tensor(nearest(ramp, 4)), 4)[0, 0].numpy()
    # The last samples sit at 12, 20 and 16; behind them nothing is known, and the value is repeated.
    np.testing.assert_allclose(repaired[:13, :21, :17], ramp[:13, :21, :17], atol=1e-4)
    np.testing.assert_allclose(repaired[13:, 0, 0], ramp[12, 0, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "factor"), [((16, 24, 20), 4), ((13, 9, 10), 2), ((9, 7, 6), 3), ((3, 8, 8), 4)]
)
def test_trilinear_equals_scipy_at_the_true_positions(shape: tuple[int, int, int], factor: int) -> None:
    volume = np.random.default_rng(0).normal(size=shape)
    positions = np.stack(np.meshgrid(*[np.arange(n) / factor for n in shape], indexing="ij"))
    survivors = volume[::factor, ::factor, ::factor]
    expected = map_coordinates(survivors, positions, order=1, mode="nearest")
    repaired = trilinear(tensor(nearest(volume, factor)), factor)[0, 0].numpy()
    np.testing.assert_allclose(repaired, expected, atol=1e-5)
    np.testing.assert_allclose(repaired[::factor, ::factor, ::factor], survivors, atol=1e-6)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_gaussian_equals_scipy(sigma: float) -> None:
    volume = np.random.default_rng(1).normal(size=(12, 17, 9))
    smoothed = gaussian(tensor(volume, 2 * volume), sigma)[:, 0].numpy()
    expected = gaussian_filter(volume, sigma, mode="nearest", truncate=4.0)
    np.testing.assert_allclose(smoothed[0], expected, atol=1e-5)
    np.testing.assert_allclose(smoothed[1], 2 * expected, atol=1e-5)


def test_gaussian_ignores_mixed_precision() -> None:
    volume = tensor(np.random.default_rng(2).normal(size=(12, 12, 12)))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = gaussian(volume, 1.5)
    assert torch.equal(mixed, gaussian(volume, 1.5))


def test_the_best_sigma_of_each_sample() -> None:
    rng = np.random.default_rng(3)
    cleans = [gaussian_filter(rng.normal(size=(20, 20, 20)), width) for width in (0.8, 4.0)]
    cleans = [clean / clean.std() for clean in cleans]
    noisy = [clean + 0.5 * rng.normal(size=clean.shape) for clean in cleans]
    repaired = best_baselines(tensor(*noisy), tensor(*cleans), factor=4, downsampled=False)
    assert list(repaired) == ["gaussian"]
    chosen = []
    for i, clean in enumerate(cleans):
        trials = {sigma: gaussian_filter(noisy[i], sigma, mode="nearest") for sigma in SIGMAS}
        errors = {sigma: np.mean((trial - clean) ** 2) for sigma, trial in trials.items()}
        chosen.append(min(errors, key=lambda sigma: errors[sigma]))
        np.testing.assert_allclose(repaired["gaussian"][i, 0], trials[chosen[i]], atol=1e-4)
    assert chosen[0] < chosen[1]


def test_interpolation_where_resolution_was_lost() -> None:
    clean = gaussian_filter(np.random.default_rng(4).normal(size=(24, 24, 24)), 3)
    disrupted = tensor(nearest(clean, 4))
    repaired = best_baselines(disrupted, tensor(clean), factor=4, downsampled=True)
    assert list(repaired) == ["trilinear", "gaussian", "trilinear+gaussian"]
    assert torch.equal(repaired["trilinear"], trilinear(disrupted, 4))
    errors = {
        name: float((image[0, 0] - torch.from_numpy(clean)).square().mean())
        for name, image in repaired.items()
    }
    assert errors["trilinear"] < errors["gaussian"]
