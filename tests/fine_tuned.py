"""A fine-tuned network to predict with."""

import numpy as np
import torch

from conftest import smooth_volume
from dae3d.models.network import Segmenter
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.weights import save_weights
from dae3d.store.recipe import CaseRecipe
from scan_files import write_nifti

SMALL = {"embed_dim": 4, "heads": (1, 1, 2, 2), "depths": (1, 1, 1, 1), "window": 2}


LABELS = {0: "background", 2: "oedema", 5: "tumour"}


def recipe_of(**fields):
    return CaseRecipe(**({"modalities": ("ct",), "labels": LABELS, "roi": 32} | fields))


def fine_tuned(path, seed=0, **fields):
    """Weights as fine-tuning writes them, of a network with random weights."""
    recipe = recipe_of(**fields)
    architecture = SwinArchitecture(
        **SMALL, in_channels=len(recipe.modalities), out_channels=len(recipe.label_values)
    )
    torch.manual_seed(seed)
    network = Segmenter(architecture)
    # Without it, random networks find one class everywhere.
    torch.nn.init.normal_(network.decoder.head.conv.conv.weight, std=1.0)
    info = {"task": "segmentation", "recipe": recipe.model_dump(mode="json"), "axes": "straight"}
    save_weights(path, network.state_dict(), architecture, info)
    return path


def ct_scan(path, shape=(40, 36, 34), affine=None, seed=3):
    voxels = np.round(smooth_volume(seed, shape) * 2000 - 1000).astype(np.int16)
    return write_nifti(path, voxels, np.eye(4) if affine is None else affine)
