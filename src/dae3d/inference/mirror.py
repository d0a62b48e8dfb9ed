"""Mirror axes for test-time augmentation: axes flipped in training, unless left and right are classes."""

import logging
from collections.abc import Sequence

from dae3d.errors import Dae3dError
from dae3d.inference.ensemble import Ensemble
from dae3d.scans.sides import AXES, AXES_SHOWN, Axis, sided, telling

log = logging.getLogger(__name__)


def mirrored_axes(ensemble: Ensemble, chosen: Sequence[Axis] | None) -> tuple[Axis, ...]:
    """The axes to mirror along; warns about unusual choices.

    Args:
        ensemble: the networks.
        chosen: axes chosen by the user; None takes the axes flipped in training (all if unknown), without lr
            if class names distinguish left from right.

    Raises:
        Dae3dError: if no axis is left.
    """
    sides = sided(ensemble.recipe.class_names)
    trained = AXES if ensemble.flips is None else ensemble.flips
    if chosen is not None:
        axes = tuple(axis for axis in AXES if axis in chosen)
        strange = [axis for axis in axes if axis not in trained]
        if strange:
            log.warning("mirroring along %s, although training did not flip along it", " and ".join(strange))
        if sides and "lr" in axes:
            log.warning("%s, and mirroring along lr swaps the two", telling(sides))
        return axes
    axes = tuple(axis for axis in trained if not (sides and axis == "lr"))
    if not axes:
        why = "training flipped only lr" if trained else "the weights were trained without flips"
        raise Dae3dError(
            f"mirror: {why}{', and ' + telling(sides) if trained else ''}; leave --mirror out, or set "
            f"--mirror-axes to mirror anyway: {AXES_SHOWN}"
        )
    if ensemble.flips is None:
        log.warning("the weights do not record which axes training flipped; assuming all")
    if sides and "lr" in trained:
        log.warning("%s: not mirroring along lr, which would swap the two", telling(sides))
    log.info("mirroring along %s", " and ".join(axes))
    return axes
