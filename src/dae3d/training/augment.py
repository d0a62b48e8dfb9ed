"""Augmentation of labelled crops, with MONAI's transforms, each sample's drawn from its own seed."""

from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import RandScaleIntensityd, RandShiftIntensityd
from monai.transforms.spatial.dictionary import RandFlipd, RandRotate90d
from torch import Tensor

from dae3d.training.finetune_settings import FinetuneSettings


class Augmentation:
    """Flips, rotations by right angles and intensity jitter, as in the published fine-tuning."""

    def __init__(self, settings: FinetuneSettings) -> None:
        s, both = settings, ("image", "label")
        self.transform = Compose(
            [
                *(RandFlipd(both, prob=s.flip_prob, spatial_axis=axis) for axis in range(3)),
                RandRotate90d(both, prob=s.rotate_prob, max_k=3, spatial_axes=(0, 1)),
                RandScaleIntensityd("image", factors=s.scale_intensity, prob=s.scale_prob),
                RandShiftIntensityd("image", offsets=s.shift_intensity, prob=s.shift_prob),
            ]
        )

    def __call__(self, image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Augment one crop.

        Args:
            image: (C, D, H, W) normalised.
            label: (1, D, H, W) class indices, moved as the image is.
            seed: decides everything that is drawn.
        """
        self.transform.set_random_state(seed)
        made = self.transform({"image": image, "label": label})
        return tuple(getattr(made[key], "as_tensor", made[key].clone)() for key in ("image", "label"))
