"""Tables of attention biases by the offset between two tokens, for windows of another size."""

import torch
from torch import Tensor

TABLE = ".relative_position_bias_table"


def window_of(table: Tensor) -> int | None:
    """The side in tokens of the cubic windows of a table ((2 * window - 1)^3, heads); None if not cubic."""
    side = round(table.shape[0] ** (1 / 3))
    return (side + 1) // 2 if table.ndim == 2 and side % 2 == 1 and side**3 == table.shape[0] else None


def resized(table: Tensor, window: int) -> Tensor:
    """A table for windows of another size, interpolated linearly along each axis.

    The largest offsets of both windows correspond, as do the zero offsets; it is the interpolation usual for
    Swin transformers (Liu et al., arXiv 2103.14030, use a bicubic one in 2D).

    Args:
        table: ((2 * w - 1)^3, heads) for windows of w tokens.
        window: side of the other windows in tokens.

    Returns:
        ((2 * window - 1)^3, heads); the same table if the window is the same.

    Raises:
        ValueError: if the table is not that of cubic windows.
    """
    before = window_of(table)
    if before is None:
        raise ValueError(f"{table.shape[0]} rows are not those of a cubic window")
    if before == window:
        return table
    sides, wanted = (2 * before - 1,) * 3, (2 * window - 1,) * 3
    volume = table.float().T.reshape(1, -1, *sides)
    new = torch.nn.functional.interpolate(volume, wanted, mode="trilinear", align_corners=True)
    return new.reshape(table.shape[1], -1).T.contiguous().to(table.dtype)
