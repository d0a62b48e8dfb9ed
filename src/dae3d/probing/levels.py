"""What each level of feature maps tells the decoder: repairs with that level taken from another crop."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

LEVELS = tuple(f"level{number}" for number in range(5))  # the tokens, then the four stages
ALL, IMAGE = "all", "image"
NOTHING = "nothing"

Decode = Callable[[Tensor, list[Tensor], slice], Tensor]


def partners(scans: Sequence[int]) -> list[int | None]:
    """For each crop of a batch, the next one, cyclically, that is of another scan; None where all are of one.

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
    """Errors of repairs, by what was taken from the partner: a level, all of them, the image, nothing.

    The image is swapped where the decoder looks at it; a repair keeps its own crop's intensity all the same
    (`with_intensity_of`).

    Args:
        decode: (b, C, D, H, W), its feature maps and their place in the batch to the repaired image.
        error: of repaired crops (b, C, D, H, W), and their place in the batch: (b,).
        image: (B, C, D, H, W), what is repaired.
        hidden: the five maps of the batch, (B, ...) each.
        partner: (B,) place of the crop whose map each crop gets.
        together: crops that are decoded at a time.
        sees_image: whether the decoder has a skip from the image.

    Returns:
        (B,) errors under `LEVELS`, "all", "nothing" and, where there is such a skip, "image".
    """
    found: dict[str, list[Tensor]] = {}
    for first in range(0, len(image), together):
        rows = slice(first, first + together)
        own = image[rows]
        maps = [level[rows] for level in hidden]
        others = [level[partner[rows]] for level in hidden]
        trials = {NOTHING: (own, maps), ALL: (own, others)}
        for number, name in enumerate(LEVELS):
            trials[name] = (own, [*maps[:number], others[number], *maps[number + 1 :]])
        if sees_image:
            trials[IMAGE] = (with_intensity_of(own, image[partner[rows]]), maps)
        for name, given in trials.items():
            found.setdefault(name, []).append(error(decode(*given, rows), rows))
    return {name: torch.cat(parts) for name, parts in found.items()}


def with_intensity_of(image: Tensor, other: Tensor) -> Tensor:
    """`other` with the mean and the deviation of `image`, each (B, C, D, H, W), over space."""
    space = (2, 3, 4)
    deviation, mean = torch.std_mean(image, dim=space, keepdim=True)
    of_other, mean_of_other = torch.std_mean(other, dim=space, keepdim=True)
    return (other - mean_of_other) / of_other.clamp(min=1e-6) * deviation + mean


def shares(errors: Mapping[str, Tensor]) -> dict[str, float]:
    """How much larger the mean error is when something is swapped, in percent of that when nothing is."""
    plain = errors[NOTHING].double().mean()
    return {
        name: float(100 * (each.double().mean() / plain - 1))
        for name, each in errors.items()
        if name != NOTHING
    }
