"""The training step of pre-training: disrupt, repair, compare; and its validation on fixed crops."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dae3d.disrupt import Disrupted, clipped, disrupt, lowers_resolution, masks_blocks, sample_keys
from dae3d.disrupt.jitter import jitter
from dae3d.disrupt.skips import drop_skips
from dae3d.drawing.pictures import triptych_array
from dae3d.evaluation.baselines import best_baselines
from dae3d.evaluation.quality import image_quality
from dae3d.models.swin_unetr import SwinUNETR
from dae3d.objectives.contrastive import contrastive_loss
from dae3d.objectives.dense import Projections, dense_contrast
from dae3d.objectives.features import FeatureHeads, feature_loss
from dae3d.store.scan import Preparation
from dae3d.training.batch import Sample
from dae3d.training.module import TrainingModule
from dae3d.training.settings import PretrainSettings
from dae3d.training.sums import MetricSums


class Pretraining(TrainingModule):
    """Disruptive autoencoding with a cross-modal contrastive loss (Valanarasu et al., arXiv 2307.16896).

    Args:
        settings: with every duration in steps.
        modalities: labels, by modality number.
        preparation: of the store's scans.
        pictures: folder for reconstructions of validation crops, `<modality>/<step>.png`.
        spacing: median voxel size of the training scans in mm, for the weights.
    """

    validates_first = True

    def __init__(
        self,
        settings: PretrainSettings,
        modalities: list[str],
        preparation: Preparation,
        pictures: Path,
        spacing: list[float] | None = None,
    ) -> None:
        network: Any = SwinUNETR(settings.architecture(), settings.checkpoint_activations)
        network.encoder.mask_token.requires_grad_(masks_blocks(settings.disruption))
        if settings.freeze != "none":
            getattr(network, settings.freeze).requires_grad_(False)
        # Of what is added to the error of the repair; one of weight 0 is not computed.
        self.weights = {"contrastive": settings.contrastive_weight}
        if settings.pairs:
            self.weights["dense"] = settings.dense_weight
        if settings.feature_weight:
            self.weights["features"] = settings.feature_weight
        sums = MetricSums(["loss", "l1", *self.weights], modalities)
        # 3^3 convolutions are up to twice as fast with the channels innermost.
        super().__init__(settings, network.to(memory_format=torch.channels_last_3d), pictures, sums)
        self.settings, self.modalities, self.preparation = settings, modalities, preparation
        self.spacing = spacing
        self.strengths = settings.disruption_settings()
        self.repair_loss = settings.repair_loss()
        self.projections = None
        if "dense" in self.weights:
            self.projections = Projections([settings.embed_dim, 2 * settings.embed_dim])
        self.feature_heads = None
        if "features" in self.weights:
            self.feature_heads = FeatureHeads(settings.embed_dim, settings.roi)
        self.baselines_due = False  # before the next validation crops are repaired by baselines, too
        self._validated: list[dict[str, Tensor]] = []
        self.probe: Callable[..., dict[str, float]] | None = None  # of a network, its device and how it runs

    def header(self) -> dict[str, Any]:
        """The modalities, by number, how scans were prepared, and their voxel size."""
        preparation = self.preparation.model_dump(mode="json", exclude={"version"})
        header = {"task": "pretrain", "modalities": self.modalities, "preparation": preparation}
        return header if self.spacing is None else {**header, "spacing": self.spacing}

    # Training

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """The loss of one batch of this rank."""
        s, network = self.settings, self.network
        clean, disrupted = self._disrupt(batch)
        hidden = network.encode(disrupted.image, disrupted.channel_keep, disrupted.token_mask)
        features = network.decoder.features(disrupted.image, drop_skips(hidden, disrupted.keys, s.skip_drop))
        repaired = network.images(disrupted.image, features, disrupted.token_mask)
        each, finest = self.repair_loss.total(repaired, clean, batch["inside"], disrupted)
        pooled = self._pooled(network, clean, hidden)
        losses = {"contrastive": self._contrastive(pooled, batch["modality"], across_ranks=True)}
        if self.projections is not None:
            losses["dense"] = self._dense(self.projections, features, batch["origin"], disrupted.keys)
        if self.feature_heads is not None:
            losses["features"] = self._features(self.feature_heads, clean, hidden, batch["inside"])
        loss = each.mean()
        for name, value in losses.items():
            loss = loss + self.weights[name] * value
        losses = {"loss": loss, "l1": finest.mean(), **losses}
        self.sums.add(losses, len(clean), finest, batch["modality"])
        return loss

    def _disrupt(self, batch: Sample) -> tuple[Tensor, Disrupted]:
        """The clean crops and the disrupted ones."""
        s = self.settings
        keys = sample_keys(s.seed, batch["sample"])
        clean = jitter(clipped(batch["image"], s.clip_intensity), batch["inside"], keys, s.intensity_jitter)
        return clean, disrupt(s.disruption, clean, s.seed, batch["sample"], self.strengths)

    def _dense(
        self, projections: Projections, features: list[Tensor], origin: Tensor, keys: Tensor
    ) -> Tensor:
        """The dense contrastive loss, the sum of those at 1/2 and 1/4 of the resolution."""
        loss = features[0].new_zeros((), dtype=torch.float32)
        # The last five are at 1/2 to 1/32.
        for projection, feature, stride in zip(projections, features[-5:-3], (2, 4), strict=True):
            loss = loss + dense_contrast(
                feature, projection, origin, stride, keys, self.settings.dense_temperature
            )
        return loss

    def _features(
        self, heads: FeatureHeads, clean: Tensor, hidden: list[Tensor], inside: Tensor | None
    ) -> Tensor:
        """How far the stages are from predicting the teacher's features of the clean crops."""
        with torch.no_grad():
            wanted = self.evaluated.encode(clean)
        return feature_loss(hidden[1:], wanted[1:], heads, inside).mean()

    def _pooled(self, network: Any, clean: Tensor, hidden: list[Tensor]) -> Tensor:
        """The features (B, F) that the contrastive loss compares."""
        if self.settings.contrastive_view == "clean" and self.settings.contrastive_weight:
            hidden = network.encode(clean)
        return network.pooled(hidden)

    def _contrastive(self, features: Tensor, modalities: Tensor, across_ranks: bool) -> Tensor:
        if self.settings.contrastive_weight == 0:
            return features.new_zeros((), dtype=torch.float32)
        s = self.settings
        return contrastive_loss(
            features, modalities, s.contrastive_temperature, across_ranks, s.contrastive_standardise
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of the network's parameters, and of what is thrown away after pre-training."""
        groups = super().parameter_groups()
        for heads in (self.projections, self.feature_heads):
            if heads is not None:
                decay = self.settings.weight_decay
                groups.append({"params": list(heads.parameters()), "weight_decay": decay, "scale": 1.0})
        return groups

    # Probing

    def on_train_start(self) -> None:
        """Probe the network as it begins, too."""
        if self.global_step == 0:
            self._probe()
        super().on_train_start()

    def end_step(self) -> None:
        """Probe when it is time, before anything of this step is saved."""
        super().end_step()
        every = int(self.settings.probe_every)
        if every and self.global_step % every == 0:
            self._probe()

    def _probe(self) -> None:
        """Record what the levels of the encoder carry; every rank finds the same."""
        if self.probe is not None:
            with self.not_training():
                self.record(self.probe(self.evaluated, self.device, self._computing))

    def _computing(self) -> AbstractContextManager[Any]:
        """In the run's precision, as validation is, and without what was compiled for training."""
        contexts = ExitStack()
        contexts.enter_context(self.trainer.precision_plugin.forward_context())
        if self.settings.compile == "on":
            contexts.enter_context(torch.compiler.set_stance("force_eager"))
        return contexts

    # Validation

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        super().on_validation_epoch_start()
        self._validated = []

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Repair fixed crops under fixed disruptions."""
        clean, disrupted = self._disrupt(batch)
        hidden = self.evaluated.encode(disrupted.image, disrupted.channel_keep, disrupted.token_mask)
        repaired = self.evaluated.decode(disrupted.image, hidden, disrupted.token_mask).float()
        result = {
            "l1": self.repair_loss.total([repaired], clean, batch["inside"], disrupted)[1],
            "features": self._pooled(self.evaluated, clean, hidden),
            "modality": batch["modality"],
        }
        quality = {"": image_quality(repaired, clean)}
        if self.baselines_due or self.trainer.sanity_checking:
            quality |= self._baselines(disrupted.image, clean)
        for name, (_, psnr, ssim) in quality.items():
            result[f"psnr/{name}"], result[f"ssim/{name}"] = psnr, ssim
        self._picture(batch, clean, disrupted.image, repaired)
        self._validated.append(result)

    def on_validation_epoch_end(self) -> None:
        """Record the means over each modality's crops; the first time, those of baselines too."""
        all_crops = {key: torch.cat([r[key] for r in self._validated]) for key in self._validated[0]}
        modality = all_crops["modality"]
        contrastive = self._contrastive(all_crops["features"], modality, across_ranks=False)
        l1 = all_crops["l1"].mean()
        self.val_loss = float(l1 + self.settings.contrastive_weight * contrastive)
        row = {"val/loss": self.val_loss, "val/l1": float(l1), "val/contrastive": float(contrastive)}
        for number, name in enumerate(self.modalities):
            for key, values in all_crops.items():
                if key not in ("features", "modality"):
                    row[_metric(key, name)] = float(values[modality == number].mean())
        self.record(row)
        self.baselines_due = False
        super().on_validation_epoch_end()

    def _baselines(self, disrupted: Tensor, clean: Tensor) -> dict[str, Any]:
        downsampled = lowers_resolution(self.settings.disruption)
        repairs = best_baselines(disrupted, clean, self.strengths.downsample_factor, downsampled)
        return {
            name: image_quality(image, clean) for name, image in {"disrupted": disrupted, **repairs}.items()
        }

    def _picture(self, batch: Sample, clean: Tensor, disrupted: Tensor, repaired: Tensor) -> None:
        """Draw the first crop of each modality."""
        if not self.trainer.is_global_zero:
            return
        drawn = {int(m) for result in self._validated for m in result["modality"]}
        for i, modality in enumerate(batch["modality"].tolist()):
            if modality in drawn:
                continue
            drawn.add(modality)
            name = self.modalities[modality]
            whole = clean[i, 0].cpu().numpy()
            repair = repaired[i, 0].cpu().numpy()
            columns = {
                "clean": whole,
                "disrupted": disrupted[i, 0].float().cpu().numpy(),
                "repaired": repair,
                "error": abs(repair - whole),
            }
            self.picture(name, triptych_array(columns, f"{name}, step {self.global_step}"))


def _metric(key: str, modality: str) -> str:
    """("psnr/", "t1") -> "val/psnr/t1"; ("psnr/disrupted", "t1") -> "baseline/psnr/disrupted/t1"."""
    measure, _, baseline = key.partition("/")
    return f"baseline/{measure}/{baseline}/{modality}" if baseline else f"val/{measure}/{modality}"
