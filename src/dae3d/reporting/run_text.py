"""Sentences about a run: what was trained, the result, and what the run folder lacks."""

from collections.abc import Sequence

from dae3d.evaluation.image_metrics import IMAGE_METRICS
from dae3d.reporting.comparison import Comparison
from dae3d.reporting.run_folder import Run
from dae3d.words import duration, listing, plural, quantity


def summary(run: Run, comparisons: Sequence[Comparison]) -> list[str]:
    """Sentences about network, data, duration and result."""
    return [_training(run), *legs(run), *_result(run, comparisons)]


def legs(run: Run) -> list[str]:
    """Sentences about changes of the training data when the run was resumed."""
    sentences = []
    for leg in run.record.legs[1:]:
        scans = [f"{plural(row.train, 'scan')} of {row.modality} ({row.dataset})" for row in leg.data.rows]
        sentences.append(f"From step {leg.start} on, training continued on other data: {', '.join(scans)}.")
    return sentences


def missing(run: Run) -> list[str]:
    """Sentences about what a complete run would have and this one lacks."""
    record, metrics = run.record, run.metrics
    absent = []
    if not record.finished:
        absent.append(f"The run is not finished: {progress(run)}.")
    if run.settings is None:
        absent.append("settings.yaml is missing.")
    if not record.data.rows:
        absent.append("run.json does not say what was trained on.")
    if not any(name.startswith("train/") for name in metrics):
        absent.append("metrics.csv has no training rows.")
    if run.unreadable_rows:
        absent.append(f"{plural(run.unreadable_rows, 'row')} of metrics.csv could not be read.")
    unmeasured = [m for m in run.modalities if f"val/psnr/{m}" not in metrics]
    if unmeasured:
        absent.append(f"No validation results for {listing(unmeasured)}.")
    unpaired = [m for m in run.modalities if f"baseline/psnr/disrupted/{m}" not in metrics]
    if unpaired:
        absent.append(f"No baselines for {listing(unpaired)}.")
    undrawn = [m for m in run.modalities if m not in run.pictures]
    if undrawn:
        absent.append(f"No pictures of {listing(undrawn)}.")
    return absent


def progress(run: Run) -> str:
    """How far the run has come: "300 of 1000 steps"."""
    record = run.record
    if record.step is None:
        return "no step has been recorded yet"
    return f"{record.step} of {record.max_steps} steps" if record.max_steps else plural(record.step, "step")


def _training(run: Run) -> str:
    record = run.record
    network = f"A network of {quantity(record.parameters)} parameters" if record.parameters else "A network"
    task = f"to repair {record.damage or 'disrupted images'}" + (
        f" (disruption “{record.disruption}”)" if record.disruption else ""
    )
    scans = sum(row.train for row in record.data.rows)
    kinds = sorted({row.modality for row in record.data.rows})
    data = (
        f" on {plural(scans, 'scan')} of {plural(len(kinds), 'modality')} ({', '.join(kinds)})"
        if kinds
        else ""
    )
    length = f", for {progress(run)}" if record.step is not None else ""
    time = f" in {duration(record.seconds)}" if record.seconds is not None else ""
    return f"{network} was trained {task}{data}{length}{time}."


def _result(run: Run, comparisons: Sequence[Comparison]) -> list[str]:
    compared = [c for c in comparisons if not c.untouched]
    if comparisons and not compared:
        return [
            "The disruption does not change the voxels, so the repaired image is not compared with a "
            "disrupted one."
        ]
    if not compared:
        return ["No comparison with the disrupted images yet."]
    steps = sorted({c.step for c in compared})
    when = f"At step {steps[0]}" if len(steps) == 1 else "At the last validation of each modality"
    if steps == [0]:
        when = "Before training (step 0)"
    metrics = list(compared[0].rows[0].values)
    better = listing([_tally(compared, metric, "beats_disrupted") for metric in metrics])
    sentences = [f"{when}, the repaired validation crops are better than the disrupted ones {better}."]
    if all(c.baselines for c in compared):
        beaten = listing([_tally(compared, metric, "beats_baselines") for metric in metrics])
        sentences.append(f"They are better than all baselines {beaten}.")
    return sentences


def _tally(comparisons: Sequence[Comparison], metric: str, test: str) -> str:
    won = [c.modality for c in comparisons if getattr(c, test)(metric)]
    of = plural(len(comparisons), "modality")
    which = f" ({', '.join(won)})" if 0 < len(won) < len(comparisons) else ""
    return f"in {IMAGE_METRICS[metric].title} on {len(won) or 'none'} of {of}{which}"
