"""Random weights with the mean and deviation of each tensor of trained ones: what the scales alone bring."""

from pathlib import Path

import torch

from dae3d.models.weights import read_weights, save_weights


def write_matched(source: str | Path, path: Path, seed: int) -> None:
    """Write weights with the header of `source`, drawn from normal distributions.

    Args:
        source: a run or a weights file.
        path: file to write.
        seed: of the draw.

    Raises:
        Dae3dError: if `source` cannot be read, or the file cannot be written.
    """
    contents = read_weights(source)
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in contents.state.items():
        if tensor.is_floating_point():
            deviation, mean = torch.std_mean(tensor.float(), correction=0)
            drawn = torch.randn(tensor.shape, generator=random) * deviation + mean
            state[name] = drawn.to(tensor.dtype)
        else:
            state[name] = tensor
    save_weights(path, state, contents.architecture, contents.info)
