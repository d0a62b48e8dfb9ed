"""The number of crops in a batch that fits the memory of this machine's device."""

import logging
from collections.abc import Callable
from typing import TypeVar

from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.filesize import decimal

from dae3d.errors import Dae3dError
from dae3d.planning.crops import largest_batch
from dae3d.planning.size import MARGIN, accelerator, device_memory
from dae3d.planning.trial import Trial
from dae3d.store.boxes import by_axis
from dae3d.training.run_settings import AUTO, RunSettings

log = logging.getLogger(__name__)

AnyRun = TypeVar("AnyRun", bound=RunSettings)

_MOST = 4096


def with_batch_size(settings: AnyRun, trial: Callable[[AnyRun], Trial], processes: int) -> AnyRun:
    """Replace `batch_size` "auto" by the largest number that fits; other settings are returned as they are.

    A tenth of the memory is left free for what the calculation does not count. The number is even if a loss
    compares pairs of crops.

    Args:
        settings: with all sizes of the network.
        trial: makes the steps of a run with such settings.
        processes: of the run; each has to find the same number.

    Raises:
        Dae3dError: if not even the smallest batch fits.
    """
    if settings.batch_size != AUTO:
        return settings
    kind = accelerator(settings.accelerator)
    memory = device_memory(kind, processes)
    least = 2 if getattr(settings, "pairs", False) else 1
    steps = trial(settings.model_copy(update={"batch_size": least}))

    def needs(crops: int) -> int:
        return steps.memory(crops, settings.roi).total

    crops = largest_batch(needs, int(memory * (1 - MARGIN)), least, _MOST)
    if not crops:
        raise Dae3dError(
            f"batch_size: a step with {least} crops of {by_axis(settings.roi)} takes "
            f"{decimal(needs(least))}, but the device has {decimal(memory)}, of which a tenth is left free; "
            "give a smaller --roi or a smaller network, or --checkpoint-activations"
        )
    _say(crops, needs(crops), memory)
    return settings.model_copy(update={"batch_size": crops})


@rank_zero_only
def _say(crops: int, needed: int, memory: int) -> None:
    log.info(
        "batch_size: %d, by calculation %s of the %s of this device", crops, decimal(needed), decimal(memory)
    )
