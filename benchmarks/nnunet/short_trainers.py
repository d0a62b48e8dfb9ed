"""nnU-Net's trainer, and ours, for two short epochs: whether weights are taken and train, not how well."""

import os
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

try:
    from nnUNetTrainerDae3d import nnUNetTrainerDae3d as Ours
except ImportError:  # the folder with it is not exported yet
    Ours = nnUNetTrainer


class _Short:
    """Two epochs of ten iterations with two crops."""

    # nnU-Net calls this with these names.
    def __init__(self, plans: Any, configuration: str, fold: int, dataset_json: Any, device: Any) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 10, 2
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))

    def _set_batch_size_and_oversample(self) -> None:
        super()._set_batch_size_and_oversample()
        self.batch_size = 2

    def plot_network_architecture(self) -> None:
        """Needs a program that draws."""


class nnUNetTrainerShort(_Short, nnUNetTrainer):
    """Stock training, shortened."""


class nnUNetTrainerDae3dShort(_Short, Ours):
    """Our trainer, shortened."""
