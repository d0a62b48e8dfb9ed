"""The training step of pre-training: disrupt, repair, compare; and its validation on fixed crops."""

import math
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dae3d.disrupt import DISRUPTIONS, Disrupted, disrupt
from dae3d.disrupt.block_mask import block_mask
from dae3d.disrupt.downsample import downsample
from dae3d.evaluation.quality import image_quality
from dae3d.evaluation.trivial import best_trivial
from dae3d.models.swin_unetr import SwinUNETR
from dae3d.objectives.contrastive import contrastive_loss
from dae3d.objectives.reconstruction import reconstruction_loss
from dae3d.reporting.pictures import triptych, triptych_array
from dae3d.training.data import Sample
from dae3d.training.optimiser import learning_rate, parameter_groups
from dae3d.training.settings import PretrainSettings


class Pretraining(lightning.LightningModule):
    """Disruptive autoencoding with a cross-modal contrastive loss (Valanarasu et al., arXiv 2307.16896).

    Args:
        settings: with every duration in steps.
        modalities: labels, by modality number.
        pictures: folder for reconstructions of validation crops, `<modality>/<step>.png`.
    """

    def __init__(self, settings: PretrainSettings, modalities: list[str], pictures: Path) -> None:
        super().__init__()
        self.settings, self.modalities, self.pictures = settings, modalities, pictures
        self.strengths = settings.disruption_settings()
        network: Any = SwinUNETR(settings.architecture(), settings.checkpoint_activations)
        # 3^3 convolutions are up to twice as fast with the channels innermost.
        self.network: SwinUNETR = network.to(memory_format=torch.channels_last_3d)
        self.network.encoder.mask_token.requires_grad_(block_mask in DISRUPTIONS[settings.disruption])
        if settings.freeze != "none":
            getattr(self.network, settings.freeze).requires_grad_(False)
        self.average = None
        if settings.ema_decay is not None:
            self.average = AveragedModel(
                self.network, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay), use_buffers=True
            ).requires_grad_(False)
        self.val_loss = math.inf
        self.grad_norm: Tensor | None = None
        self.latest: dict[str, float] = {}
        self._window = torch.zeros(0)
        self._window_start = time.monotonic()
        self._validation_start = self._validation_seconds = 0.0
        self._validated: list[dict[str, Tensor]] = []

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and exported: the average where one is kept."""
        return self.network if self.average is None else self.average.module

    # Training

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """The loss of one batch of this rank."""
        disrupted = self._disrupt(batch)
        repaired, features = self.network(disrupted.image, disrupted.channel_keep, disrupted.token_mask)
        each = self._reconstruction_losses(repaired, batch, disrupted)
        contrastive = self._contrastive(features, batch["modality"], across_ranks=True)
        loss = each.mean() + self.settings.contrastive_weight * contrastive
        self._add_to_window(loss, each, contrastive, batch["modality"])
        return loss

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip by global norm, and keep the norm."""
        limit = self.settings.clip_grad or math.inf
        model: Any = self.trainer.model
        if self.settings.strategy == "fsdp":
            self.grad_norm = model.clip_grad_norm_(limit)
        else:
            learning = [p for p in self.parameters() if p.grad is not None]
            self.grad_norm = torch.nn.utils.clip_grad_norm_(learning, limit)

    def end_step(self) -> None:
        """Average the weights, and write a row of metrics when one is due."""
        if self.average is not None:
            self.average.update_parameters(self.network)
        if self.global_step % self.settings.log_every == 0:
            self._log_window()

    def configure_optimizers(self) -> Any:
        """AdamW, and a learning rate that follows the step."""
        s = self.settings
        optimizer = torch.optim.AdamW(parameter_groups(self.network, s.weight_decay), lr=s.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, s) / s.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Start the clock of the first row."""
        self._window = torch.zeros(4 + 2 * len(self.modalities), device=self.device)
        self._window_start, self._validation_seconds = time.monotonic(), 0.0

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

    def _add_to_window(self, loss: Tensor, each: Tensor, contrastive: Tensor, modality: Tensor) -> None:
        """Sums on the device: batches, loss, l1, contrastive, then l1 and samples of each modality."""
        kinds = len(self.modalities)
        one = torch.ones_like(loss)
        self._window[:4] += torch.stack([one, loss, each.mean(), contrastive]).detach()
        self._window[4 : 4 + kinds].index_add_(0, modality, each.detach())
        self._window[4 + kinds :].index_add_(0, modality, torch.ones_like(each))

    def _log_window(self) -> None:
        kinds = len(self.modalities)
        total = self.trainer.strategy.reduce(self._window, reduce_op="sum").tolist()
        seconds = time.monotonic() - self._window_start - self._validation_seconds
        batches = total[0]
        row = {
            "train/loss": total[1] / batches,
            "train/l1": total[2] / batches,
            "train/contrastive": total[3] / batches,
            "train/lr": learning_rate(self.global_step - 1, self.settings),
            "train/grad_norm": float(self.grad_norm if self.grad_norm is not None else math.nan),
            "train/samples_per_second": sum(total[4 + kinds :]) / seconds,
        }
        for number, name in enumerate(self.modalities):
            if total[4 + kinds + number]:
                row[f"train/l1/{name}"] = total[4 + number] / total[4 + kinds + number]
        self.record(row)
        self._window.zero_()
        self._window_start, self._validation_seconds = time.monotonic(), 0.0

    # Validation

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._validated = []
        self._validation_start = time.monotonic()

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Repair fixed crops under fixed disruptions."""
        disrupted = self._disrupt(batch)
        repaired, features = self.evaluated(disrupted.image, disrupted.channel_keep, disrupted.token_mask)
        repaired, clean = repaired.float(), batch["image"]
        result = {
            "l1": self._reconstruction_losses(repaired, batch, disrupted),
            "features": features,
            "modality": batch["modality"],
        }
        quality = {"": image_quality(repaired, clean)}
        if self.trainer.sanity_checking:
            quality |= self._baselines(disrupted.image, clean)
        for name, (_, psnr, ssim) in quality.items():
            result[f"psnr/{name}"], result[f"ssim/{name}"] = psnr, ssim
        self._picture(batch, disrupted.image, repaired)
        self._validated.append(result)

    def on_validation_epoch_end(self) -> None:
        """Record the means over each modality's crops; at step 0, those of trivial repairs too."""
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
        self._validation_seconds += time.monotonic() - self._validation_start

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
            path = self.pictures / name / f"{self.global_step:08d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            title = f"{name}, step {self.global_step}"
            triptych(columns, title, path)
            for logger in self.loggers:
                if isinstance(logger, lightning.pytorch.loggers.TensorBoardLogger):
                    logger.experiment.add_image(
                        f"reconstruction/{name}",
                        triptych_array(columns, title),
                        self.global_step,
                        dataformats="HWC",
                    )

    def record(self, row: dict[str, float]) -> None:
        """Write a row of metrics at this step, and show it in the progress bar."""
        self.latest |= row
        for logger in self.loggers:
            logger.log_metrics(row, self.global_step)


def _metric(key: str, modality: str) -> str:
    """("psnr/", "t1") -> "val/psnr/t1"; ("psnr/disrupted", "t1") -> "baseline/psnr/disrupted/t1"."""
    measure, _, baseline = key.partition("/")
    return f"baseline/{measure}/{baseline}/{modality}" if baseline else f"val/{measure}/{modality}"
