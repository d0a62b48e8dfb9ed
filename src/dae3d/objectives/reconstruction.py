"""Reconstruction loss."""

from torch import Tensor


def reconstruction_loss(repaired: Tensor, clean: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute error of each sample, over all voxels or over those of `mask`.

    Args:
        repaired: (B, C, D, H, W).
        clean: (B, C, D, H, W).
        mask: (B, 1, D, H, W) bool, at least one voxel true in every sample.

    Returns:
        (B,) float32.
    """
    error = (repaired.float() - clean.float()).abs()
    if mask is None:
        return error.flatten(1).mean(dim=1)
    weight = mask.expand_as(error).to(error.dtype)
    return (error * weight).flatten(1).sum(dim=1) / weight.flatten(1).sum(dim=1)
