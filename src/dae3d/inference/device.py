"""The device a whole scan is worked on."""

import torch

from dae3d.cores import use_threads
from dae3d.errors import Dae3dError


def pick_device(name: str, threads: int | None = None) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one. A CPU computes with so many `threads`.

    Raises:
        Dae3dError: where it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise Dae3dError(
            f"device: must be auto, cpu, cuda or cuda:N, and be there, not {name!r}: {reason}"
        ) from None
    if device.type == "cpu":
        use_threads(threads)
    return device
