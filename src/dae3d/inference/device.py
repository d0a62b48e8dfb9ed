"""Choice of the compute device."""

import torch

from dae3d.cores import use_threads
from dae3d.errors import Dae3dError


def pick_device(name: str, threads: int | None = None) -> torch.device:
    """The device with a name; "auto" is the GPU if there is one. `threads` applies to the CPU.

    Raises:
        Dae3dError: if the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise Dae3dError(
            f"device: must be auto, cpu, cuda or cuda:N, and available, not {name!r}: {reason}"
        ) from None
    if device.type == "cpu":
        use_threads(threads)
    return device
