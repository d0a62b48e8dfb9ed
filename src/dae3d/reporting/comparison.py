"""Compare the image quality of the repaired crops with disrupted crops and baselines."""

import math
from dataclasses import dataclass

from dae3d.evaluation.image_metrics import validated
from dae3d.reporting.run_folder import BASELINES, Run


@dataclass(frozen=True)
class RepairRow:
    """One kind of image: values, `gain` of the network over it, and whether its value is the `best`."""

    name: str
    values: dict[str, float]
    gain: dict[str, float]
    best: dict[str, bool]


@dataclass(frozen=True)
class Comparison:
    """Means over the validation crops of one modality at `step`; the repaired crops are the last row."""

    modality: str
    step: int
    rows: list[RepairRow]

    @property
    def untouched(self) -> bool:
        """Whether disrupted and clean images are identical, as with local masking."""
        return math.isinf(self.rows[0].values["psnr"])

    @property
    def baselines(self) -> list[RepairRow]:
        """The baselines, without a network."""
        return self.rows[1:-1]

    def beats_disrupted(self, metric: str) -> bool:
        """Whether repaired crops are better than the disrupted ones."""
        return self.rows[0].gain[metric] > 0

    def beats_baselines(self, metric: str) -> bool:
        """Whether repaired crops are better than all baselines."""
        return all(row.gain[metric] > 0 for row in self.baselines)


def recorded_metrics(run: Run) -> list[str]:
    """The image quality metrics that a run recorded; old runs may lack some."""
    return [name for name in validated() if any(key.startswith(f"val/{name}/") for key in run.metrics)]


def compare(run: Run, modality: str) -> Comparison | None:
    """Compare at the last validation; None if the run lacks the necessary metrics."""
    metrics = recorded_metrics(run)
    series = {m: run.metrics.get(f"val/{m}/{modality}") for m in metrics}
    values = {
        name: {
            m: run.metrics[key].last[1] for m in metrics if (key := _key(m, name, modality)) in run.metrics
        }
        for name in BASELINES
    }
    values = {name: found for name, found in values.items() if len(found) == len(metrics)}
    if not metrics or "disrupted" not in values or any(found is None for found in series.values()):
        return None
    repaired = {m: found.last[1] for m, found in series.items() if found is not None}
    step = max(found.last[0] for found in series.values() if found is not None)
    values["repaired"] = repaired
    highest = {m: max(found[m] for found in values.values()) for m in metrics}
    rows = [
        RepairRow(
            name=name,
            values=found,
            gain={m: repaired[m] - found[m] for m in metrics},
            best={m: found[m] == highest[m] for m in metrics},
        )
        for name, found in values.items()
    ]
    return Comparison(modality, step, rows)


def _key(metric: str, name: str, modality: str) -> str:
    return f"baseline/{metric}/{name}/{modality}"
