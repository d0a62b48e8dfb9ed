"""Settings of pre-training. Defaults are the published recipe where it has one."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from dae3d.disrupt import DISRUPTIONS, DisruptionSettings
from dae3d.disrupt.block_mask import block_mask
from dae3d.disrupt.downsample import downsample
from dae3d.models.swin_unetr import Architecture
from dae3d.settings import Group
from dae3d.store.intensity import ScalingRules
from dae3d.training.run_settings import DATA, NETWORK, RECORD, Duration, RunSettings, check_heads

PROBE_EVERY = 0

DISRUPTION = Group("disruption")
OBJECTIVES = Group("objectives")


def _disruption(name: str) -> str:
    if name not in DISRUPTIONS:
        raise ValueError(f"must be one of {', '.join(DISRUPTIONS)}")
    return name


DisruptionName = Annotated[str, AfterValidator(_disruption)]


class PretrainSettings(RunSettings):
    """Everything that decides a pre-training run."""

    configs: ClassVar[str] = "pretrain"
    durations: ClassVar[tuple[str, ...]] = (*RunSettings.durations, "probe_every")
    earlier: ClassVar[dict[str, Any]] = {"normalise_skips": False, "probe_every": 0}

    data: Path = Field(description="store made by `dae3d prepare`")
    disruption: Annotated[DisruptionName, DISRUPTION] = Field(
        "all",
        description=f"one of {', '.join(DISRUPTIONS)}. denoise: Gaussian noise; superres: down- and "
        "up-sampling; local_mask: masked channels of the token embedding; all: these three in turn; mae: "
        "masked blocks",
    )
    noise_variance: Annotated[float, DISRUPTION] = Field(
        0.1, ge=0, description="variance of the noise, in normalised intensity"
    )
    downsample_factor: Annotated[int, DISRUPTION] = Field(4, ge=1, description="factor in each axis")
    downsample_mode: Annotated[Literal["nearest", "trilinear", "area"], DISRUPTION] = Field(
        "nearest", description="interpolation, down and up"
    )
    channel_mask_ratio: Annotated[float, DISRUPTION] = Field(
        0.6, ge=0, lt=1, description="share of the token embedding's channels that local masking zeroes"
    )
    channel_mask_per_token: Annotated[bool, DISRUPTION] = Field(
        False, description="draw the masked channels for each token instead of once a sample"
    )
    block_size: Annotated[int, DISRUPTION] = Field(
        16, ge=2, description="side in voxels of the blocks that mae masks"
    )
    block_mask_ratio: Annotated[float, DISRUPTION] = Field(
        0.6, gt=0, lt=1, description="share of the blocks that mae masks"
    )

    reconstruction_loss: Annotated[Literal["all", "masked"], OBJECTIVES] = Field(
        "all", description="mean absolute error over all voxels, or over masked ones (mae only)"
    )
    contrastive_weight: Annotated[float, OBJECTIVES] = Field(
        0.03, ge=0, description="weight of the cross-modal contrastive loss; 0 leaves it out"
    )
    contrastive_temperature: Annotated[float, OBJECTIVES] = Field(0.5, gt=0, description="its temperature")

    embed_dim: Annotated[int, NETWORK] = Field(48, ge=1, description="channels of the token embedding")
    depths: Annotated[tuple[int, int, int, int], NETWORK] = Field(
        (2, 2, 2, 2), description="transformer blocks of the four stages"
    )
    heads: Annotated[tuple[int, int, int, int], NETWORK] = Field(
        (3, 6, 12, 24), description="attention heads of the four stages"
    )
    window: Annotated[int, NETWORK] = Field(7, ge=2, description="side of the attention windows, in tokens")
    patch_embed: Annotated[Literal["conv", "linear"], NETWORK] = Field(
        "conv",
        description="patch embedding: two convolutions, as published, or the single one of MONAI's "
        "SwinUNETR, to which all weights can then be exported",
    )
    patch_merging: Annotated[Literal["straight", "reference"], NETWORK] = Field(
        "straight",
        description="order of octants in patch merging; the published one repeats two and lacks two, and is "
        "needed for published weights alone",
    )
    restore_intensity: Annotated[bool, NETWORK] = Field(
        True,
        description="give the output the mean and deviation of the input, which instance norm forgets; the "
        "published network does not",
    )
    normalise_skips: Annotated[bool, NETWORK] = Field(
        True,
        description="normalise the feature maps that decoder and contrastive loss get over their channels, "
        "as fine-tuning does; the published pre-training does not",
    )
    freeze: Annotated[Literal["none", "encoder", "decoder"], NETWORK] = Field(
        "none", description="half of the network that does not learn"
    )

    crop_region: Annotated[Literal["volume", "foreground"], DATA] = Field(
        "volume", description="where crops are drawn: anywhere, or around the scan's foreground"
    )
    modality_weights: Annotated[dict[str, float] | None, DATA] = Field(
        None, description="share of each modality in a batch (default: by the square root of its scans)"
    )
    datasets: Annotated[list[str] | None, DATA] = Field(
        None, description="train on the scans of these data sets of the store alone"
    )
    intensity: Annotated[ScalingRules, DATA] = Field(
        {},
        description="scaling of a modality, when not the usual one: ct=window:-175:250, t1=zscore, "
        "t2=zscore:foreground, adc=percentiles:0.5:99.5, pet=suv:15",
    )

    val_crops: Annotated[int, RECORD] = Field(4, ge=1, description="fixed validation crops of each modality")
    probe_every: Annotated[Duration, RECORD] = Field(
        PROBE_EVERY,
        description="steps (or epochs) between measurements of what each level of the encoder carries, as by "
        "`dae3d check`; 0: none",
    )
    probe_task: Annotated[Path | None, RECORD] = Field(
        None,
        description="list of labelled cases, as of `dae3d finetune`, for the voxel probe of --probe-every",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        steps = DISRUPTIONS[self.disruption]
        masks_blocks = block_mask in steps
        if downsample in steps and self.roi % self.downsample_factor:
            raise ValueError(f"downsample_factor: must divide roi {self.roi}, not {self.downsample_factor}")
        if masks_blocks and (self.roi % self.block_size or self.block_size % 2):
            raise ValueError(f"block_size: must be even and divide roi {self.roi}, not {self.block_size}")
        if self.reconstruction_loss == "masked" and not masks_blocks:
            raise ValueError("reconstruction_loss: masked needs disruption mae; the others mask no voxels")
        check_heads(self.embed_dim, self.heads)
        self._check_probe()
        return self

    def _check_probe(self) -> None:
        probes = self.probe_every not in (0, "0 epochs")
        if probes and self.strategy == "fsdp":
            raise ValueError("probe_every: not with strategy fsdp, of which no process has the whole network")
        if self.probe_task is not None and not probes:
            raise ValueError(
                "probe_task: of no use with probe_every 0; give --probe-every too, or --probe-task none"
            )

    def kept(self) -> dict[str, Any]:
        """What decides the network, its parameters and which of them learn, by setting."""
        masks_blocks = block_mask in DISRUPTIONS[self.disruption]
        return {
            **super().kept(),
            **asdict(self.architecture()),
            "freeze": self.freeze,
            "disruption": masks_blocks,  # whether there is a mask token to learn
        }

    def architecture(self) -> Architecture:
        """The network's sizes."""
        return Architecture(
            embed_dim=self.embed_dim,
            depths=self.depths,
            heads=self.heads,
            window=self.window,
            patch_embed=self.patch_embed,
            patch_merging=self.patch_merging,
            restore_intensity=self.restore_intensity,
            normalise_skips=self.normalise_skips,
        )

    def disruption_settings(self) -> DisruptionSettings:
        """The disruptions' strengths."""
        return DisruptionSettings(
            noise_variance=self.noise_variance,
            downsample_factor=self.downsample_factor,
            downsample_mode=self.downsample_mode,
            channel_mask_ratio=self.channel_mask_ratio,
            channel_mask_per_token=self.channel_mask_per_token,
            block_size=self.block_size,
            block_mask_ratio=self.block_mask_ratio,
            embed_dim=self.embed_dim,
        )
