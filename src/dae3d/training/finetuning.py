"""Fine-tuning: a training step with Dice and cross-entropy, and validation on whole cases."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses.dice import DiceLoss
from torch import Tensor, nn

from dae3d.drawing.case_view import view_case
from dae3d.drawing.overlay import draw_case
from dae3d.inference.sliding import segment
from dae3d.models.network import WeightsInfo
from dae3d.scans.readers import Volume
from dae3d.scans.task_labels import IGNORED
from dae3d.training.augment import flipped_axes
from dae3d.training.batch import Sample
from dae3d.training.cases import LabelledData
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.training.module import TrainingModule
from dae3d.training.optimiser import parameter_groups
from dae3d.training.schedule import Schedule
from dae3d.training.sums import MetricSums


class Finetuning(TrainingModule):
    """Supervised training of a `Segmenter`.

    Args:
        settings: of the run.
        schedule: of the run.
        network: a `Segmenter`.
        data: cases of this run.
        pictures: folder for segmentations of the first validation case.
        ignores: whether labels may have voxels to ignore.
    """

    validates_first = False

    def __init__(
        self,
        settings: FinetuneSettings,
        schedule: Schedule,
        network: nn.Module,
        data: LabelledData,
        pictures: Path,
        ignores: bool = False,
    ) -> None:
        model: Any = network
        sums = MetricSums(["loss", "dice_loss", "cross_entropy"])
        model = model.to(memory_format=torch.channels_last_3d)
        super().__init__(settings, schedule, model, pictures, sums)
        self.settings, self.data = settings, data
        self.loss = SegmentationLoss(self.network.architecture.out_channels, ignores)
        if settings.freeze == "encoder" and schedule.freeze_steps == 0:
            self.network.encoder.requires_grad_(False)
        self._scores = torch.zeros(0)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups with layer-wise learning rates."""
        return parameter_groups(self.network, self.settings.weight_decay, self.settings.layer_decay)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Drop the gradients of an encoder that is still frozen: it is neither updated nor clipped."""
        if self.settings.freeze == "encoder" and self.global_step < self.schedule.freeze_steps:
            for parameter in self.network.encoder.parameters():
                parameter.grad = None
        super().configure_gradient_clipping(*args, **kwargs)

    def header(self) -> WeightsInfo:
        """Metadata for prediction: preparation of the cases, classes, flipped axes."""
        return {
            "task": "segmentation",
            "recipe": self.data.recipe.model_dump(mode="json", exclude={"ignore"}),
            "axes": self.settings.axes,
            "flip_axes": flipped_axes(self.settings),
        }

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """The loss of one batch of this rank: Dice and cross-entropy at every resolution with a head."""
        every = self.network.all_logits(batch["image"])
        weights = torch.tensor([0.5**level for level in range(len(every))])
        weights /= weights.sum()
        dice = cross_entropy = batch["image"].new_zeros((), dtype=torch.float32)
        for weight, logits in zip(weights.tolist(), every, strict=True):
            x, y, z = (of // to for of, to in zip(batch["label"].shape[2:], logits.shape[2:], strict=True))
            label = batch["label"][:, :, ::x, ::y, ::z].long()
            of_level = self.loss(logits.float(), label)
            dice, cross_entropy = dice + weight * of_level[0], cross_entropy + weight * of_level[1]
        loss = dice + cross_entropy
        losses = {"loss": loss, "dice_loss": dice, "cross_entropy": cross_entropy}
        self.sums.add(losses, len(batch["image"]))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Reset the scores."""
        super().on_validation_epoch_start()
        # Dice of each case and class, and whether it is defined.
        shape = (2, len(self.data.validation), len(self.data.recipe.labels) - 1)
        self._scores = torch.zeros(shape, device=self.device)

    def validation_step(self, place: int, batch_idx: int) -> None:
        """Segment a whole case with sliding windows."""
        if place < 0:
            return
        number = self.data.validation[place]
        case = self.data.store.cases[number]
        image = torch.from_numpy(
            self.data.store.image(number, (0, 0, 0), case.shape, self.data.recipe.intensity)
        )
        label = torch.from_numpy(self.data.store.label(number, (0, 0, 0), case.shape))
        windows = 1 if self.device.type == "cpu" else 4
        predicted = segment(
            [self.evaluated], image, self.settings.roi, self.settings.val_overlap, windows, self.device
        )
        scores = dice_by_class(predicted, label, len(self.data.recipe.labels))
        self._scores[0, place] = scores.nan_to_num(0.0).to(self.device)
        self._scores[1, place] = scores.isfinite().to(self.device)
        if place == 0:
            scan = Volume(image[0].numpy(), np.array(case.affine))
            view = view_case(scan, label.where(label != IGNORED, 0).numpy(), predicted.numpy())
            names = dict(enumerate(self.data.recipe.class_names))
            title = f"{case.name}, step {self.global_step}"
            self.picture(case.name, draw_case(view, view.fullest, title, names))

    def on_validation_epoch_end(self) -> None:
        """Record the mean Dice of each class, and the mean over cases of the mean over classes."""
        values, defined = self.trainer.strategy.reduce(self._scores, reduce_op="sum").cpu()
        by_class = values.sum(0) / defined.sum(0)
        by_case = values.sum(1) / defined.sum(1)
        mean = float(by_case.nanmean())
        self.val_loss = 1 - mean
        row = {"val/dice": mean}
        row |= {
            f"val/dice/{name}": float(dice)
            for name, dice in zip(self.data.recipe.class_names[1:], by_class, strict=True)
            if dice.isfinite()
        }
        self.record(row)
        super().on_validation_epoch_end()


class SegmentationLoss(nn.Module):
    """The two losses of segmentation, MONAI's Dice loss and cross-entropy.

    Args:
        classes: with the background.
        ignores: whether labels may have voxels to ignore, which count for neither.
    """

    def __init__(self, classes: int, ignores: bool) -> None:
        super().__init__()
        self.classes, self.ignores = classes, ignores
        self.dice = DiceLoss(to_onehot_y=not ignores, softmax=not ignores)

    def forward(self, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The means over a batch of logits (B, K, D, H, W) and labels (B, 1, D, H, W) int64."""
        if not self.ignores:
            return self.dice(logits, label), nn.functional.cross_entropy(logits, label[:, 0])
        known = label != IGNORED
        target = label == torch.arange(self.classes, device=label.device).view(1, -1, 1, 1, 1)
        dice = self.dice(logits.softmax(1) * known, target.to(logits.dtype))
        total = nn.functional.cross_entropy(logits, label[:, 0], ignore_index=IGNORED, reduction="sum")
        return dice, total / known.sum().clamp(min=1)


def dice_by_class(predicted: Tensor, reference: Tensor, classes: int) -> Tensor:
    """Dice of every class but the background; NaN if the reference lacks the class, as in MONAI.

    Voxels to ignore count for neither.

    Args:
        predicted: (X, Y, Z) class indices, on the CPU.
        reference: of the same shape.
        classes: number of classes, background included.
    """
    counts = torch.zeros(classes * classes, dtype=torch.int64)
    # One plane at a time, because whole volumes would be copied as int64.
    for plane, truth in zip(predicted, reference, strict=True):
        pairs = truth.long() * classes + plane
        counts += torch.bincount(pairs[truth != IGNORED], minlength=classes * classes)
    voxels = counts.reshape(classes, classes).double()
    found, wanted, both = voxels.sum(0), voxels.sum(1), voxels.diagonal()
    dice = torch.where(wanted > 0, 2 * both / (found + wanted), torch.nan)
    return dice[1:].float()
