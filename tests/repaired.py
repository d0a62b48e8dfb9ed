"""What `reconstruct` is tested with."""

import nibabel
import numpy as np
import torch

from dae3d.models.swin_unetr import SwinArchitecture

NAMES = ("clean", "disrupted", "repaired", "error")


def written(folder):
    return {name: nibabel.load(folder / f"{name}.nii.gz") for name in NAMES}


def voxels_of(image):
    return np.asarray(image.dataobj, np.float64)


class Recorder(torch.nn.Module):
    """Gives back what it sees, and remembers it."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.architecture = SwinArchitecture()

    def forward(self, image, channel_keep, token_mask):
        self.seen.append((image, channel_keep, token_mask))
        return image
