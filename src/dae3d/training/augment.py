"""Augmentation of labelled crops with MONAI's transforms, seeded per sample."""

import logging
from collections.abc import Sequence
from typing import Any

from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import RandScaleIntensityd, RandShiftIntensityd
from monai.transforms.spatial.dictionary import RandFlipd, RandRotate90d
from torch import Tensor

from dae3d.scans.sides import AXES, Axis, sided, telling
from dae3d.training.finetune_settings import FinetuneSettings

log = logging.getLogger(__name__)


def flipped_axes(settings: FinetuneSettings) -> tuple[Axis, ...]:
    """The axes along which crops are flipped."""
    chosen = AXES if settings.flip_axes is None else settings.flip_axes
    return tuple(axis for axis in AXES if axis in chosen) if settings.flip_prob else ()


def with_flip_axes(settings: FinetuneSettings, classes: Sequence[str]) -> FinetuneSettings:
    """The settings with the axes to flip along filled in, for classes with these names.

    If class names distinguish left from right, axes whose flips swap the two are left out.

    Args:
        settings: of the run.
        classes: names.
    """
    if settings.flip_axes is not None or not sided(classes):
        return settings
    axes = [axis for axis in AXES if axis not in _exchanging(settings)]
    return settings.model_copy(update={"flip_axes": axes})


def say_sides(settings: FinetuneSettings, classes: Sequence[str]) -> None:
    """Log what flips do to classes that distinguish left from right, if there are any."""
    sides, axes = sided(classes), flipped_axes(settings)
    if not sides or not axes:
        return
    exchanging = _exchanging(settings)
    wrong = [axis for axis in axes if axis in exchanging]
    if wrong:
        log.warning(
            "%s: flips along %s%s swap the two, so the network cannot learn to distinguish them; "
            "--flip-axes %s avoids that",
            *(telling(sides), " and ".join(wrong), "" if "lr" in wrong else ", with axial rotations,"),
            " ".join(axis for axis in AXES if axis not in exchanging),
        )
    else:
        log.info("%s: crops are flipped only along %s (--flip-axes)", telling(sides), " and ".join(axes))


def _exchanging(settings: FinetuneSettings) -> set[Axis]:
    """The axes whose flips swap left and right.

    With rotations this includes front to back: a rotation by 180 degrees turns it into a flip from left to
    right.
    """
    return {"lr", "ap"} if settings.rotate_prob else {"lr"}


class _RandRotate180d(RandRotate90d):
    """Draws what `RandRotate90d` draws, but always rotates by 180 degrees, which keeps the shape."""

    def randomize(self, data: Any | None = None) -> None:
        super().randomize(data)
        self._rand_k = 2


class Augmentation:
    """Flips, rotations by right angles and intensity jitter, as in the published fine-tuning.

    Crops whose first two sides differ are rotated by 180 degrees only.
    """

    def __init__(self, settings: FinetuneSettings) -> None:
        s, both, axes = settings, ("image", "label"), flipped_axes(settings)
        # Axes without flips draw too, so that later random numbers stay the same.
        probabilities = [s.flip_prob if axis in axes else 0.0 for axis in AXES]
        rotation = RandRotate90d if s.roi[0] == s.roi[1] else _RandRotate180d
        self.transform = Compose(
            [
                *(RandFlipd(both, prob=prob, spatial_axis=n) for n, prob in enumerate(probabilities)),
                rotation(both, prob=s.rotate_prob, max_k=3, spatial_axes=(0, 1)),
                RandScaleIntensityd("image", factors=s.scale_intensity, prob=s.scale_prob),
                RandShiftIntensityd("image", offsets=s.shift_intensity, prob=s.shift_prob),
            ]
        )

    def __call__(self, image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Augment one crop.

        Args:
            image: (C, D, H, W) normalised.
            label: (1, D, H, W) class indices, transformed like the image.
            seed: of all random numbers.
        """
        self.transform.set_random_state(seed)
        made = self.transform({"image": image, "label": label})
        return tuple(getattr(made[key], "as_tensor", made[key].clone)() for key in ("image", "label"))
