"""All image quality metrics of a batch."""

import torch
from torch import Tensor

from dae3d.evaluation.image_metrics import IMAGE_METRICS, Images


@torch.no_grad()
def image_quality(image: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Compare images with the clean ones, sample by sample.

    Needs memory for two more volumes of the same size and about 100 MB.

    Args:
        image: (B, 1, D, H, W), a crop or a whole scan.
        clean: (B, 1, D, H, W).

    Returns:
        (B,) float32 for each name of `IMAGE_METRICS`.
    """
    image, clean = image.float(), clean.float()
    lowest, highest = clean.flatten(1).aminmax(dim=1)
    span = torch.where(highest > lowest, highest - lowest, torch.ones_like(lowest))
    images = Images(image, clean, lowest, span)
    return {name: metric.compute(images) for name, metric in IMAGE_METRICS.items()}
