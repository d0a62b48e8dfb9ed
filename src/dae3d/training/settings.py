"""Settings of pre-training. Defaults are the published recipe where it has one."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import AfterValidator, Field, model_validator

from dae3d.disrupt import DISRUPTIONS, DisruptionSettings
from dae3d.disrupt.block_mask import block_mask
from dae3d.disrupt.downsample import downsample
from dae3d.models.swin_unetr import Architecture
from dae3d.settings import Group, Settings

DISRUPTION = Group("disruption")
OBJECTIVES = Group("objectives")
NETWORK = Group("network")
DATA = Group("data")
OPTIMISATION = Group("optimisation")
HARDWARE = Group("hardware")
RECORD = Group("validation and saving")


def _duration(value: int | str) -> int | str:
    """A number of steps, or a number of epochs as "4 epochs"."""
    if isinstance(value, int):
        if value < 0:
            raise ValueError("must be 0 or more")
        return value
    match = re.fullmatch(r"\s*(\d+)\s*(steps?|epochs?)?\s*", value)
    if not match:
        raise ValueError('must be a number of steps, such as 1000, or of epochs, such as "4 epochs"')
    count, unit = int(match[1]), match[2] or "steps"
    return count if unit.startswith("step") else f"{count} epochs"


Duration = Annotated[int | str, AfterValidator(_duration)]


def _disruption(name: str) -> str:
    if name not in DISRUPTIONS:
        raise ValueError(f"must be one of {', '.join(DISRUPTIONS)}")
    return name


DisruptionName = Annotated[str, AfterValidator(_disruption)]


def in_steps(duration: int | str, steps_per_epoch: int) -> int:
    """A duration in optimiser steps; an epoch has one crop of every training scan."""
    if isinstance(duration, int):
        return duration
    return int(duration.split()[0]) * steps_per_epoch


class PretrainSettings(Settings):
    """Everything that decides a pre-training run."""

    takes_config: ClassVar[bool] = True

    data: Path = Field(description="store made by `dae3d prepare`")
    out: Path = Field(description="run folder to write")
    resume: bool = Field(
        False, description="go on from the last checkpoint in --out, with its settings unless given anew"
    )
    max_steps: Duration = Field(30_000, description='optimiser steps to train, or epochs as "300 epochs"')
    seed: int = Field(0, ge=0, lt=2**31, description="decides the weights at the start and every sample")

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
    checkpoint_activations: Annotated[bool, NETWORK] = Field(
        False, description="recompute activations in the backward pass: less memory, slower"
    )
    freeze: Annotated[Literal["none", "encoder", "decoder"], NETWORK] = Field(
        "none", description="half of the network that does not learn"
    )

    roi: Annotated[int, DATA] = Field(96, ge=32, description="side of the crops in voxels, a multiple of 32")
    batch_size: Annotated[int, DATA] = Field(2, ge=1, description="crops a device and step")
    crop_region: Annotated[Literal["volume", "foreground"], DATA] = Field(
        "volume", description="where crops are drawn: anywhere, or around the scan's foreground"
    )
    modality_weights: Annotated[dict[str, float] | None, DATA] = Field(
        None, description="share of each modality in a batch (default: by the square root of its scans)"
    )
    datasets: Annotated[list[str] | None, DATA] = Field(
        None, description="train on the scans of these data sets of the store alone"
    )
    workers: Annotated[int | None, DATA] = Field(
        None, ge=0, description="loader processes a device (default: 1 on a CPU, up to 8 for a GPU)"
    )

    lr: Annotated[float, OPTIMISATION] = Field(1e-4, gt=0, description="highest learning rate (AdamW)")
    min_lr: Annotated[float, OPTIMISATION] = Field(1e-5, ge=0, description="learning rate at the end")
    warmup_lr: Annotated[float, OPTIMISATION] = Field(1e-6, ge=0, description="learning rate at the start")
    warmup_steps: Annotated[Duration, OPTIMISATION] = Field(
        300, description="steps of linear warm-up, or epochs"
    )
    weight_decay: Annotated[float, OPTIMISATION] = Field(
        0.05, ge=0, description="of matrices and convolutions alone"
    )
    clip_grad: Annotated[float | None, OPTIMISATION] = Field(1.0, gt=0, description="largest gradient norm")
    accumulate: Annotated[int, OPTIMISATION] = Field(1, ge=1, description="batches an optimiser step")
    ema_decay: Annotated[float | None, OPTIMISATION] = Field(
        None, gt=0, lt=1, description="keep an exponential moving average of the weights, and export that"
    )

    precision: Annotated[Literal["auto", "32-true", "bf16-mixed", "16-mixed"], HARDWARE] = Field(
        "auto", description="auto: bf16-mixed where there is hardware for it, else 32-true"
    )
    accelerator: Annotated[Literal["auto", "cpu", "gpu"], HARDWARE] = Field(
        "auto", description="where to run"
    )
    devices: Annotated[int | None, HARDWARE] = Field(
        None, ge=1, description="devices a node (default: all GPUs, or what the launcher says)"
    )
    nodes: Annotated[int | None, HARDWARE] = Field(
        None, ge=1, description="machines (default: 1, or what the launcher says)"
    )
    strategy: Annotated[Literal["auto", "ddp", "fsdp"], HARDWARE] = Field(
        "auto", description="auto: ddp where there are several devices"
    )

    val_every: Annotated[Duration, RECORD] = Field(1000, description="steps (or epochs) between validations")
    val_crops: Annotated[int, RECORD] = Field(4, ge=1, description="fixed validation crops of each modality")
    save_every: Annotated[Duration, RECORD] = Field(1000, description="steps (or epochs) between checkpoints")
    keep: Annotated[int, RECORD] = Field(2, ge=1, description="how many of these checkpoints are kept")
    log_every: Annotated[int, RECORD] = Field(
        10, ge=1, description="steps between rows of metrics.csv, each the mean over those steps"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_the_run_resumed(cls, given: dict[str, Any]) -> dict[str, Any]:
        """A resumed run keeps its settings, but for those given anew."""
        if given.get("resume") in (True, "true") and "out" in given:
            saved = Path(given["out"]) / "settings.yaml"
            if saved.is_file():
                return {**yaml.safe_load(saved.read_text()), **given}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> "PretrainSettings":
        for name in ("max_steps", "val_every", "save_every"):
            if getattr(self, name) in (0, "0 epochs"):
                raise ValueError(f"{name}: must be 1 or more, not 0")
        if self.roi % 32:
            raise ValueError(f"roi: must be a multiple of 32, not {self.roi}")
        steps = DISRUPTIONS[self.disruption]
        masks_blocks = block_mask in steps
        if downsample in steps and self.roi % self.downsample_factor:
            raise ValueError(f"downsample_factor: must divide roi {self.roi}, not {self.downsample_factor}")
        if masks_blocks and (self.roi % self.block_size or self.block_size % 2):
            raise ValueError(f"block_size: must be even and divide roi {self.roi}, not {self.block_size}")
        if self.reconstruction_loss == "masked" and not masks_blocks:
            raise ValueError("reconstruction_loss: masked needs disruption mae; the others mask no voxels")
        for stage, heads in enumerate(self.heads):
            channels = self.embed_dim * 2**stage
            if heads < 1 or channels % heads:
                raise ValueError(
                    f"heads: stage {stage + 1} has {channels} channels, not a multiple of {heads}"
                )
        if self.ema_decay is not None and self.strategy == "fsdp":
            raise ValueError("ema_decay: not with strategy fsdp, which has no whole copy of the weights")
        if isinstance(self.save_every, int) and self.save_every % self.log_every:
            raise ValueError(
                f"save_every: must be a multiple of log_every {self.log_every}, not {self.save_every}"
            )
        return self

    def architecture(self) -> Architecture:
        """The network's sizes."""
        return Architecture(
            embed_dim=self.embed_dim,
            depths=self.depths,
            heads=self.heads,
            window=self.window,
            patch_merging=self.patch_merging,
            restore_intensity=self.restore_intensity,
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

    def for_epochs_of(self, steps_per_epoch: int) -> "PretrainSettings":
        """These settings with every duration in steps; save_every is rounded up to whole log_every."""
        steps = {
            name: in_steps(getattr(self, name), steps_per_epoch)
            for name in ("max_steps", "warmup_steps", "val_every", "save_every")
        }
        steps["save_every"] = -(-steps["save_every"] // self.log_every) * self.log_every
        return self.model_copy(update=steps)
