"""How much the decoder uses each level: errors of repairs with that level taken from another crop."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

ALL, IMAGE = "all", "image"
NOTHING = "nothing"

Decode = Callable[[Tensor, list[Tensor], slice], Tensor]


def level_names(count: int) -> list[str]:
    """Names of the encoder's feature maps, the finest first."""
    return [f"level{number}" for number in range(count)]


def partners(scans: Sequence[int]) -> list[int | None]:
    """For each crop of a batch, the next one (cyclically) of another scan; None if there is none.

    Args:
        scans: the scan of each crop.
    """
    count = len(scans)
    return [
        next((j for step in range(1, count) if scans[j := (i + step) % count] != scans[i]), None)
        for i in range(count)
    ]


def swap_errors(
    decode: Decode,
    error: Callable[[Tensor, slice], Tensor],
    image: Tensor,
    hidden: Sequence[Tensor],
    partner: Tensor,
    together: int,
    sees_image: bool = True,
) -> dict[str, Tensor]:
    """Errors of repairs when a level, all levels, the image skip or nothing is taken from a partner crop.

    A swapped image is scaled to the mean and standard deviation of the own image (`with_intensity_of`).

    Args:
        decode: maps an image (b, C, D, H, W), its feature maps and their slice of the batch to the repaired
            image.
        error: maps repaired crops (b, C, D, H, W) and their slice of the batch to errors (b,).
        image: (B, C, D, H, W), the disrupted crops.
        hidden: the feature maps of the batch, (B, ...) each.
        partner: (B,) index of the partner of each crop.
        together: crops decoded at a time.
        sees_image: whether the decoder has a skip connection from the image.

    Returns:
        (B,) errors under the `level_names`, "all", "nothing" and, with such a skip, "image".
    """
    found: dict[str, list[Tensor]] = {}
    for first in range(0, len(image), together):
        rows = slice(first, first + together)
        own = image[rows]
        maps = [level[rows] for level in hidden]
        others = [level[partner[rows]] for level in hidden]
        trials = {NOTHING: (own, maps), ALL: (own, others)}
        for number, name in enumerate(level_names(len(maps))):
            trials[name] = (own, [*maps[:number], others[number], *maps[number + 1 :]])
        if sees_image:
            trials[IMAGE] = (with_intensity_of(own, image[partner[rows]]), maps)
        for name, given in trials.items():
            found.setdefault(name, []).append(error(decode(*given, rows), rows))
    return {name: torch.cat(parts) for name, parts in found.items()}


def with_intensity_of(image: Tensor, other: Tensor) -> Tensor:
    """`other` scaled to the spatial mean and standard deviation of `image`, each (B, C, D, H, W)."""
    space = (2, 3, 4)
    deviation, mean = torch.std_mean(image, dim=space, keepdim=True)
    of_other, mean_of_other = torch.std_mean(other, dim=space, keepdim=True)
    return (other - mean_of_other) / of_other.clamp(min=1e-6) * deviation + mean


def shares(errors: Mapping[str, Tensor]) -> dict[str, float]:
    """Increase of the mean error by each swap, in percent of the error without swaps."""
    plain = errors[NOTHING].double().mean()
    return {
        name: float(100 * (each.double().mean() / plain - 1))
        for name, each in errors.items()
        if name != NOTHING
    }
