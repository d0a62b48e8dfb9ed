"""nnU-Net trainer for a network of dae3d, written by `dae3d export --format nnunet-trainer`.

Its weights are in `dae3d-weights.safetensors` beside this file. nnU-Net finds the trainer in the folder that
the environment variable nnUNet_extTrainer names, for training and for prediction.
"""

from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from dae3d.nnunet.network import build, load_weights, with_our_plan

WEIGHTS = Path(__file__).with_name("dae3d-weights.safetensors")


class nnUNetTrainerDae3d(nnUNetTrainer):  # type: ignore[misc]
    """nnU-Net's training, without deep supervision, of a network that begins with weights of dae3d."""

    # nnU-Net calls this with these names.
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device,
    ) -> None:
        plans = with_our_plan(plans, configuration, WEIGHTS)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False
        self.initial_lr = 3e-4
        self.weight_decay = 1e-5

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> torch.nn.Module:
        """The network with random weights, for training and for prediction."""
        return build(plans_manager.plans, num_input_channels, num_output_channels)

    def initialize(self) -> None:
        """Also load the weights, and write to the log which tensors were taken."""
        super().initialize()
        network: Any = getattr(self.network, "module", self.network)
        report = load_weights(getattr(network, "_orig_mod", network), WEIGHTS)
        self.print_to_log_file(str(report))

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """AdamW, which transformers need."""
        parameters = self.network.parameters()
        optimizer = torch.optim.AdamW(parameters, lr=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """There is none."""
