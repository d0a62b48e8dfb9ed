"""nnU-Net's residual encoder U-Net (Isensee et al., arXiv 2404.09556), with its names of parameters."""

from dae3d.models.resenc.architecture import ResEncArchitecture, ResEncSettings

__all__ = ["ResEncArchitecture", "ResEncSettings"]
