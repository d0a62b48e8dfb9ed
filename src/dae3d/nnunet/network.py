"""A network of dae3d as nnU-Net's trainers and predictor use one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dae3d.models.backbones import architecture_of_header
from dae3d.models.load_report import LoadReport
from dae3d.models.loading import load_into
from dae3d.models.network import Segmenter
from dae3d.models.resenc.foreign import REVERSED, inherited
from dae3d.models.weights import read_weights

_ENTRY = "dae3d_architecture"  # in nnU-Net's plans


class NnunetNetwork(nn.Module):
    """A `Segmenter` for images with nnU-Net's order of axes.

    Args:
        segmenter: the network, whose axes are (right, anterior, superior).
        axes: the axis of ours that each of nnU-Net's axes is.
    """

    def __init__(self, segmenter: Segmenter, axes: Sequence[int] = REVERSED) -> None:
        super().__init__()
        self.segmenter = segmenter
        self._there = [0, 1, *(2 + axis for axis in axes)]

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, ...) to logits (B, classes, ...), the spatial axes being nnU-Net's."""
        back = [self._there.index(axis) for axis in range(5)]
        logits: Tensor = self.segmenter(image.permute(back)).permute(self._there)
        return logits


def with_our_plan(plans: dict[str, Any], configuration: str, weights: Path) -> dict[str, Any]:
    """nnU-Net's plans for the network of some weights: its architecture, and a patch size that it takes.

    Sides of the patch are rounded up to multiples. The plans of a trained model already have both.
    """
    if _ENTRY in plans:
        return plans
    architecture = read_weights(weights).architecture
    own = dict(plans["configurations"][configuration])
    multiple = [architecture.multiple[axis] for axis in _axes(plans)]
    patch = inherited(plans["configurations"], configuration)["patch_size"]
    own["patch_size"] = [-(-side // step) * step for side, step in zip(patch, multiple, strict=True)]
    configurations = {**plans["configurations"], configuration: own}
    return {**plans, "configurations": configurations, _ENTRY: architecture.header()}


def build(plans: Mapping[str, Any], channels: int, classes: int) -> NnunetNetwork:
    """The network of plans from `with_our_plan`, with random weights."""
    architecture = replace(
        architecture_of_header(plans[_ENTRY]),
        in_channels=channels,
        out_channels=classes,
        restore_intensity=False,
        deep_supervision=False,
    )
    return NnunetNetwork(Segmenter(architecture), _axes(plans))


def load_weights(network: NnunetNetwork, weights: Path) -> LoadReport:
    """Load the encoder of pre-trained weights, or both halves of segmentation weights."""
    contents = read_weights(weights)
    half: Any = "both" if contents.task == "segmentation" else "encoder"
    return load_into(network.segmenter, contents, half, show=False)


def _axes(plans: Mapping[str, Any]) -> list[int]:
    """The axis of ours that each of nnU-Net's axes is, after it has moved them."""
    return [REVERSED[axis] for axis in plans["transpose_forward"]]
