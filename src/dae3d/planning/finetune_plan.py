"""The plan of fine-tuning the network of another plan on a task."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dae3d.errors import Dae3dError
from dae3d.models.backbones import NetworkSettings
from dae3d.planning.choice import Choice, Chooser, Speed, Wish, forecast, measured
from dae3d.planning.comments import Line, written
from dae3d.planning.fingerprint import Fingerprint, advice, of_task
from dae3d.planning.pretrain_plan import PretrainPlan, padded
from dae3d.planning.trial import FinetuneTrial, measured_finetuning
from dae3d.scans.task import Task, read_task
from dae3d.settings import resolve
from dae3d.store.boxes import by_axis
from dae3d.training.beginning import SAME_SIZE
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.words import millimetres

_PREFERRED, _MOST = (2,), 4  # crops in a batch: nnU-Net's least, and the default


def plan_finetuning(path: Path, before: PretrainPlan, images: Fingerprint, wish: Wish, out: Path) -> str:
    """Plan a run on a task, with the network and the voxels of the pre-training.

    Args:
        path: list of labelled cases.
        before: the plan of pre-training.
        images: of the store.
        wish: of the user; its batch size is that of pre-training.
        out: path of the plan.

    Returns:
        The YAML.

    Raises:
        Dae3dError: if the list or an image cannot be read, or nothing fits into the memory.
    """
    task = read_task(path)
    cases = of_task(task)
    lines = [*_data(path, before), *_spacing(cases, images), *_network(before)]
    base: dict[str, Any] = {line.name: line.value for line in lines if line.name}
    if "spacing" in base:
        cases = cases.resampled(base["spacing"])
    base["accelerator"] = wish.device
    multiple = before.settings.architecture().multiple
    # Sizes of the network do not depend on the crops of this run.
    trial = FinetuneTrial(_settings({**base, "roi": before.choice.roi}), *_ends(task))
    wish = Wish(wish.device, wish.memory, None, wish.steps)
    choice = Chooser(lambda roi: trial, cases, lambda roi: multiple, wish, _PREFERRED, _MOST).choose()
    chosen = FinetuneTrial(
        _settings({**base, "roi": choice.roi, "batch_size": choice.crops}), trial.channels, trial.classes
    )
    about = {"channels": trial.channels, "classes": trial.classes}
    speed = measured(chosen, choice, wish, measured_finetuning, **about)
    lines += _crops(choice, cases, multiple, wish)
    _settings({line.name: line.value for line in lines if line.name})
    found = ["Found in the headers of the cases:", *cases.described(), *_findings(task, cases, choice)]
    return written(
        "fine-tuning",
        f"dae3d finetune --config {out}",
        [*found, "Forecast:", *_forecast(chosen, choice, wish, speed)],
        lines,
    )


def _settings(values: dict[str, Any]) -> FinetuneSettings:
    settings = resolve(FinetuneSettings, dict(values))
    assert isinstance(settings, FinetuneSettings)
    return settings


def _ends(task: Task) -> tuple[int, int]:
    return len(task.modalities), len(task.labels)


def _data(path: Path, before: PretrainPlan) -> list[Line]:
    run = before.settings.out
    return [
        Line("data", str(path.absolute()), "The task, and the run folder; --out names another."),
        Line("out", str(run.with_name(f"{run.name}-finetuned"))),
        Line("init", str(run), "The run of the other plan; --init none begins with random weights."),
    ]


def _spacing(cases: Fingerprint, images: Fingerprint) -> Iterator[Line]:
    factors = [max(a / b, b / a) for a, b in zip(cases.spacing, images.spacing, strict=True)]
    if max(factors) > SAME_SIZE:
        why = (
            f"The median voxel size of pre-training; that of the cases is {millimetres(cases.spacing)}, so "
            "that structures would appear larger or smaller than in pre-training."
        )
        yield Line("spacing", list(images.spacing), why)


def _network(before: PretrainPlan) -> list[Line]:
    names = ["backbone", *NetworkSettings.without_others(before.settings.sizes(), set())]
    values = before.settings.model_dump(mode="json", include=set(names), exclude_none=True)
    why = iter(["The network of the other plan."])
    return [Line(name, values[name], next(why, "")) for name in dict.fromkeys(names) if name in values]


def _crops(choice: Choice, cases: Fingerprint, multiple: Any, wish: Wish) -> list[Line]:
    roi = (
        f"Sides in proportion to 1 / voxel size ({millimetres(cases.spacing)}), at most the median shape "
        f"({by_axis(round(side) for side in cases.box)}) rounded up to multiples of {by_axis(multiple)}, and "
        f"smaller until {_PREFERRED[0]} of them fit into the memory."
    )
    return [
        Line("roi", list(choice.roi), roi),
        Line("batch_size", choice.crops, f"As many as fit, at most {_MOST}."),
        Line("accelerator", wish.device, "The memory is that of this device."),
        Line(
            "max_steps",
            FinetuneSettings.model_fields["max_steps"].default,
            "The default; the forecast above says how long it takes.",
        ),
    ]


def _findings(task: Task, cases: Fingerprint, choice: Choice) -> Iterator[str]:
    yield padded(cases, choice.roi)
    yield f"{_ends(task)[0]} channels, {_ends(task)[1]} classes with the background"
    try:
        task.sides()
    except Dae3dError as error:
        yield f"to be given: {error}"
    better = advice(cases, as_acquired=True)
    if better:
        yield f"{better} resamples the cases, if it is set below"


def _forecast(trial: FinetuneTrial, choice: Choice, wish: Wish, speed: Speed) -> Iterator[str]:
    steps = trial.settings.max_steps
    assert isinstance(steps, int)
    yield from forecast(trial, choice, wish, speed, steps)
