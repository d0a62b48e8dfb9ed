"""Settings of pre-training. Defaults follow the published recipe, with the exceptions in docs/design.md."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dae3d.disrupt import DISRUPTIONS, Disruption, DisruptionSettings
from dae3d.errors import SettingsError
from dae3d.models.architecture import Architecture, RepairFrom
from dae3d.models.backbones import NETWORK
from dae3d.models.swin_unetr.architecture import SWIN
from dae3d.objectives import OBJECTIVES, ObjectiveSettings
from dae3d.store.intensity import ScalingRules
from dae3d.training.run_settings import AUTO, DATA, RECORD, TRANSFER, RunSettings
from dae3d.training.schedule import Duration, is_zero

PROBE_EVERY = 0


# Pydantic's plugin for mypy gives each base a `model_construct` of its own.
class PretrainSettings(RunSettings, ObjectiveSettings, DisruptionSettings):  # type: ignore[misc]
    """All settings of a pre-training run."""

    configs: ClassVar[str] = "pretrain"
    # These values are also those of the published recipe.
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
    transfer: Annotated[Literal["both", "encoder"], TRANSFER] = Field(
        "both", description="half of --init to load, as far as it fits"
    )
    restore_intensity: Annotated[bool, NETWORK] = Field(
        True,
        description="give the output the mean and deviation of the input, which instance norm removes; the "
        "published network does not",
    )
    normalise_skips: Annotated[bool, SWIN] = Field(
        True,
        description="normalise feature maps over channels before the decoder and the contrastive loss, as in "
        "fine-tuning; the published pre-training does not",
    )
    repair_from: Annotated[RepairFrom, NETWORK] = Field(
        "pyramid",
        description="features that the repaired image is computed from: full, the whole decoder with a skip "
        "from the disrupted image, as published; half, the decoder up to half resolution, cheaper "
        "and without a path around the encoder; pyramid, the same, where each resolution adds detail to the "
        "coarser ones",
    )
    skip_drop: Annotated[float, NETWORK] = Field(
        0.0,
        ge=0,
        lt=1,
        description="probability that the decoder gets no tokens of a sample; half of that: no output of the "
        "first stage either, a quarter: nor of the second, and so on, so that deeper stages are needed",
    )
    freeze: Annotated[Literal["none", "encoder", "decoder"], NETWORK] = Field(
        "none", description="half of the network that is not trained"
    )

    crop_region: Annotated[Literal["volume", "foreground"], DATA] = Field(
        "foreground", description="where crops are drawn: anywhere, or around the scan's foreground"
    )
    modality_weights: Annotated[dict[str, float] | None, DATA] = Field(
        None, description="share of each modality in a batch (default: square root of its number of scans)"
    )
    shuffle_modalities: Annotated[bool, DATA] = Field(
        True,
        description="draw the modalities of each batch in random order, so that any two can meet; in the "
        "order of their names some never do, if a batch cannot hold all",
    )
    datasets: Annotated[list[str] | None, DATA] = Field(
        None, description="use only the scans of these data sets in the store"
    )
    leave_out: Annotated[Path | None, DATA] = Field(
        None,
        description="list of labelled cases, as for `dae3d finetune`: subjects of its validation and test "
        "cases (of all, if it has folds) are left out, found by the content of their images, so that the "
        "weights can be tested on them",
    )
    intensity: Annotated[ScalingRules, DATA] = Field(
        {},
        description="scaling of a modality, if not the default: ct=window:-175:250, t1=zscore, "
        "t2=zscore:foreground, adc=percentiles:0.5:99.5, pet=suv:15",
    )

    clip_intensity: Annotated[float | None, DATA] = Field(
        5.0,
        gt=0,
        description="largest absolute value of scaled intensities; bright vessels reach z-scores of 16",
    )

    val_crops: Annotated[int, RECORD] = Field(4, ge=1, description="fixed validation crops per modality")
    probe_every: Annotated[Duration, RECORD] = Field(
        PROBE_EVERY,
        description="steps (or epochs) between measurements of what each encoder level represents, as in "
        "`dae3d check`; 0: none",
    )
    probe_task: Annotated[Path | None, RECORD] = Field(
        None,
        description="list of labelled cases, as for `dae3d finetune`, for the voxel probe of --probe-every",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        disruption = self.disrupts()
        disruption.check(self, self.roi)
        if self.reconstruction_loss == "masked" and not disruption.masks_voxels:
            raise ValueError("reconstruction_loss: masked needs disruption mae; the others mask no voxels")
        if self.pairs and self.batch_size != AUTO and self.batch_size % 2:
            named = " and ".join(f"{each.setting} 0" for each in self.objectives().values() if each.pairs)
            raise ValueError(
                f"batch_size: must be even, not {self.batch_size}, because two crops of a scan are "
                f"compared; or turn that off with {named}"
            )
        architecture = self.architecture()
        # Otherwise --init or the voxel size of the scans decides.
        if self.complete or (self.init is None and not self.needs_spacing):
            try:
                architecture.check_sides(self.roi)
            except SettingsError as error:
                raise ValueError(str(error)) from None
        if not self.normalise_skips and self.backbone and "normalise_skips" not in architecture.own():
            raise ValueError(f"normalise_skips: has no effect with backbone {self.backbone}")
        if self.channel_mask_per_token and self.local_mask == "blocks":
            raise ValueError("channel_mask_per_token: has no effect with local_mask blocks")
        self._check_probe()
        return self

    def _check_probe(self) -> None:
        probes = not is_zero(self.probe_every)
        if probes and self.strategy == "fsdp":
            raise ValueError("probe_every: not with strategy fsdp, where no process has the whole network")
        if self.probe_task is not None and not probes:
            raise ValueError(
                "probe_task: has no effect with probe_every 0; give --probe-every too, or --probe-task none"
            )

    def kept(self) -> dict[str, Any]:
        """Values that decide the network, its parameters and which of them are trained, by setting."""
        return {
            **super().kept(),
            **asdict(self.architecture()),
            "freeze": self.freeze,
            # Whether there are heads to train, and a mask token.
            **{each.setting: each.weight(self) > 0 for each in OBJECTIVES.values() if each.heads},
            "disruption": self.disrupts().masks_voxels,
        }

    def architecture(self, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Architecture:
        """The network's sizes; those that are not given may depend on the voxel size in mm."""
        return self.architecture_of(self.roi, spacing)

    def disrupts(self) -> Disruption:
        """The disruption of the crops."""
        return DISRUPTIONS[self.disruption]
