"""Training steps of a run that does not exist yet: their memory, calculated, and their time, measured."""

import functools
import statistics
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dae3d.cores import use_threads
from dae3d.memory import peak_memory
from dae3d.models.network import Segmenter
from dae3d.planning.size import accelerator, uses_bf16
from dae3d.planning.step_memory import META, StepMemory, step_memory
from dae3d.store.boxes import Triple
from dae3d.store.scan import Preparation
from dae3d.training.cpu import keep_freed_memory
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.training.finetuning import Finetuning
from dae3d.training.module import TrainingModule
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.training.pretraining import Pretraining
from dae3d.training.run_settings import RunSettings
from dae3d.training.schedule import Schedule

_SCHEDULE = Schedule(max_steps=1, warmup_steps=0, val_every=1, save_every=1)
_PATIENCE = 60.0  # seconds of measuring, after which no other step is begun


class Trial(ABC):
    """The steps of a run with these settings, whose sizes are complete; crops and their number may differ.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings

    @abstractmethod
    def module(self) -> TrainingModule:
        """A network with random weights, and all that is trained with it."""

    @abstractmethod
    def batch(self, crops: int, roi: Triple, device: torch.device) -> dict[str, Tensor]:
        """Random crops with sides `roi`, as a loader gives them."""

    @functools.cached_property
    def on_meta(self) -> Any:
        """The module on the meta device."""
        return self.module().to(META)

    def memory(self, crops: int, roi: Triple) -> StepMemory:
        """Bytes that a step with so many crops takes."""
        module = self.on_meta
        module.sums.reset(META)
        kind = accelerator(self.settings.accelerator)
        batch = self.batch(crops, roi, META)
        bf16 = uses_bf16(kind, self.settings.precision)
        return step_memory(module, lambda given: module.training_step(given, 0), batch, kind, bf16)

    def parameters(self) -> tuple[int, int]:
        """Parameters of the network, and of the loss heads that are trained with it."""
        module = self.on_meta
        network = sum(parameter.numel() for parameter in module.network.parameters())
        average = 0 if module.average is None else network
        return network, sum(parameter.numel() for parameter in module.parameters()) - network - average

    def measure(self, steps: int) -> dict[str, float]:
        """Make steps with AdamW on the device of the run; call it in a process of its own.

        It leaves out reading crops, communication between devices, validation and saving.

        Returns:
            Median seconds of a step without the first, the steps that were measured, and the peak memory of
            the GPU, or the growth of this process, in bytes.
        """
        on_gpu = accelerator(self.settings.accelerator) == "gpu"
        device = torch.device("cuda" if on_gpu else "cpu")
        if not on_gpu:
            keep_freed_memory()
            use_threads(self.settings.threads)
        before = peak_memory()
        torch.manual_seed(self.settings.seed)
        module = self.module().to(device).train()
        module.sums.reset(device)
        optimizer = module.configure_optimizers()
        batch = self.batch(self.settings.crops, self.settings.roi, device)
        seconds: list[float] = []
        while len(seconds) < 1 + steps and sum(seconds) < _PATIENCE:
            start = time.perf_counter()
            self.step(module, optimizer, batch, device)
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return {
            "seconds": statistics.median(seconds[1:] or seconds),
            "steps": max(1, len(seconds) - 1),
            "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_memory() - before,
        }

    def step(
        self, module: Any, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], device: torch.device
    ) -> None:
        """One step as of the run, on a device."""
        kind = accelerator(self.settings.accelerator)
        bf16 = uses_bf16(kind, self.settings.precision)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        learning = [parameter for parameter in module.parameters() if parameter.grad is not None]
        nn.utils.clip_grad_norm_(learning, self.settings.clip_grad or float("inf"))
        optimizer.step()
        if module.average is not None:
            module.average.update_parameters(module.network)


class PretrainTrial(Trial):
    """Steps of pre-training.

    Args:
        settings: of the run, with the sizes of the network complete.
    """

    settings: PretrainSettings

    def __init__(self, settings: PretrainSettings) -> None:
        super().__init__(settings)

    def module(self) -> Pretraining:
        """With two modalities."""
        preparation = Preparation(spacing=None, crop_foreground=False)
        return Pretraining(self.settings, _SCHEDULE, ["a", "b"], preparation, Path("pictures"))

    def batch(self, crops: int, roi: Triple, device: torch.device) -> dict[str, Tensor]:
        """Pairs of crops of one place, of two modalities."""
        image = _random((crops, 1, *roi), device)
        numbers = torch.arange(crops, device=device)
        return {
            "image": image,
            "inside": torch.ones_like(image, dtype=torch.bool),
            "modality": numbers // 2 % 2,
            "sample": numbers,
            "origin": torch.zeros((crops, 3), dtype=torch.int64, device=device),
        }


class FinetuneTrial(Trial):
    """Steps of fine-tuning.

    Args:
        settings: of the run, with the sizes of the network complete.
        channels: of an image.
        classes: with the background.
    """

    settings: FinetuneSettings

    def __init__(self, settings: FinetuneSettings, channels: int, classes: int) -> None:
        super().__init__(settings)
        self.channels, self.classes = channels, classes

    def module(self) -> Finetuning:
        """As from scratch: all of it is trained."""
        s = self.settings
        architecture = s.architecture_of(
            s.roi, restore_intensity=False, in_channels=self.channels, out_channels=self.classes
        )
        network = Segmenter(architecture, s.checkpoint_activations)
        data: Any = SimpleNamespace()
        return Finetuning(s, _SCHEDULE, network, data, Path("pictures"))

    def batch(self, crops: int, roi: Triple, device: torch.device) -> dict[str, Tensor]:
        """With labels of the first class."""
        image = _random((crops, self.channels, *roi), device)
        label = torch.zeros((crops, 1, *roi), dtype=torch.uint8, device=device)
        return {"image": image, "label": label, "sample": torch.arange(crops, device=device)}


def measured_pretraining(settings: dict[str, Any], steps: int) -> dict[str, float]:
    """`Trial.measure` for settings as JSON, for a process of its own."""
    return PretrainTrial(PretrainSettings.model_validate(settings)).measure(steps)


def measured_finetuning(
    settings: dict[str, Any], channels: int, classes: int, steps: int
) -> dict[str, float]:
    """`Trial.measure` for settings as JSON, for a process of its own."""
    return FinetuneTrial(FinetuneSettings.model_validate(settings), channels, classes).measure(steps)


def _random(shape: tuple[int, ...], device: torch.device) -> Tensor:
    # The meta device has no values to draw.
    return torch.empty(shape, device=device) if device == META else torch.rand(shape, device=device)
