"""Disruptions: the corruptions applied to a clean crop, which the network learns to undo.

"all" is the published combination of noise, downsampling and local channel masking; "mae" masks blocks, as
masked autoencoders do (He et al., arXiv 2111.06377); "varied" draws the strength of each step per sample. All
random numbers depend only on the seed and the sample number (`random.py`).

To add a disruption, write its steps and settings in a file of its own, add it to `DISRUPTIONS`, and let
`DisruptionSettings` inherit the settings.
"""

from typing import Annotated

from pydantic import AfterValidator, Field
from torch import Tensor

from dae3d.disrupt.batch import Disrupted, clipped, sample_keys
from dae3d.disrupt.block_mask import BlockMaskSettings, block_mask
from dae3d.disrupt.downsample import DownsampleSettings, downsample
from dae3d.disrupt.jitter import JitterSettings
from dae3d.disrupt.local_mask import LocalMaskSettings, local_mask
from dae3d.disrupt.noise import NoiseSettings, noise
from dae3d.disrupt.step import DISRUPTION, Disruption, Step
from dae3d.disrupt.varied import varied_block_mask, varied_downsample, varied_noise
from dae3d.settings import Settings

_CHANNELS = "masked channels of the embedding"

DISRUPTIONS: dict[str, Disruption] = {
    "all": Disruption(
        (noise, downsample, local_mask),
        f"noise, loss of resolution and {_CHANNELS}",
        "the published combination: denoise, superres and local_mask in turn",
    ),
    "denoise": Disruption((noise,), "noise", "Gaussian noise"),
    "superres": Disruption((downsample,), "loss of resolution", "down- and up-sampling"),
    "local_mask": Disruption((local_mask,), _CHANNELS, "masked channels, or blocks, of the token embedding"),
    "mae": Disruption((block_mask,), "masked blocks of voxels", "masked blocks"),
    "varied": Disruption(
        (varied_noise, varied_downsample, varied_block_mask),
        "noise, loss of resolution and masked blocks, each with a random strength per crop",
        "noise, downsampling and masked blocks, each with a random strength per crop, including zero",
    ),
}


def _known(name: str) -> str:
    if name not in DISRUPTIONS:
        raise ValueError(f"must be one of {', '.join(DISRUPTIONS)}")
    return name


DisruptionName = Annotated[str, AfterValidator(_known)]


class _Choice(Settings):
    disruption: Annotated[DisruptionName, DISRUPTION] = Field(
        "varied", description=". ".join(f"{name}: {each.help}" for name, each in DISRUPTIONS.items())
    )


class DisruptionSettings(
    JitterSettings, BlockMaskSettings, LocalMaskSettings, DownsampleSettings, NoiseSettings, _Choice
):
    """The choice of disruption and the settings of all steps; most defaults are the published values."""


def disrupt(
    image: Tensor,
    seed: int,
    samples: Tensor,
    settings: DisruptionSettings,
    channels: int,
    stride: tuple[int, int, int] = (2, 2, 2),
) -> Disrupted:
    """Disrupt a batch on its own device, without synchronising with it.

    Args:
        image: (B, C, D, H, W), not modified.
        seed: seed of the run.
        samples: (B,) int64 sample numbers on the same device. The disruption of a sample depends only on its
            number and the seed.
        settings: the disruption and its strengths.
        channels: channels of the token embedding, or of the stem.
        stride: voxels per token.
    """
    batch = Disrupted(image, sample_keys(seed, samples), channels=channels, stride=stride)
    for step in DISRUPTIONS[settings.disruption].steps:
        batch = step(batch, settings)
    return batch


__all__ = [
    "DISRUPTIONS",
    "Disrupted",
    "Disruption",
    "DisruptionName",
    "DisruptionSettings",
    "Step",
    "clipped",
    "disrupt",
    "sample_keys",
]
