"""The plan of a pre-training run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dae3d.errors import Dae3dError
from dae3d.planning.choice import Choice, Chooser, Speed, Wish, forecast, measured, steps_in
from dae3d.planning.comments import Line, written
from dae3d.planning.fingerprint import Fingerprint, advice
from dae3d.planning.network import PlannedNetwork
from dae3d.planning.size import Accelerator
from dae3d.planning.trial import PretrainTrial, measured_pretraining
from dae3d.settings import read_config, resolve
from dae3d.store.boxes import Triple, by_axis
from dae3d.store.intensity import SCALINGS, ScalingRules, parse_scaling, scaling
from dae3d.store.store import Store
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.words import millimetres

PREFERRED = (4, 2)  # crops in a batch: the contrastive loss needs two pairs
_MOST: dict[Accelerator, int] = {"gpu": 16, "cpu": 4}  # crops in a batch; 16 as published
_RATES = ("lr", "min_lr", "warmup_lr")
_SMALL = "small-cpu"  # the config whose rates a small network has
_OFTEN = 10  # validations and checkpoints in a short run


@dataclass(frozen=True)
class PretrainPlan:
    """What was found and chosen, and the YAML that says it.

    Attributes:
        settings: of the run.
        choice: of crops.
        found: sentences on the scans.
        forecast: sentences on the run.
        text: the YAML.
    """

    settings: PretrainSettings
    choice: Choice
    found: list[str]
    forecast: list[str]
    text: str


def plan_pretraining(
    store: Store,
    images: Fingerprint,
    network: PlannedNetwork,
    wish: Wish,
    hours: float | None,
    intensity: ScalingRules,
    out: Path,
) -> PretrainPlan:
    """Plan a run.

    Args:
        store: to train on.
        images: its training scans.
        network: of the run.
        wish: of the user.
        hours: that the run may take; None: the default number of steps.
        intensity: scaling rules of the user, by modality.
        out: path of the plan.

    Raises:
        Dae3dError: if nothing fits into the memory, or the hours cannot be kept.
    """
    base = {
        "data": store.path.absolute(),
        "out": (out.parent / f"{out.stem}-run").absolute(),
        "accelerator": wish.device,
    }
    trials: dict[tuple[Any, ...], PretrainTrial] = {}

    def trial(roi: Triple) -> PretrainTrial:
        sizes = network.sizes(roi)
        key = tuple(map(str, sizes.values()))
        if key not in trials:
            trials[key] = PretrainTrial(_settings({**base, **sizes, "roi": roi, "batch_size": 2}))
        return trials[key]

    if wish.batch_size is not None and wish.batch_size % 2:
        raise Dae3dError("batch_size: must be even, because two crops of a scan are compared")
    multiples, most = network.multiples, _MOST[wish.device]
    choice = Chooser(trial, images, multiples, wish, PREFERRED, most).choose()
    fixed = {**base, **network.sizes(choice.roi), "roi": choice.roi, "batch_size": choice.crops}
    chosen = PretrainTrial(_settings(fixed))
    speed = measured(chosen, choice, wish, measured_pretraining)
    steps = chosen.settings.max_steps if hours is None else steps_in(hours, speed)
    assert isinstance(steps, int)
    lines = [
        *_data(store, base["out"], wish),
        *_crops(choice, images, network, wish),
        *_time(steps, hours, speed, chosen.settings.log_every),
        *_intensity(images, intensity),
    ]
    if network.size == "small":
        lines += [Line(name, value, why) for name, value, why in _small_rates()]
    settings = _settings({line.name: line.value for line in lines if line.name})
    found = [*images.described(), *_findings(store, images, choice.roi)]
    expected = list(forecast(chosen, choice, wish, speed, steps))
    use = f"dae3d pretrain --config {out}"
    text = written("pre-training", use, ["Found in the store:", *found, "Forecast:", *expected], lines)
    return PretrainPlan(settings, choice, found, expected, text)


def _settings(values: dict[str, Any]) -> PretrainSettings:
    settings = resolve(PretrainSettings, dict(values))
    assert isinstance(settings, PretrainSettings)
    return settings


def padded(images: Fingerprint, roi: Triple) -> str:
    """How many scans are smaller than a crop."""
    small = images.smaller_than(roi)
    return f"{small} of {len(images.shapes)} scans are smaller than a crop along an axis, and are padded"


def _findings(store: Store, images: Fingerprint, roi: Triple) -> Iterator[str]:
    yield padded(images, roi)
    preparation = store.scans.header.preparation
    better = advice(images, as_acquired=preparation.spacing is None)
    if better:
        reason, _, flags = better.rpartition(". ")
        yield (
            f"{reason}. Resampling would help: dae3d prepare MANIFEST --out ANOTHER_STORE {flags}, then plan "
            "again"
        )


def _data(store: Store, out: Any, wish: Wish) -> list[Line]:
    where = "a GPU" if wish.device == "gpu" else "the CPU"
    return [
        Line("data", store.path.absolute(), "The store, and the run folder; --out names another."),
        Line("out", out),
        Line("accelerator", wish.device, f"The memory is that of {where}."),
    ]


def _crops(choice: Choice, images: Fingerprint, network: PlannedNetwork, wish: Wish) -> list[Line]:
    lines = network.lines(choice.roi)
    roi = (
        f"Sides in proportion to 1 / voxel size ({millimetres(images.spacing)}), at most the median "
        f"foreground ({by_axis(round(side) for side in images.box)} voxels) rounded up to multiples of "
        f"{by_axis(network.multiples(choice.roi))}, and smaller until {_crops_fit(choice, wish)}."
    )
    if wish.batch_size is not None:
        crops = "As given."
    elif choice.crops >= _MOST[wish.device]:
        crops = "As many as in the published run." if wish.device == "gpu" else "More only take longer."
    else:
        crops = "As many as fit, an even number because crops are compared in pairs."
    return [
        *lines,
        Line("roi", list(choice.roi), roi),
        Line("batch_size", choice.crops, crops),
    ]


def _crops_fit(choice: Choice, wish: Wish) -> str:
    least = wish.batch_size or min(choice.crops, PREFERRED[0])
    return f"{least} of them fit into the memory"


def _time(steps: int, hours: float | None, speed: Speed, log_every: int) -> list[Line]:
    if hours is None:
        return [Line("max_steps", steps, "The default. --hours 24 gives what fits into a day.")]
    fits = f"What fits into {hours:g} h at {speed.seconds:.3g} s a step."
    lines = [Line("max_steps", steps, fits)]
    default = PretrainSettings.model_fields["val_every"].default
    if steps < _OFTEN * default:
        every = min(default, max(1, steps // _OFTEN // log_every) * log_every)
        lines += [Line("val_every", every, "About ten times in the run."), Line("save_every", every)]
    return lines


def _intensity(images: Fingerprint, rules: ScalingRules) -> Iterator[Line]:
    labels = sorted(set(images.modalities))
    unknown = sorted(set(rules) - set(labels))
    if unknown:
        raise Dae3dError(f"intensity: the store has no {', '.join(unknown)}; it has {', '.join(labels)}")
    other = {name: rule for name, rule in rules.items() if parse_scaling(rule) != scaling(name)}
    if other:
        yield Line("intensity", other, "As given, where it differs from the default of the modality.")
    else:
        zscored = ", ".join(name for name in labels if name not in SCALINGS) or "none"
        yield Line("", None, f"Intensities by the defaults of each modality; z-scores for: {zscored}.")


def _small_rates() -> Sequence[tuple[str, Any, str]]:
    small = read_config(_SMALL, "pretrain")
    why = f"A small network needs higher rates; as in {_SMALL}."
    return [(name, small[name], why if name == "lr" else "") for name in _RATES]
