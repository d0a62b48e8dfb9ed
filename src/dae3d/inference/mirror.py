"""Along which axes a prediction is mirrored: those that training flipped, and not those that swap sides."""

import logging
from collections.abc import Sequence

from dae3d.errors import Dae3dError
from dae3d.inference.ensemble import Ensemble
from dae3d.scans.sides import AXES, AXES_SHOWN, Axis, sided, telling

log = logging.getLogger(__name__)


def mirrored_axes(ensemble: Ensemble, chosen: Sequence[Axis] | None) -> tuple[Axis, ...]:
    """The axes to mirror along; what is odd about them is said.

    Args:
        ensemble: that predicts.
        chosen: by the user; None takes those that training flipped, or all where that is not known, without
            lr where names of classes tell left from right.

    Raises:
        Dae3dError: where none is left of them.
    """
    sides = sided(ensemble.recipe.class_names)
    trained = AXES if ensemble.flips is None else ensemble.flips
    if chosen is not None:
        axes = tuple(axis for axis in AXES if axis in chosen)
        strange = [axis for axis in axes if axis not in trained]
        if strange:
            log.warning("mirroring along %s, which training did not flip", " and ".join(strange))
        if sides and "lr" in axes:
            log.warning("%s, and mirroring along lr exchanges the two", telling(sides))
        return axes
    axes = tuple(axis for axis in trained if not (sides and axis == "lr"))
    if not axes:
        why = "training flipped lr alone" if trained else "the weights were trained without flips"
        raise Dae3dError(
            f"mirror: {why}{', and ' + telling(sides) if trained else ''}; leave --mirror out, or say with "
            f"--mirror-axes along which to mirror all the same: {AXES_SHOWN}"
        )
    if ensemble.flips is None:
        log.warning("the weights do not say which axes training flipped; taken to be all")
    if sides and "lr" in trained:
        log.warning("%s: not mirrored along lr, which would exchange the two", telling(sides))
    log.info("mirroring along %s", " and ".join(axes))
    return axes
