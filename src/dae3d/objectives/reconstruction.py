"""Weighted mean absolute error (L1)."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

# Crops below it are practically uniform: air, or a single tissue in a CT window.
_LEAST_DEVIATION = 0.05


def reconstruction_loss(repaired: Tensor, clean: Tensor, weight: Tensor | None = None) -> Tensor:
    """Weighted mean absolute error of each sample.

    Args:
        repaired: (B, C, D, H, W).
        clean: (B, C, D, H, W), or larger by a factor of 2, 4, ... along each axis; it is then average-pooled
            to the size of `repaired`.
        weight: (B, 1, ...) weights of the voxels of `clean`, bool or floating; None for equal weights. The
            loss of a sample whose weights are all zero is 0.

    Returns:
        (B,) float32.
    """
    times = [whole // side for whole, side in zip(clean.shape[2:], repaired.shape[2:], strict=True)]
    if max(times) > 1:
        clean = avg_pool3d(clean.float(), times)
        weight = None if weight is None else avg_pool3d(weight.float(), times)
    error = (repaired.float() - clean.float()).abs()
    if weight is None:
        return error.flatten(1).mean(dim=1)
    weight = weight.expand_as(error).to(error.dtype)
    total = weight.flatten(1).sum(dim=1)
    return (error * weight).flatten(1).sum(dim=1) / torch.where(total > 0, total, 1)


def deviation(clean: Tensor, inside: Tensor | None = None) -> Tensor:
    """Standard deviation of the voxel intensities of each crop.

    Dividing errors by it makes CT (scaled to [0, 1]) and MR (z-scores) contribute equally to the loss.

    Args:
        clean: (B, C, D, H, W).
        inside: (B, 1, D, H, W) bool, the voxels to include; None for all.

    Returns:
        (B,) float32, at least 0.05.
    """
    image = clean.float()
    weight = torch.ones_like(image) if inside is None else inside.expand_as(image).to(image.dtype)
    total = weight.flatten(1).sum(dim=1).clamp(min=1)
    mean = (image * weight).flatten(1).sum(dim=1) / total
    apart = (image - mean[:, None, None, None, None]).square() * weight
    return (apart.flatten(1).sum(dim=1) / total).sqrt().clamp(min=_LEAST_DEVIATION)
