"""Swin UNETR (Hatamizadeh et al., arXiv 2201.01266) as in Disruptive Autoencoders (arXiv 2307.16896)."""

from dae3d.models.swin_unetr.architecture import SwinArchitecture, SwinSettings
from dae3d.models.swin_unetr.encoder import ReferencePatchMerging

__all__ = ["ReferencePatchMerging", "SwinArchitecture", "SwinSettings"]
