"""Baselines for image repair without a network: interpolation and Gaussian smoothing."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from dae3d.evaluation.gaussian import gaussian_weights, weighted_means

SIGMAS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # voxels


@torch.no_grad()
def best_baselines(disrupted: Tensor, clean: Tensor, factor: int, downsampled: bool) -> dict[str, Tensor]:
    """Repair by interpolation and by smoothing.

    Smoothing uses, for each sample, the sigma of `SIGMAS` with the highest PSNR. Choosing it requires the
    clean image, so the comparison favours the baseline.

    Args:
        disrupted: (B, 1, D, H, W).
        clean: (B, 1, D, H, W).
        factor: downsampling factor.
        downsampled: whether the disruption contains downsampling; otherwise interpolation is omitted.

    Returns:
        "gaussian" and, if downsampled, "trilinear" and "trilinear+gaussian", each (B, 1, D, H, W) float32.
    """
    repairs = {"gaussian": _best_gaussian(disrupted, clean)}
    if downsampled:
        interpolated = trilinear(disrupted, factor)
        repairs = {
            "trilinear": interpolated,
            **repairs,
            "trilinear+gaussian": _best_gaussian(interpolated, clean),
        }
    return repairs


def trilinear(image: Tensor, factor: int) -> Tensor:
    """Undo nearest-neighbour down- and upsampling by linear interpolation between the voxels that were kept.

    These are voxels 0, factor, 2 factor, ... along each axis. They stay in place, so there is no shift by
    half a block. Beyond the last one its value is repeated.

    Args:
        image: (B, C, D, H, W), after nearest-neighbour sampling by `factor`.
        factor: sampling factor.

    Returns:
        (B, C, D, H, W) float32.
    """
    survivors = image[..., ::factor, ::factor, ::factor].float()
    covered = [(n - 1) * factor + 1 for n in survivors.shape[2:]]
    between = interpolate(survivors, size=covered, mode="trilinear", align_corners=True)
    behind = [side - n for side, n in zip(image.shape[2:], covered, strict=True)]
    return pad(between, (0, behind[2], 0, behind[1], 0, behind[0]), mode="replicate")


def gaussian(image: Tensor, sigma: float) -> Tensor:
    """Smooth with a Gaussian truncated at 4 sigma, with replicated borders.

    Args:
        image: (B, C, D, H, W).
        sigma: in voxels.

    Returns:
        (B, C, D, H, W) float32.
    """
    radius = int(4 * sigma + 0.5)
    padded = pad(image.float(), [radius] * 6, mode="replicate")
    return weighted_means(padded, [gaussian_weights(sigma, 2 * radius + 1)] * 3)


def _best_gaussian(image: Tensor, clean: Tensor) -> Tensor:
    best, least = image.float(), image.new_full((len(image),), torch.inf, dtype=torch.float32)
    for sigma in SIGMAS:
        smoothed = gaussian(image, sigma)
        error = (smoothed - clean).square().flatten(1).mean(dim=1)
        best = torch.where((error < least).view(-1, 1, 1, 1, 1), smoothed, best)
        least = torch.minimum(least, error)
    return best
