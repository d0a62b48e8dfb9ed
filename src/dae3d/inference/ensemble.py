"""Ensembles of fine-tuned segmentation networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dae3d.errors import Dae3dError
from dae3d.models.contents import Contents
from dae3d.models.loading import load
from dae3d.models.network import Network, WeightsInfo
from dae3d.models.weights import read_weights
from dae3d.scans.sides import AXES, Axis
from dae3d.store.recipe import CaseRecipe
from dae3d.store.source import digest


@dataclass(frozen=True)
class Ensemble:
    """Networks and their common properties.

    Attributes:
        networks: in eval mode.
        recipe: how cases are prepared, the same for all networks.
        digests: of the weight files.
        flips: axes along which all networks were trained with flips; None if a file does not record it.
        infos: the training information in each file.
    """

    networks: list[nn.Module]
    recipe: CaseRecipe
    digests: list[str]
    flips: tuple[Axis, ...] | None = None
    infos: Sequence[WeightsInfo] = ()


def load_ensemble(weights: Sequence[str | Path], device: torch.device) -> Ensemble:
    """Load segmentation networks of one task.

    Raises:
        Dae3dError: if a file is not a segmentation network, or its cases were prepared differently from those
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


def recipe_of(source: str | Path) -> CaseRecipe:
    """How cases are prepared for a segmentation network; raises like `load_ensemble`."""
    return _recipe(source, read_weights(source))


def _flips(info: WeightsInfo) -> tuple[Axis, ...] | None:
    """The axes along which training flipped crops, or None if unknown."""
    if "flip_axes" in info:
        return tuple(info["flip_axes"])
    # Older weights record only a probability, for all axes.
    probability = info.get("settings", {}).get("flip_prob")
    return None if probability is None else AXES if probability else ()


def _recipe(source: str | Path, network: Network | Contents) -> CaseRecipe:
    if network.info.get("task") != "segmentation":
        raise Dae3dError(
            f"{source}: not a segmentation network; make one with `dae3d finetune --init {source} ...` first"
        )
    if "recipe" not in network.info:
        raise Dae3dError(
            f"{source}: does not record how scans are prepared for it; `dae3d finetune --init {source} ...` "
            "writes weights that do"
        )
    return CaseRecipe.model_validate(network.info["recipe"])
