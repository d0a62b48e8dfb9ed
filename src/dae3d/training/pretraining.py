"""Pre-training: a training step that disrupts, repairs and compares, and validation on fixed crops."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dae3d.disrupt import Disrupted, clipped, disrupt, sample_keys
from dae3d.disrupt.jitter import jitter
from dae3d.disrupt.skips import drop_skips
from dae3d.drawing.pictures import triptych_array
from dae3d.evaluation.baselines import best_baselines
from dae3d.evaluation.image_metrics import validated
from dae3d.evaluation.quality import image_quality
from dae3d.models.network import RepairNetwork, WeightsInfo
from dae3d.objectives import PretrainStep
from dae3d.objectives.contrastive import contrastive_loss, pooled
from dae3d.store.scan import Preparation
from dae3d.training.batch import Sample
from dae3d.training.module import TrainingModule
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.training.schedule import Schedule
from dae3d.training.sums import MetricSums


class Pretraining(TrainingModule):
    """Disruptive autoencoding with a cross-modal contrastive loss (Valanarasu et al., arXiv 2307.16896).

    Args:
        settings: of the run.
        schedule: of the run.
        modalities: labels, by modality number.
        preparation: of the store's scans.
        pictures: folder for reconstructions of validation crops, `<modality>/<step>.png`.
        spacing: median voxel size of the training scans in mm, for the weights.
        network: a `RepairNetwork` to go on from (default: random weights).
    """

    validates_first = True

    def __init__(
        self,
        settings: PretrainSettings,
        schedule: Schedule,
        modalities: list[str],
        preparation: Preparation,
        pictures: Path,
        spacing: list[float] | None = None,
        network: Any = None,
    ) -> None:
        if network is None:
            network = RepairNetwork(settings.architecture(), settings.checkpoint_activations)
        mask_token = getattr(network.encoder, "mask_token", None)
        if mask_token is not None:
            mask_token.requires_grad_(settings.disrupts().masks_voxels)
        if settings.freeze != "none":
            getattr(network, settings.freeze).requires_grad_(False)
        self.objectives = settings.objectives()
        sums = MetricSums(["loss", "l1", *self.objectives], modalities)
        # 3^3 convolutions are up to twice as fast with the channels innermost.
        network = network.to(memory_format=torch.channels_last_3d)
        super().__init__(settings, schedule, network, pictures, sums)
        self.settings, self.modalities, self.preparation = settings, modalities, preparation
        self.spacing = spacing
        self.repair_loss = settings.repair_loss()
        for each in self.objectives.values():
            if each.heads is not None:
                self.add_module(each.heads_name, each.heads(settings))
        self.baselines_due = False  # whether the next validation measures baselines too
        self._validated: list[dict[str, Tensor]] = []
        self.probe: Callable[..., dict[str, float]] | None = None  # of network, device, context

    def header(self) -> WeightsInfo:
        """Modalities by number, preparation of the scans, and their voxel size."""
        preparation = self.preparation.model_dump(mode="json", exclude={"version"})
        header: WeightsInfo = {
            "task": "pretrain",
            "modalities": self.modalities,
            "preparation": preparation,
        }
        if self.spacing is not None:
            header["spacing"] = self.spacing
        return header

    # Training

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """The loss of one batch of this rank."""
        s, network = self.settings, self.network
        clean, disrupted = self._disrupt(batch)
        hidden = network.encode(disrupted.image, disrupted.channel_keep, disrupted.token_mask)
        features = network.decoder.features(disrupted.image, drop_skips(hidden, disrupted.keys, s.skip_drop))
        repaired = network.images(disrupted.image, features, disrupted.token_mask)
        each, finest = self.repair_loss.total(repaired, clean, batch["inside"], disrupted)
        step = PretrainStep(
            network=network,
            teacher=self.evaluated,
            clean=clean,
            disrupted=disrupted,
            hidden=hidden,
            features=features,
            inside=batch["inside"],
            modality=batch["modality"],
            origin=batch["origin"],
        )
        loss, losses, heads = each.mean(), {}, self._heads
        for name, objective in self.objectives.items():
            losses[name] = objective.loss(step, s, heads.get(name))
            loss = loss + objective.weight(s) * losses[name]
        self.sums.add({"loss": loss, "l1": finest.mean(), **losses}, len(clean), finest, batch["modality"])
        return loss

    @property
    def _heads(self) -> dict[str, nn.Module]:
        """The modules of the objectives that have one, by objective."""
        return {
            name: self.get_submodule(each.heads_name)
            for name, each in self.objectives.items()
            if each.heads is not None
        }

    def _disrupt(self, batch: Sample) -> tuple[Tensor, Disrupted]:
        """The clean and the disrupted crops."""
        s = self.settings
        keys = sample_keys(s.seed, batch["sample"])
        clean = jitter(clipped(batch["image"], s.clip_intensity), batch["inside"], keys, s.intensity_jitter)
        tokens = self.network.architecture.tokens
        return clean, disrupt(clean, s.seed, batch["sample"], s, *tokens)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the network, and for the heads that are discarded after pre-training."""
        groups = super().parameter_groups()
        for heads in self._heads.values():
            decay = self.settings.weight_decay
            groups.append({"params": list(heads.parameters()), "weight_decay": decay, "scale": 1.0})
        return groups

    # Probing

    def on_train_start(self) -> None:
        """Also probe the network before the first step."""
        if self.global_step == 0:
            self._probe()
        super().on_train_start()

    def end_step(self) -> None:
        """Probe when due, before anything of this step is saved."""
        super().end_step()
        every = self.schedule.probe_every
        if every and self.global_step % every == 0:
            self._probe()

    def _probe(self) -> None:
        """Record what the encoder levels represent; every rank gets the same result."""
        if self.probe is not None:
            with self.not_training():
                self.record(self.probe(self.evaluated, self.device, self._computing))

    def _computing(self) -> AbstractContextManager[Any]:
        """The run's precision, as in validation, and without compilation."""
        contexts = ExitStack()
        contexts.enter_context(self.trainer.precision_plugin.forward_context())
        if self.settings.compile == "on":
            contexts.enter_context(torch.compiler.set_stance("force_eager"))
        return contexts

    # Validation

    def on_validation_epoch_start(self) -> None:
        """Reset the results."""
        super().on_validation_epoch_start()
        self._validated = []

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Repair fixed crops under fixed disruptions."""
        clean, disrupted = self._disrupt(batch)
        hidden = self.evaluated.encode(disrupted.image, disrupted.channel_keep, disrupted.token_mask)
        repaired = self.evaluated.decode(disrupted.image, hidden, disrupted.token_mask).float()
        result = {
            "l1": self.repair_loss.total([repaired], clean, batch["inside"], disrupted)[1],
            "modality": batch["modality"],
        }
        if self.settings.contrastive_weight:
            result["features"] = pooled(self.evaluated, clean, hidden, self.settings)
        quality = {"": image_quality(repaired, clean)}
        if self.baselines_due or self.trainer.sanity_checking:
            quality |= self._baselines(disrupted.image, clean)
        result |= {f"{m}/{name}": found[m] for name, found in quality.items() for m in validated()}
        self._picture(batch, clean, disrupted.image, repaired)
        self._validated.append(result)

    def on_validation_epoch_end(self) -> None:
        """Record the means over each modality's crops; the first time, those of baselines too."""
        all_crops = {key: torch.cat([r[key] for r in self._validated]) for key in self._validated[0]}
        modality = all_crops["modality"]
        loss = all_crops["l1"].mean()
        row = {"val/l1": float(loss)}
        s = self.settings
        if s.contrastive_weight:
            contrastive = contrastive_loss(
                all_crops["features"], modality, s.contrastive_temperature, False, s.contrastive_standardise
            )
            row["val/contrastive"] = float(contrastive)
            loss = loss + s.contrastive_weight * contrastive
        self.val_loss = float(loss)
        row = {"val/loss": self.val_loss, **row}
        for number, name in enumerate(self.modalities):
            for key, values in all_crops.items():
                if key not in ("features", "modality"):
                    row[_metric(key, name)] = float(values[modality == number].mean())
        self.record(row)
        self.baselines_due = False
        super().on_validation_epoch_end()

    def _baselines(self, disrupted: Tensor, clean: Tensor) -> dict[str, Any]:
        s = self.settings
        repairs = best_baselines(disrupted, clean, s.downsample_factor, s.disrupts().lowers_resolution)
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
