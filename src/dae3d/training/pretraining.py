"""The training step of pre-training: disrupt, repair, compare; and its validation on fixed crops."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dae3d.disrupt import DISRUPTIONS, Disrupted, disrupt
from dae3d.disrupt.block_mask import block_mask
from dae3d.disrupt.downsample import downsample
from dae3d.evaluation.quality import image_quality
from dae3d.evaluation.trivial import best_trivial
from dae3d.models.swin_unetr import SwinUNETR
from dae3d.objectives.contrastive import contrastive_loss
from dae3d.objectives.reconstruction import reconstruction_loss
from dae3d.reporting.pictures import triptych_array
from dae3d.store.scan import Preparation
from dae3d.training.batch import Sample
from dae3d.training.module import TrainingModule
from dae3d.training.settings import PretrainSettings


class Pretraining(TrainingModule):
    """Disruptive autoencoding with a cross-modal contrastive loss (Valanarasu et al., arXiv 2307.16896).

    Args:
        settings: with every duration in steps.
        modalities: labels, by modality number.
        preparation: of the store's scans.
        pictures: folder for reconstructions of validation crops, `<modality>/<step>.png`.
    """

    validates_first = True

    def __init__(
        self, settings: PretrainSettings, modalities: list[str], preparation: Preparation, pictures: Path
    ) -> None:
        network: Any = SwinUNETR(settings.architecture(), settings.checkpoint_activations)
        network.encoder.mask_token.requires_grad_(block_mask in DISRUPTIONS[settings.disruption])
        if settings.freeze != "none":
            getattr(network, settings.freeze).requires_grad_(False)
        # 3^3 convolutions are up to twice as fast with the channels innermost.
        super().__init__(settings, network.to(memory_format=torch.channels_last_3d), pictures)
        self.settings, self.modalities, self.preparation = settings, modalities, preparation
        self.strengths = settings.disruption_settings()
        self.baselines_due = False  # before the next validation crops are repaired trivially, too
        self._validated: list[dict[str, Tensor]] = []
        self.probe: Callable[..., dict[str, float]] | None = None  # of a network, its device and how it runs

    def header(self) -> dict[str, Any]:
        """The modalities, by number, and how scans were prepared."""
        preparation = self.preparation.model_dump(mode="json", exclude={"version"})
        return {"task": "pretrain", "modalities": self.modalities, "preparation": preparation}

    # Training

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """The loss of one batch of this rank."""
        disrupted = self._disrupt(batch)
        repaired, features = self.network.repair(
            disrupted.image, disrupted.channel_keep, disrupted.token_mask
        )
        each = self._reconstruction_losses(repaired, batch, disrupted)
        contrastive = self._contrastive(features, batch["modality"], across_ranks=True)
        loss = each.mean() + self.settings.contrastive_weight * contrastive
        self._add_to_window(loss, each, contrastive, batch["modality"])
        return loss

    def _disrupt(self, batch: Sample) -> Disrupted:
        s = self.settings
        return disrupt(s.disruption, batch["image"], s.seed, batch["sample"], self.strengths)

    def _reconstruction_losses(self, repaired: Tensor, batch: Sample, disrupted: Disrupted) -> Tensor:
        mask = disrupted.voxel_mask if self.settings.reconstruction_loss == "masked" else None
        return reconstruction_loss(repaired, batch["image"], mask)

    def _contrastive(self, features: Tensor, modalities: Tensor, across_ranks: bool) -> Tensor:
        if self.settings.contrastive_weight == 0:
            return features.new_zeros((), dtype=torch.float32)
        return contrastive_loss(features, modalities, self.settings.contrastive_temperature, across_ranks)

    def empty_window(self) -> Tensor:
        """Batches, loss, l1, contrastive, then l1 and samples of each modality."""
        return torch.zeros(4 + 2 * len(self.modalities))

    def _add_to_window(self, loss: Tensor, each: Tensor, contrastive: Tensor, modality: Tensor) -> None:
        kinds = len(self.modalities)
        one = torch.ones_like(loss)
        self.window[:4] += torch.stack([one, loss, each.mean(), contrastive]).detach()
        self.window[4 : 4 + kinds].index_add_(0, modality, each.detach())
        self.window[4 + kinds :].index_add_(0, modality, torch.ones_like(each))

    def row(self, sums: list[float]) -> tuple[dict[str, float], float]:
        """Mean losses, and the L1 of each modality that occurred."""
        batches, kinds = sums[0], len(self.modalities)
        row = {
            "train/loss": sums[1] / batches,
            "train/l1": sums[2] / batches,
            "train/contrastive": sums[3] / batches,
        }
        samples = sums[4 + kinds :]
        for name, total, count in zip(self.modalities, sums[4 : 4 + kinds], samples, strict=True):
            if count:
                row[f"train/l1/{name}"] = total / count
        return row, sum(samples)

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
        disrupted = self._disrupt(batch)
        repaired, features = self.evaluated.repair(
            disrupted.image, disrupted.channel_keep, disrupted.token_mask
        )
        repaired, clean = repaired.float(), batch["image"]
        result = {
            "l1": self._reconstruction_losses(repaired, batch, disrupted),
            "features": features,
            "modality": batch["modality"],
        }
        quality = {"": image_quality(repaired, clean)}
        if self.baselines_due or self.trainer.sanity_checking:
            quality |= self._baselines(disrupted.image, clean)
        for name, (_, psnr, ssim) in quality.items():
            result[f"psnr/{name}"], result[f"ssim/{name}"] = psnr, ssim
        self._picture(batch, disrupted.image, repaired)
        self._validated.append(result)

    def on_validation_epoch_end(self) -> None:
        """Record the means over each modality's crops; the first time, those of trivial repairs too."""
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
        downsampled = downsample in DISRUPTIONS[self.settings.disruption]
        repairs = best_trivial(disrupted, clean, self.strengths.downsample_factor, downsampled)
        return {
            name: image_quality(image, clean) for name, image in {"disrupted": disrupted, **repairs}.items()
        }

    def _picture(self, batch: Sample, disrupted: Tensor, repaired: Tensor) -> None:
        """Draw the first crop of each modality."""
        if not self.trainer.is_global_zero:
            return
        drawn = {int(m) for result in self._validated for m in result["modality"]}
        for i, modality in enumerate(batch["modality"].tolist()):
            if modality in drawn:
                continue
            drawn.add(modality)
            name = self.modalities[modality]
            clean = batch["image"][i, 0].cpu().numpy()
            repair = repaired[i, 0].cpu().numpy()
            columns = {
                "clean": clean,
                "disrupted": disrupted[i, 0].float().cpu().numpy(),
                "repaired": repair,
                "error": abs(repair - clean),
            }
            self.picture(name, triptych_array(columns, f"{name}, step {self.global_step}"))


def _metric(key: str, modality: str) -> str:
    """("psnr/", "t1") -> "val/psnr/t1"; ("psnr/disrupted", "t1") -> "baseline/psnr/disrupted/t1"."""
    measure, _, baseline = key.partition("/")
    return f"baseline/{measure}/{baseline}/{modality}" if baseline else f"val/{measure}/{modality}"
