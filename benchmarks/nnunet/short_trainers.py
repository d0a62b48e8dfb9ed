"""nnU-Net's trainer, and ours, for two short epochs: whether weights are taken and train, not how well."""

import os
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

try:
    from nnUNetTrainerDae3d import nnUNetTrainerDae3d as Ours
except ImportError:  # the folder with it is not exported yet
    Ours = nnUNetTrainer


def _shortened(trainer: Any) -> None:
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 2, 10, 2
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


class nnUNetTrainerShort(nnUNetTrainer):
    """Stock training, shortened."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        _shortened(self)

    def _set_batch_size_and_oversample(self):
        super()._set_batch_size_and_oversample()
        self.batch_size = 2

    def plot_network_architecture(self):
        """Needs a program that draws."""


class nnUNetTrainerDae3dShort(Ours):
    """Our trainer, shortened."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        _shortened(self)

    def _set_batch_size_and_oversample(self):
        super()._set_batch_size_and_oversample()
        self.batch_size = 2

    def plot_network_architecture(self):
        """Needs a program that draws."""
