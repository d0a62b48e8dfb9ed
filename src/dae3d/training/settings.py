"""Settings of pre-training. Defaults are the published recipe, but for what docs/design.md says of it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from dae3d.disrupt import DISRUPTIONS, DisruptionSettings, lowers_resolution, masks_blocks
from dae3d.models.decoder import RepairFrom
from dae3d.models.swin_unetr import Architecture
from dae3d.models.windows import WindowEdges
from dae3d.objectives.repair import RepairLoss
from dae3d.settings import Group
from dae3d.store.intensity import ScalingRules
from dae3d.training.run_settings import (
    DATA,
    NETWORK,
    RECORD,
    WINDOW_EDGES,
    Duration,
    RunSettings,
    check_heads,
)

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
    # The published recipe has the same.
    earlier: ClassVar[dict[str, Any]] = {
        **RunSettings.earlier,
        "normalise_skips": False,
        "window_edges": "reference",
        "shuffle_modalities": False,
        "repair_from": "full",
        "skip_drop": 0.0,
        "masked_weight": 1.0,
        "loss_on_padding": True,
        "relative_loss": False,
        "clip_intensity": None,
        "contrastive_view": "disrupted",
        "contrastive_standardise": False,
        "dense_weight": 0.0,
        "feature_weight": 0.0,
        "intensity_jitter": 0.0,
        "probe_every": 0,
    }

    data: Path = Field(description="store made by `dae3d prepare`")
    disruption: Annotated[DisruptionName, DISRUPTION] = Field(
        "varied",
        description=f"one of {', '.join(DISRUPTIONS)}. denoise: Gaussian noise; superres: down- and "
        "up-sampling; local_mask: masked channels of the token embedding; all: these three in turn; mae: "
        "masked blocks; varied: noise, lost resolution and masked blocks, each of a strength drawn for every "
        "crop, none included",
    )
    noise_variance: Annotated[float, DISRUPTION] = Field(
        0.1,
        ge=0,
        description="variance of the noise, in normalised intensity; of varied the largest, relative",
    )
    downsample_factor: Annotated[int, DISRUPTION] = Field(
        4, ge=1, description="factor in each axis; of varied the largest"
    )
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
        16, ge=2, description="side in voxels of the blocks that mae masks; of varied the largest"
    )
    block_mask_ratio: Annotated[float, DISRUPTION] = Field(
        0.6, gt=0, lt=1, description="share of the blocks that mae masks; of varied the largest"
    )

    intensity_jitter: Annotated[float, DISRUPTION] = Field(
        0.2,
        ge=0,
        lt=1,
        description="gain, shift and gamma drawn for each crop, and not to be repaired: gains lie in 1 plus "
        "or minus this",
    )

    reconstruction_loss: Annotated[Literal["all", "masked"], OBJECTIVES] = Field(
        "all", description="mean absolute error over all voxels, or over masked ones (mae only)"
    )
    masked_weight: Annotated[float, OBJECTIVES] = Field(
        3.0, ge=0, description="weight of masked voxels in that mean, where the others have 1"
    )
    coarse_weight: Annotated[float, OBJECTIVES] = Field(
        0.5,
        ge=0,
        description="weight of the errors at each lower resolution, with --repair-from pyramid or half",
    )
    relative_loss: Annotated[bool, OBJECTIVES] = Field(
        True,
        description="divide a crop's error by its deviation: CT, scaled to 0 to 1, then counts as much as MR",
    )
    loss_on_padding: Annotated[bool, OBJECTIVES] = Field(
        False, description="count the zeros around a scan that is smaller than the crop"
    )
    contrastive_weight: Annotated[float, OBJECTIVES] = Field(
        0.1, ge=0, description="weight of the cross-modal contrastive loss; 0 leaves it out"
    )
    contrastive_view: Annotated[Literal["clean", "disrupted"], OBJECTIVES] = Field(
        "clean",
        description="which crops it compares; of disrupted ones the masks drawn for each tell more than the "
        "modality, and all features end up the same",
    )
    contrastive_standardise: Annotated[bool, OBJECTIVES] = Field(
        True,
        description="give each pooled feature mean 0 and variance 1 over the batch before, so that what all "
        "crops have in common cannot make them alike",
    )
    contrastive_temperature: Annotated[float, OBJECTIVES] = Field(0.5, gt=0, description="its temperature")

    dense_weight: Annotated[float, OBJECTIVES] = Field(
        0.2,
        ge=0,
        description="weight of the dense contrastive loss, at 1/2 and 1/4 of the resolution: crops come in "
        "pairs that overlap, and what lies at one place is told from what lies elsewhere; 0 leaves it out",
    )
    dense_temperature: Annotated[float, OBJECTIVES] = Field(0.1, gt=0, description="its temperature")
    feature_weight: Annotated[float, OBJECTIVES] = Field(
        0.5,
        ge=0,
        description="weight of the repair of features: each stage predicts what a teacher finds in the clean "
        "crop, the moving average of the weights (--ema-decay) or, without one, the weights as they are; 0 "
        "leaves it out",
    )

    embed_dim: Annotated[int, NETWORK] = Field(48, ge=1, description="channels of the token embedding")
    depths: Annotated[tuple[int, int, int, int], NETWORK] = Field(
        (2, 2, 2, 2), description="transformer blocks of the four stages"
    )
    heads: Annotated[tuple[int, int, int, int], NETWORK] = Field(
        (3, 6, 12, 24), description="attention heads of the four stages"
    )
    window: Annotated[int, NETWORK] = Field(
        6,
        ge=2,
        description="side of the attention windows, in tokens; one that divides roi / 16, as 6 does for 96 "
        "and 8 for 128, leaves no padding; the published one is 7",
    )
    window_edges: Annotated[WindowEdges, NETWORK] = Field("exact", description=WINDOW_EDGES)
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
    repair_from: Annotated[RepairFrom, NETWORK] = Field(
        "pyramid",
        description="what a repair is made from: full, as published, the whole decoder, which gets the "
        "disrupted image too; half, the decoder up to half resolution, which leaves no way past the encoder "
        "and is cheaper; pyramid, the same, where each resolution adds what coarser ones do not show",
    )
    skip_drop: Annotated[float, NETWORK] = Field(
        0.0,
        ge=0,
        lt=1,
        description="chance that the decoder does without the tokens of a sample; half of it: without the "
        "first stage too, a quarter: without the second, and so on, so that the stages below are needed",
    )
    freeze: Annotated[Literal["none", "encoder", "decoder"], NETWORK] = Field(
        "none", description="half of the network that does not learn"
    )

    crop_region: Annotated[Literal["volume", "foreground"], DATA] = Field(
        "foreground", description="where crops are drawn: anywhere, or around the scan's foreground"
    )
    modality_weights: Annotated[dict[str, float] | None, DATA] = Field(
        None, description="share of each modality in a batch (default: by the square root of its scans)"
    )
    shuffle_modalities: Annotated[bool, DATA] = Field(
        True,
        description="draw each batch's modalities in another order, so that any two of them meet; in the "
        "order of their names some never do, where a batch has no room for all",
    )
    datasets: Annotated[list[str] | None, DATA] = Field(
        None, description="train on the scans of these data sets of the store alone"
    )
    intensity: Annotated[ScalingRules, DATA] = Field(
        {},
        description="scaling of a modality, when not the usual one: ct=window:-175:250, t1=zscore, "
        "t2=zscore:foreground, adc=percentiles:0.5:99.5, pet=suv:15",
    )

    clip_intensity: Annotated[float | None, DATA] = Field(
        5.0,
        gt=0,
        description="largest absolute value of a scaled intensity: bright vessels reach z-scores of 16",
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
        masks = masks_blocks(self.disruption)
        if lowers_resolution(self.disruption) and self.roi % self.downsample_factor:
            raise ValueError(f"downsample_factor: must divide roi {self.roi}, not {self.downsample_factor}")
        if masks and (self.roi % self.block_size or self.block_size % 2):
            raise ValueError(f"block_size: must be even and divide roi {self.roi}, not {self.block_size}")
        if self.reconstruction_loss == "masked" and not masks:
            raise ValueError("reconstruction_loss: masked needs disruption mae; the others mask no voxels")
        if self.pairs and self.batch_size % 2:
            raise ValueError(
                f"batch_size: must be even, not {self.batch_size}, since the dense contrastive loss compares "
                "two crops of a scan; or leave that out, with dense_weight 0"
            )
        check_heads(self.embed_dim, self.heads)
        self._check_probe()
        return self

    @property
    def pairs(self) -> bool:
        """Whether crops come in pairs of one scan."""
        return self.dense_weight > 0

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
        return {
            **super().kept(),
            **asdict(self.architecture()),
            "freeze": self.freeze,
            "dense_weight": self.pairs,  # whether there are projections to learn
            "feature_weight": self.feature_weight > 0,  # and heads
            "disruption": masks_blocks(self.disruption),  # whether there is a mask token to learn
        }

    def architecture(self) -> Architecture:
        """The network's sizes."""
        return self.as_dataclass(Architecture)

    def repair_loss(self) -> RepairLoss:
        """How repairs are measured."""
        return RepairLoss(
            masked_only=self.reconstruction_loss == "masked",
            masked_weight=self.masked_weight,
            on_padding=self.loss_on_padding,
            relative=self.relative_loss,
            coarse_weight=self.coarse_weight,
        )

    def disruption_settings(self) -> DisruptionSettings:
        """The disruptions' strengths."""
        return self.as_dataclass(DisruptionSettings)
