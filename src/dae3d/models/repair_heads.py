"""The heads that give a repaired image from decoder features below full resolution."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.nn import functional

from dae3d.store.boxes import Triple


class RepairHeads(nn.ModuleList):
    """A head for each feature map; each feature vector of the finest gives the voxels of its place.

    Args:
        heads: the finest first; that of the finest map gives `voxels` times as many channels as the others.
        voxels: of a place of the finest map, along each axis.
        pyramid: whether each resolution adds only the detail that coarser ones lack.
    """

    def __init__(self, heads: Iterable[nn.Module], voxels: Triple, pyramid: bool) -> None:
        super().__init__(heads)
        self.voxels, self.pyramid = voxels, pyramid

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Decoder features, the finest first, to images (B, C, D, H, W) from full resolution on."""
        images = [head(feature) for head, feature in zip(self, features, strict=False)]
        images[0] = _in_voxels(images[0], self.voxels)
        return _added_up(images) if self.pyramid else images


def _in_voxels(features: Tensor, voxels: Triple) -> Tensor:
    """(B, x * y * z * C, D, H, W) to (B, C, x * D, y * H, z * W), a 3D pixel shuffle."""
    shuffled = features.unflatten(1, (-1, *voxels)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return shuffled.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _added_up(details: Sequence[Tensor]) -> list[Tensor]:
    """Images from a Laplacian pyramid (Burt and Adelson, 1983): each detail is added to a coarser image.

    Averaging an image to the next coarser resolution gives the coarser image exactly, because a detail has
    mean zero within each coarse voxel. Slow variation is thus left to the coarse levels.

    Args:
        details: (B, C, D, H, W), the finest first; the sides of each are multiples of those of the next.

    Returns:
        As many images of the same shapes, float32.
    """
    *finer, coarsest = details
    images = [coarsest.float()]
    for detail in reversed(finer):
        times = [fine // coarse for fine, coarse in zip(detail.shape[2:], images[0].shape[2:], strict=True)]
        factors = [float(factor) for factor in times]
        image = functional.interpolate(images[0], scale_factor=factors, mode="trilinear") + detail
        missing = images[0] - functional.avg_pool3d(image, times)
        images.insert(0, image + functional.interpolate(missing, scale_factor=factors))
    return images
