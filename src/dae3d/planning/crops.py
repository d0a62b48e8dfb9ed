"""The shape of crops, and how many of them fit into memory.

Source of the shape: the experiment planner of nnU-Net (Isensee et al., Nature Methods 2021, supplement;
`get_plans_for_configuration`).
"""

import math
from collections.abc import Callable, Iterator, Sequence

from dae3d.store.boxes import Triple

Multiples = Callable[[Triple], Triple]

_LEAST = 8  # voxels of a side: the least that settings allow
_USEFUL = 64**3  # voxels: crops are not made smaller than this to fit more of them


def first_shape(
    median: Sequence[float], spacing: Sequence[float], multiples: Multiples, voxels: float
) -> Triple:
    """The largest shape: proportional to 1 / spacing, of so many voxels, cut off at the median shape.

    Args:
        median: shape of the images in voxels.
        spacing: voxel size in mm.
        multiples: of which the sides must be, for a shape; sides are rounded up to them.
        voxels: of the shape before it is cut off.
    """
    scale = (voxels * math.prod(spacing)) ** (1 / 3)
    sides = (min(round(scale / mm), round(side)) for mm, side in zip(spacing, median, strict=True))
    x, y, z = (max(side, _LEAST) for side in sides)
    return _rounded_up((x, y, z), multiples)


def smaller_shapes(first: Triple, median: Sequence[float], multiples: Multiples) -> Iterator[Triple]:
    """`first`, then smaller and smaller shapes, to the smallest that is possible.

    Each is shorter than the one before along the axis that is longest relative to the median shape, or the
    next such one that can be shorter.
    """
    shape: Triple | None = first
    while shape is not None:
        yield shape
        shape = _smaller(shape, median, multiples)


def _smaller(shape: Triple, median: Sequence[float], multiples: Multiples) -> Triple | None:
    longest_first = sorted(range(3), key=lambda axis: shape[axis] / median[axis], reverse=True)
    for axis in longest_first:
        least = _shorter(shape, axis, multiples(shape)[axis])
        if least[axis] < _LEAST:
            continue
        # The coarsest step may be too large: with fewer stages, smaller multiples are possible.
        for made in (_shorter(shape, axis, multiples(least)[axis]), least):
            made = _rounded_up(made, multiples)
            if made[axis] < shape[axis] and math.prod(made) < math.prod(shape):
                return made
    return None


def _shorter(shape: Triple, axis: int, by: int) -> Triple:
    x, y, z = (side - by * (place == axis) for place, side in enumerate(shape))
    return x, y, z


def _rounded_up(shape: Triple, multiples: Multiples) -> Triple:
    """The smallest shape, not smaller than this, whose sides are multiples of those for itself."""
    while True:
        x, y, z = (-(-side // of) * of for side, of in zip(shape, multiples(shape), strict=True))
        if (x, y, z) == shape:
            return shape
        shape = x, y, z


def largest_fitting(
    shapes: Sequence[Triple], needs: Callable[[Triple, int], int], limit: int, crops: Sequence[int]
) -> tuple[Triple, int] | None:
    """The first of `shapes` of which enough crops fit into `limit` bytes, and how many; None if none does.

    Args:
        shapes: from the largest to the smallest.
        needs: bytes of a step with crops of a shape, by their number; less for smaller shapes.
        limit: in bytes.
        crops: the numbers to fit, the preferred one first. The next is taken only if crops would have fewer
            than 64^3 voxels, and the first shape has more.
    """
    useful = min(_USEFUL, math.prod(shapes[0]))
    found: list[tuple[Triple, int]] = []
    for count in crops:
        place = _first_below([math.prod(shape) for shape in shapes], _of_number(shapes, needs, count), limit)
        if place < len(shapes):
            found.append((shapes[place], count))
            if math.prod(shapes[place]) >= useful:
                return found[-1]
    return found[0] if found else None


def _of_number(
    shapes: Sequence[Triple], needs: Callable[[Triple, int], int], count: int
) -> Callable[[int], int]:
    return lambda place: needs(shapes[place], count)


def _first_below(sizes: Sequence[int], value: Callable[[int], int], limit: int) -> int:
    """The first place whose value is at most `limit`, or `len(sizes)`; values fall with the sizes.

    A value takes seconds to calculate and is nearly linear in its size, so the place is interpolated.
    """
    low, high = 0, len(sizes)
    known: list[tuple[int, int]] = []  # sizes and values
    while low < high:
        place = min(max(_estimated(sizes, known, limit), low), high - 1)
        known.append((sizes[place], value(place)))
        if known[-1][1] <= limit:
            high = place
        else:
            low = place + 1
    return high


def _estimated(sizes: Sequence[int], known: list[tuple[int, int]], limit: int) -> int:
    """The first place that should be below the limit, by the line through the two known values nearest to it.

    With one known value the line goes through 0; with none it is the first place.
    """
    if not known:
        return 0
    (at, value), (other, of_other) = sorted([*known, (0, 0)], key=lambda each: abs(each[1] - limit))[:2]
    rate = (value - of_other) / ((at - other) or 1)
    return next((p for p, size in enumerate(sizes) if value + rate * (size - at) <= limit), len(sizes) - 1)


def largest_batch(needs: Callable[[int], int], limit: int, multiple: int, most: int) -> int:
    """The largest number of crops whose step fits into `limit` bytes; 0 if not even `multiple` do.

    Args:
        needs: bytes of a step, by the number of crops; grows in proportion to it, up to rounding.
        limit: in bytes.
        multiple: the number is a multiple of this.
        most: the number is at most this.
    """
    one, two = needs(multiple), needs(2 * multiple)
    if one > limit:
        return 0
    each = max(1.0, (two - one) / multiple)
    count = max(multiple, min(most, multiple + int((limit - one) / each)) // multiple * multiple)
    while count > multiple and needs(count) > limit:
        count -= multiple
    return count
