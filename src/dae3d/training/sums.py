"""Sums for the rows of metrics."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class MetricSums:
    """Sums over the steps since the last row, kept on the device so that no step has to wait for a value.

    Args:
        losses: names of the values of each batch.
        kinds: names of the kinds of samples; one loss is also averaged for each kind.
    """

    def __init__(self, losses: Sequence[str], kinds: Sequence[str] = ()) -> None:
        self.losses, self.kinds = tuple(losses), tuple(kinds)
        # Batches, samples, losses; then the loss of each kind, and its samples.
        self.values = torch.zeros(2 + len(self.losses) + 2 * len(self.kinds))

    def reset(self, device: torch.device) -> None:
        """Start over, on a device."""
        self.values = torch.zeros_like(self.values, device=device)

    def add(
        self,
        losses: Mapping[str, Tensor],
        samples: int,
        each: Tensor | None = None,
        kind: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            losses: scalars by name, all of them, in the order of `losses`.
            samples: number in the batch.
            each: (B,) the loss of every sample.
            kind: (B,) int64, the number of its kind.
        """
        assert tuple(losses) == self.losses
        first = next(iter(losses.values()))
        means = [torch.ones_like(first), torch.full_like(first, samples), *losses.values()]
        self.values[: len(means)] += torch.stack(means).detach()
        if each is not None and kind is not None:
            totals, counts = self.values[len(means) :].chunk(2)
            totals.index_add_(0, kind, each.detach())
            counts.index_add_(0, kind, torch.ones_like(each))

    def row(self, values: Sequence[float]) -> tuple[dict[str, float], dict[str, float], float]:
        """Mean losses, mean losses of the kinds that occurred, and the number of samples.

        Args:
            values: summed over all processes.
        """
        batches, samples, *rest = values
        losses, by_kind = rest[: len(self.losses)], rest[len(self.losses) :]
        totals, counts = by_kind[: len(self.kinds)], by_kind[len(self.kinds) :]
        return (
            {name: total / batches for name, total in zip(self.losses, losses, strict=True)},
            {n: total / count for n, total, count in zip(self.kinds, totals, counts, strict=True) if count},
            samples,
        )
