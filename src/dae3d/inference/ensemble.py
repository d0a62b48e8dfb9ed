"""Fine-tuned networks that segment together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dae3d.errors import Dae3dError
from dae3d.models.loading import load
from dae3d.models.network import Network, WeightsInfo
from dae3d.models.weights import Contents, read_weights
from dae3d.scans.sides import AXES, Axis
from dae3d.store.recipe import CaseRecipe
from dae3d.store.source import digest


@dataclass(frozen=True)
class Ensemble:
    """Networks in eval mode, and what is common to them.

    Attributes:
        networks: in eval mode.
        recipe: of the cases that all of them take.
        digests: of their files.
        flips: the axes that all of them were trained with flips along; None where a file does not say it.
        infos: what each file says of its training.
    """

    networks: list[nn.Module]
    recipe: CaseRecipe
    digests: list[str]
    flips: tuple[Axis, ...] | None = None
    infos: Sequence[WeightsInfo] = ()


def load_ensemble(weights: Sequence[Path], device: torch.device) -> Ensemble:
    """Load segmentation networks of one task.

    Raises:
        Dae3dError: where a file is of no fine-tuned network, or its cases were prepared otherwise than those
            of the first.
    """
    networks = [load(source) for source in weights]
    recipes = [_recipe(source, network) for source, network in zip(weights, networks, strict=True)]
    for source, recipe in zip(weights, recipes, strict=True):
        for field in CaseRecipe.model_fields:
            own, first = getattr(recipe, field), getattr(recipes[0], field)
            if own != first:
                raise Dae3dError(
                    f"weights: {source} and {weights[0]} cannot be averaged: {field} is {own}, and {first}"
                )
    digests = sorted(digest([network.weights]) for network in networks)
    flips = [_flips(network.info) for network in networks]
    common = None if None in flips else tuple(a for a in AXES if all(a in (own or ()) for own in flips))
    infos = [network.info for network in networks]
    return Ensemble([network.to(device) for network in networks], recipes[0], digests, common, infos)


def recipe_of(source: Path) -> CaseRecipe:
    """How cases are prepared for a segmentation network; raises as `load_ensemble`."""
    return _recipe(source, read_weights(source))


def _flips(info: WeightsInfo) -> tuple[Axis, ...] | None:
    """The axes that training flipped crops along, or None where that is not known."""
    if "flip_axes" in info:
        return tuple(info["flip_axes"])
    # When there was no choice of axes.
    probability = info.get("settings", {}).get("flip_prob")
    return None if probability is None else AXES if probability else ()


def _recipe(source: Path, network: Network | Contents) -> CaseRecipe:
    if network.info.get("task") != "segmentation":
        raise Dae3dError(
            f"{source}: not a segmentation network; make one with `dae3d finetune --init {source} ...` first"
        )
    if "recipe" not in network.info:
        raise Dae3dError(
            f"{source}: does not say how scans are to be prepared for it; weights that do are written by "
            f"`dae3d finetune --init {source} ...`"
        )
    return CaseRecipe.model_validate(network.info["recipe"])
