"""The report page of a fine-tuning run."""

from dae3d.reporting import curves
from dae3d.reporting.curves import Chart, chart
from dae3d.reporting.html import fill
from dae3d.reporting.run_folder import Run
from dae3d.reporting.run_page import both, facts, optimisation, steps, without_gaps
from dae3d.reporting.run_text import legs, progress
from dae3d.words import duration, listing, plural, quantity, some

_DICE = "val/dice"
_NAMED = 5  # classes in a sentence
_CHARTS = 12  # classes with a chart of their own


def render(run: Run) -> str:
    """The page as HTML."""
    dice = run.metrics.get(_DICE)
    at_steps = dict(zip(dice.steps.tolist(), dice.values.tolist(), strict=True)) if dice else {}
    measured = {step: f"mean Dice over all cases {value:.3f}" for step, value in at_steps.items()}
    return fill(
        "finetuning.html",
        {},
        kind="fine-tuning",
        name=run.folder.resolve().name,
        run=run,
        record=run.record,
        summary=[training(run), *legs(run), *result(run)],
        missing=missing(run),
        facts=facts(run),
        chart_groups=chart_groups(run),
        geometry=curves,
        pictures_heading="Segmentations",
        pictures_explained="The first validation case, in the slices with most of the reference.",
        picture_columns="reference, prediction and errors",
        pictures={name: steps(shown, measured) for name, shown in run.pictures.items()},
        taken_from_training=[],
        classes=classes(run),
        validations=[(step, f"{value:.3f}", by_class(run, step)) for step, value in at_steps.items()],
        best=best(run),
    )


def classes(run: Run) -> list[str]:
    """Names of the classes in the validation metrics."""
    return [name.removeprefix(f"{_DICE}/") for name in run.metrics if name.startswith(f"{_DICE}/")]


def by_class(run: Run, step: int) -> list[str]:
    """The mean Dice of every class at a step."""
    values = (run.metrics[f"{_DICE}/{name}"].at(step) for name in classes(run))
    return ["" if value is None else f"{value:.3f}" for value in values]


def lowest(run: Run, count: int) -> list[str]:
    """The `count` classes with the lowest Dice at the best step, lowest first; all in order if not more."""
    names, step = classes(run), best(run)
    if len(names) <= count or step is None:
        return names[:count]
    dice = {name: run.metrics[f"{_DICE}/{name}"].at(step) for name in names}
    known = {name: value for name, value in dice.items() if value is not None}
    return sorted(known, key=known.__getitem__)[:count]


def best(run: Run) -> int | None:
    """The step with the highest mean Dice."""
    dice = run.metrics.get(_DICE)
    return None if dice is None else int(dice.steps[dice.values.argmax()])


def training(run: Run) -> str:
    """A sentence about the network, the initial weights, the data and the duration."""
    record = run.record
    network = f"A network of {quantity(record.parameters)} parameters" if record.parameters else "A network"
    begun = f"initialised with the weights of {record.init}" if record.init else "initialised at random"
    names = classes(run)
    many = f"{len(names)} classes: " if len(names) > _NAMED else ""
    task = f" was trained to segment {many}{some(names, _NAMED)}" if names else " was trained"
    rows = record.data.rows
    cases = f" on {plural(sum(row.train for row in rows), 'case')} of {rows[0].modality}" if rows else ""
    length = f", for {progress(run)}" if record.step is not None else ""
    time = f" in {duration(record.seconds)}" if record.seconds is not None else ""
    return f"{network}, {begun},{task}{cases}{length}{time}."


def result(run: Run) -> list[str]:
    """A sentence about the best validation."""
    step, dice = best(run), run.metrics.get(_DICE)
    if step is None or dice is None:
        return ["No validation results yet."]
    values = dict(zip(classes(run), by_class(run, step), strict=True))
    named = lowest(run, _NAMED)
    each = listing([f"{name} {values[name]}".rstrip() for name in named])
    if len(named) < len(values):
        each = f"lowest of {len(values)} classes: {each}"
    held_out = plural(sum(row.val for row in run.record.data.rows), "validation case")
    return [f"Best validation, at step {step}: mean Dice {dice.at(step):.3f} over {held_out} ({each})."]


def missing(run: Run) -> list[str]:
    """Sentences about what a complete run would have and this one lacks."""
    absent = []
    if not run.record.finished:
        absent.append(f"The run is not finished: {progress(run)}.")
    if run.settings is None:
        absent.append("settings.yaml is missing.")
    if not any(name.startswith("train/") for name in run.metrics):
        absent.append("metrics.csv has no training rows.")
    if run.unreadable_rows:
        absent.append(f"{plural(run.unreadable_rows, 'row')} of metrics.csv could not be read.")
    return absent


def chart_groups(run: Run) -> dict[str, list[Chart]]:
    """All curves by heading; of many classes, only those with the lowest Dice."""
    names, count = lowest(run, _CHARTS), len(classes(run))
    which = f": the mean, and the {len(names)} lowest of {count} classes" if len(names) < count else ""
    dice = {name: run.metrics.get(f"{_DICE}/{name}") for name in names}
    return without_gaps(
        {
            f"Dice of the validation cases{which}": [
                chart("Mean", {"mean": run.metrics.get(_DICE)}),
                *(chart(name, {name: series}) for name, series in dice.items()),
            ],
            "Losses": [
                both(run, "Loss", "loss"),
                both(run, "Dice loss", "dice_loss"),
                both(run, "Cross-entropy", "cross_entropy"),
            ],
            "Optimisation": optimisation(run),
        }
    )
