"""Structural similarity (SSIM) of volumes."""

import torch
from torch import Tensor

from dae3d.evaluation.gaussian import gaussian_weights, weighted_means

WINDOW = 11  # voxels, side of the Gaussian window of SSIM
SIGMA = 1.5  # voxels
_C1, _C2 = 0.01**2, 0.03**2
_SLAB_VOXELS = 2**21


def ssim(image: Tensor, clean: Tensor, lowest: Tensor, span: Tensor) -> Tensor:
    """Mean structural similarity of each sample, (B,) (Wang et al., 2004).

    Intensities are shifted and scaled by the minimum and the data range of the clean sample, so that SSIM is
    the same for HU, z-scores and intensities in [0, 1]. The Gaussian window has 11^3 voxels and sigma 1.5;
    along shorter sides, it has the largest odd number of voxels that fits. The mean is over positions with
    the window completely inside, and is computed by slabs to save memory.

    Args:
        image: (B, 1, D, H, W) float32.
        clean: (B, 1, D, H, W) float32.
        lowest: (B,) minimum intensity of each clean sample.
        span: (B,) data range of each clean sample.
    """
    sides = [min(WINDOW, side - 1 + side % 2) for side in clean.shape[2:]]
    weights = [gaussian_weights(SIGMA, side) for side in sides]
    offset, scale = lowest.view(-1, 1, 1, 1, 1), span.view(-1, 1, 1, 1, 1)
    positions = clean.shape[2] - sides[0] + 1
    thickness = max(1, _SLAB_VOXELS // clean[:, :, 0].numel())
    total, count = torch.zeros_like(lowest), 0
    for start in range(0, positions, thickness):
        end = min(start + thickness, positions) + sides[0] - 1
        x, y = ((volume[:, :, start:end] - offset) / scale for volume in (image, clean))
        similarity = _similarity(x, y, weights)
        total += similarity.flatten(1).sum(dim=1)
        count += similarity[0].numel()
    return total / count


def _similarity(x: Tensor, y: Tensor, weights: list[list[float]]) -> Tensor:
    """SSIM at every window position, for a data range of 1 (Wang et al., 2004, equation 13)."""
    mean_x, mean_y = weighted_means(x, weights), weighted_means(y, weights)
    variance_x = weighted_means(x * x, weights) - mean_x.square()
    variance_y = weighted_means(y * y, weights) - mean_y.square()
    covariance = weighted_means(x * y, weights) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    return luminance * (2 * covariance + _C2) / (variance_x + variance_y + _C2)
