"""Choose crops and their number for a device, and forecast what a run takes."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.filesize import decimal
from tqdm import tqdm

from dae3d.benchmarking.process import in_new_process
from dae3d.errors import Dae3dError
from dae3d.planning.crops import (
    Multiples,
    first_shape,
    largest_batch,
    largest_fitting,
    smaller_shapes,
)
from dae3d.planning.fingerprint import Fingerprint
from dae3d.planning.size import MARGIN, Accelerator, device_memory
from dae3d.planning.step_memory import StepMemory
from dae3d.planning.trial import Trial
from dae3d.store.boxes import Triple, by_axis
from dae3d.training.forecast import disk_bytes
from dae3d.training.record import cpu_name

log = logging.getLogger(__name__)

# Voxels of the largest crop: nnU-Net's, and what a CPU can train on.
_VOXELS: dict[Accelerator, int] = {"gpu": 256**3, "cpu": 96**3}


@dataclass(frozen=True)
class Wish:
    """What the user asks for.

    Attributes:
        device: of the run.
        memory: bytes of it.
        batch_size: crops per step; None: as fit.
        steps: training steps to measure; 0: none.
    """

    device: Accelerator
    memory: int
    batch_size: int | None
    steps: int

    @property
    def limit(self) -> int:
        """Bytes that a step may take."""
        return int(self.memory * (1 - MARGIN))


@dataclass(frozen=True)
class Choice:
    """Crops with sides `roi`, their number in a batch, and the memory of a step with them."""

    roi: Triple
    crops: int
    memory: StepMemory


@dataclass(frozen=True)
class Speed:
    """Seconds of a step; None if it could not be measured, `how` says why or how it was measured."""

    seconds: float | None
    how: str


@dataclass
class Chooser:
    """Finds crops that fit.

    Attributes:
        trial: the steps of a run with crops of a shape.
        images: that crops are cut from.
        multiples: of which the sides of a crop must be.
        wish: of the user.
        preferred: numbers of crops in a batch, the preferred one first.
        most: crops in a batch, if the user gives no number.
    """

    trial: Callable[[Triple], Trial]
    images: Fingerprint
    multiples: Multiples
    wish: Wish
    preferred: tuple[int, ...]
    most: int
    _known: dict[tuple[Triple, int], StepMemory] = field(default_factory=dict)

    def choose(self) -> Choice:
        """The largest crops of which enough fit, and as many of them as fit.

        Raises:
            Dae3dError: if not even the smallest fit; says how much memory that takes.
        """
        wish, median = self.wish, self.images.box
        numbers = self.preferred if wish.batch_size is None else (wish.batch_size,)
        first = first_shape(median, self.images.spacing, self.multiples, _VOXELS[wish.device])
        shapes = list(smaller_shapes(first, median, self.multiples))
        with tqdm(desc="memory of crops", unit=" shapes", leave=False, delay=1) as self._bar:
            found = largest_fitting(shapes, self._needs, wish.limit, numbers)
            if found is None:
                least = self._needs(shapes[-1], numbers[-1]) / (1 - MARGIN)
                raise Dae3dError(
                    f"memory: {decimal(wish.memory)} are too little for this network: the smallest crops, "
                    f"{by_axis(shapes[-1])}, {numbers[-1]} a step, take at least "
                    f"{decimal(math.ceil(least))}; give more memory, --size small or a smaller --batch-size"
                )
            roi, crops = found
            if wish.batch_size is None:
                multiple = min(2, self.preferred[-1])
                fits = largest_batch(lambda n: self._needs(roi, n), wish.limit, multiple, self.most)
                crops = max(crops, fits)
            self._needs(roi, crops)
        return Choice(roi, crops, self._known[roi, crops])

    def _needs(self, roi: Triple, crops: int) -> int:
        if (roi, crops) not in self._known:
            self._bar.set_postfix_str(f"{crops} x {by_axis(roi)}")
            self._known[roi, crops] = self.trial(roi).memory(crops, roi)
            self._bar.update()
        return self._known[roi, crops].total


def measured(trial: Trial, choice: Choice, wish: Wish, measure: Callable[..., Any], **about: Any) -> Speed:
    """Make a few steps of a run in a process of its own.

    Args:
        trial: the steps.
        choice: of crops.
        wish: of the user.
        measure: makes them, of the settings as JSON, `steps` and `about`.
        about: further arguments.
    """
    if not wish.steps:
        return Speed(None, "not measured (--steps 0)")
    if wish.device == "gpu" and not torch.cuda.is_available():
        return Speed(None, "not measured, because this machine has no GPU")
    here = device_memory(wish.device)
    if choice.memory.total > here:
        return Speed(
            None, f"not measured, because this machine has {decimal(here)} free, and a step needs more"
        )
    log.info("measuring steps of %d crops of %s", choice.crops, by_axis(choice.roi))
    settings = trial.settings.model_dump(mode="json")
    try:
        found = in_new_process(measure, settings=settings, steps=wish.steps, **about)
    except Dae3dError as error:
        raise Dae3dError(
            f"a training step failed: {str(error).rpartition(': ')[2]}; --steps 0 plans without measuring"
        ) from None
    name = torch.cuda.get_device_name() if wish.device == "gpu" else cpu_name()
    return Speed(
        found["seconds"],
        f"median of {found['steps']:.0f} steps of network, losses and optimiser on random crops ({name}); "
        "without reading crops, communication, validation and saving",
    )


def forecast(trial: Trial, choice: Choice, wish: Wish, speed: Speed, steps: int) -> Iterator[str]:
    """Sentences on what a run of so many steps takes."""
    network, heads = trial.parameters()
    also = f", and {heads / 1e6:.2f} million of loss heads, which are discarded" if heads else ""
    yield f"parameters: {network / 1e6:.2f} million{also}"
    m = choice.memory
    yield (
        f"memory of a step, calculated: {decimal(m.total)} (weights {decimal(m.weights)}, gradients "
        f"{decimal(m.gradients)}, optimiser {decimal(m.optimiser)}, crops {decimal(m.batch)}, activations "
        f"{decimal(m.activations)}), within {decimal(wish.memory)} less {MARGIN:.0%}; without what CUDA, "
        "Python and the loader processes take"
    )
    if speed.seconds is None:
        yield f"seconds a step: {speed.how}"
    else:
        yield f"seconds a step: {speed.seconds:.3g}, {speed.how}"
        yield f"hours of the run: {steps * speed.seconds / 3600:.3g}, for {steps} steps"
    one, kept = disk_bytes(trial.on_meta, trial.settings.keep)
    yield (
        f"disk: {decimal(kept)} for {trial.settings.keep} checkpoints and two files of weights, and "
        f"{decimal(one)} more while a checkpoint is written"
    )


def steps_in(hours: float, speed: Speed) -> int:
    """The training steps that fit into so many hours, a multiple of 10 if there are as many.

    Raises:
        Dae3dError: if steps were not measured, or not a single one fits.
    """
    if speed.seconds is None:
        raise Dae3dError(
            f"hours: the steps that fit are unknown: seconds a step were {speed.how}; plan on the machine of "
            "the run, or leave --hours out"
        )
    steps = int(hours * 3600 / speed.seconds)
    if steps < 1:
        raise Dae3dError(f"hours: {hours:g} are not enough for a step, which takes {speed.seconds:.3g} s")
    return steps // 10 * 10 if steps >= 10 else steps
