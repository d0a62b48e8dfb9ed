"""The network of a MONAI bundle: MONAI's own where it is the same, else ours by `dae3d.load`."""

import math
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dae3d.exporting.exported import Exported
from dae3d.exporting.nnunet import write_nnssl
from dae3d.exporting.swin import to_monai, write_reference
from dae3d.files import whole_file
from dae3d.models.architecture import Architecture
from dae3d.models.swin_unetr.architecture import SwinArchitecture, sides_without_edges
from dae3d.models.weights import HEADER
from dae3d.store.boxes import Triple
from dae3d.store.recipe import CaseRecipe


def same_in_monai(architecture: Architecture, roi: Triple) -> bool:
    """Whether MONAI's `SwinUNETR` with these weights gives the same logits for windows of `roi` voxels."""
    if not isinstance(architecture, SwinArchitecture):
        return False
    side = sides_without_edges(architecture.window)
    edges = architecture.window_edges == "reference" or all(each % side == 0 for each in roi)
    # Its norms refuse a single token.
    tokens = math.prod(each // 32 for each in roi)
    return (
        edges
        and tokens > 1
        and architecture.patch_embed == "linear"
        and architecture.patch_merging == "straight"
        and architecture.axes == "straight"
        and architecture.embed_dim % 12 == 0
    )


def network_definition(architecture: Any, in_monai: bool) -> dict[str, Any]:
    """The entry `network_def` of a configuration."""
    if not in_monai:
        return {
            "_target_": "dae3d.load",
            "weights": "$@bundle_root + '/models/model.pt'",
            "task": "segmentation",
            "show": False,
        }
    return {
        "_target_": "SwinUNETR",
        "in_channels": architecture.in_channels,
        "out_channels": architecture.out_channels,
        "feature_size": architecture.embed_dim,
        "depths": list(architecture.depths),
        "num_heads": list(architecture.heads),
        "window_size": architecture.window,
        "downsample": "mergingv2",
    }


def write_model(network: Any, path: Path) -> Exported:
    """The weights for that entry, with our header, so that `dae3d.load` reads them too."""
    architecture = network.architecture
    if not isinstance(architecture, SwinArchitecture):
        return write_nnssl(network, path)
    if not same_in_monai(architecture, CaseRecipe.model_validate(network.info["recipe"]).roi):
        return write_reference(network, path)
    exported = to_monai(network)
    header = {"architecture": replace(architecture, deep_supervision=False).header(), "info": network.info}
    state: Any = OrderedDict(exported.state)
    state._metadata = OrderedDict({HEADER: header})
    with whole_file(path) as temporary:
        torch.save(state, temporary)
    return exported
