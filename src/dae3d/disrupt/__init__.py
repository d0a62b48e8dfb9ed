"""Disruptions: what is done to a clean crop before the network repairs it.

A disruption is a chain of steps, each a function from `Disrupted` to `Disrupted`. To add one, write its step
in a file of its own and give it a line in `DISRUPTIONS`.
"""

from collections.abc import Callable

from torch import Tensor

from dae3d.disrupt.batch import Disrupted, DisruptionSettings, clipped, sample_keys
from dae3d.disrupt.block_mask import block_mask
from dae3d.disrupt.downsample import downsample
from dae3d.disrupt.local_mask import local_mask
from dae3d.disrupt.noise import noise
from dae3d.disrupt.varied import varied_block_mask, varied_downsample, varied_noise

Step = Callable[[Disrupted, DisruptionSettings], Disrupted]

DISRUPTIONS: dict[str, tuple[Step, ...]] = {
    "all": (noise, downsample, local_mask),
    "denoise": (noise,),
    "superres": (downsample,),
    "local_mask": (local_mask,),
    "mae": (block_mask,),
    "varied": (varied_noise, varied_downsample, varied_block_mask),
}


def masks_blocks(name: str) -> bool:
    """Whether a disruption masks blocks of voxels, and with them tokens."""
    return bool({block_mask, varied_block_mask} & set(DISRUPTIONS[name]))


def lowers_resolution(name: str) -> bool:
    """Whether a disruption takes away resolution."""
    return bool({downsample, varied_downsample} & set(DISRUPTIONS[name]))


def disrupt(name: str, image: Tensor, seed: int, samples: Tensor, settings: DisruptionSettings) -> Disrupted:
    """Disrupt a batch on its own device, without waiting for it.

    Args:
        name: a key of `DISRUPTIONS`.
        image: (B, C, D, H, W), left as it is.
        seed: of the run.
        samples: (B,) int64 sample numbers on the same device. A sample's disruption depends on its number
            and the seed alone.
        settings: strengths.
    """
    batch = Disrupted(image=image, keys=sample_keys(seed, samples))
    for step in DISRUPTIONS[name]:
        batch = step(batch, settings)
    return batch


__all__ = [
    "DISRUPTIONS",
    "Disrupted",
    "DisruptionSettings",
    "clipped",
    "disrupt",
    "lowers_resolution",
    "masks_blocks",
    "sample_keys",
]
