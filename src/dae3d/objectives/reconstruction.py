"""Reconstruction losses."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

# Below it, a crop is as good as uniform: air, or one tissue in a window of CT.
_LEAST_DEVIATION = 0.05


def reconstruction_loss(repaired: Tensor, clean: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute error of each sample.

    Args:
        repaired: (B, C, D, H, W).
        clean: (B, C, D, H, W), or twice, four times, ... as large a side: then its mean over blocks counts.
        weight: (B, 1, ...) of the voxels of `clean`, bool or floating; None weighs all alike. A sample whose
            weights are all zero has the loss 0.

    Returns:
        (B,) float32.
    """
    times = clean.shape[2] // repaired.shape[2]
    if times > 1:
        clean = avg_pool3d(clean.float(), times)
        weight = None if weight is None else avg_pool3d(weight.float(), times)
    error = (repaired.float() - clean.float()).abs()
    if weight is None:
        return error.flatten(1).mean(dim=1)
    weight = weight.expand_as(error).to(error.dtype)
    total = weight.flatten(1).sum(dim=1)
    return (error * weight).flatten(1).sum(dim=1) / torch.where(total > 0, total, 1)


def deviation(clean: Tensor, inside: Tensor | None = None) -> Tensor:
    """Standard deviation of each crop's voxels, of those `inside` the scan where that is given.

    An error divided by it weighs as much for CT, scaled to [0, 1], as for MR in z-scores.

    Args:
        clean: (B, C, D, H, W).
        inside: (B, 1, D, H, W) bool.

    Returns:
        (B,) float32, at least 0.05.
    """
    image = clean.float()
    weight = torch.ones_like(image) if inside is None else inside.expand_as(image).to(image.dtype)
    total = weight.flatten(1).sum(dim=1).clamp(min=1)
    mean = (image * weight).flatten(1).sum(dim=1) / total
    apart = (image - mean[:, None, None, None, None]).square() * weight
    return (apart.flatten(1).sum(dim=1) / total).sqrt().clamp(min=_LEAST_DEVIATION)
