"""The command `check`: what each level of the encoder has learned in pre-training."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from dae3d.cores import THREADS
from dae3d.errors import Dae3dError
from dae3d.files import write_text
from dae3d.inference.device import pick_device
from dae3d.models.loading import load
from dae3d.models.network import RepairNetwork
from dae3d.probing.metrics import Check
from dae3d.probing.probe import Probe, make_probe
from dae3d.probing.table import show
from dae3d.probing.verdict import verdict
from dae3d.probing.voxel_probe import CASES, TEST_CASES, TRAIN_CASES
from dae3d.reporting.run_folder import load_run
from dae3d.scans.modality import Label
from dae3d.settings import Positional, Settings, command, resolve
from dae3d.training.data import training_data
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.version import __version__

log = logging.getLogger(__name__)

CHECK = "check.json"
RANDOM = 2  # number of networks with random weights


class CheckSettings(Settings):
    """Settings of `check`."""

    run: Annotated[Path, Positional()] = Field(description="run folder of `pretrain`")
    data: Path | None = Field(
        None, description="list of labelled cases for the voxel probe, as for `dae3d finetune`"
    )
    store: Path | None = Field(
        None, description="store of the run's scans (default: the path recorded in the run)"
    )
    weights: Literal["best", "last"] = Field("best", description="weights to check")
    cases: Path | None = Field(
        None,
        description="folder for the prepared cases, which may be shared with other checks and `finetune` "
        "(default: RUN/cases)",
    )
    modality: list[Label] | None = Field(
        None, description="label of each channel of the cases (default: as in the list)"
    )
    fold: int | None = Field(None, ge=0, description="fold for testing the voxel probe")
    train_cases: int = Field(
        TRAIN_CASES, ge=1, description="cases for fitting the probe, drawn by --seed as in `finetune`"
    )
    test_cases: int = Field(TEST_CASES, ge=1, description="maximum number of cases for testing it")
    seed: int = Field(0, ge=0, lt=2**31, description="for drawing these cases and the random weights")
    prepare_workers: int | None = Field(
        None, ge=1, description="processes for preparing cases (default: one per processor core)"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int | None = Field(None, ge=1, description=THREADS)


@command
def check(settings: CheckSettings) -> Check:
    """Measure what each level of the encoder has learned, on fixed crops and on labelled cases, if given.

    Prints a table and a verdict, and writes both to RUN/check.json, which `dae3d report` shows.

    Returns:
        The contents of `check.json`.

    Raises:
        Dae3dError: if the folder is not a pre-training run or lacks the weights, its store is gone, or the
            cases cannot be used.
    """
    start = time.monotonic()
    run = run_settings(settings)
    weights = settings.run / "weights" / f"{settings.weights}.safetensors"
    if not weights.is_file():
        raise Dae3dError(
            f"weights: {settings.run} has no weights/{weights.name}; use --weights last or best, or wait for "
            "the first save of the run"
        )
    device = pick_device(settings.device, settings.threads)
    network = load(weights, task="pretrain", show=False)
    if not isinstance(network, RepairNetwork):
        raise Dae3dError(f"{weights}: not a pre-training network")
    probe = _probe(settings, run)
    figures = probe.measure(_placed(network, device), device)
    random = _with_random_weights(probe, network, settings.seed, device)
    sound, words = verdict(figures, random, run.contrastive_weight)
    info: Any = network.info
    found = Check(
        dae3d=__version__,
        weights=settings.weights,
        step=info.get("step"),
        sound=sound,
        verdict=words,
        figures=figures,
        random=random,
        labelled=probe.voxels.about if probe.voxels else None,
        seconds=round(time.monotonic() - start, 1),
        settings=settings.model_dump(mode="json"),
    )
    write_text(settings.run / CHECK, found.model_dump_json(indent=1) + "\n")
    show(found)
    log.info("%.0f s; all results: %s", found.seconds, settings.run / CHECK)
    return found


def run_settings(settings: CheckSettings) -> PretrainSettings:
    """The settings of the run, with the present path of its store.

    Raises:
        Dae3dError: if it is not a run of `pretrain`, or its store does not exist.
    """
    kind = load_run(settings.run).record.kind
    if kind != "pretrain":
        raise Dae3dError(f"run: {settings.run} is a run of `{kind}`; `check` is for runs of `pretrain`")
    if not (settings.run / "settings.yaml").is_file():
        raise Dae3dError(
            f"run: {settings.run} has no settings.yaml with the settings of its training; give the "
            "complete run folder"
        )
    given = {} if settings.store is None else {"data": settings.store}
    run = resolve(PretrainSettings, {"out": settings.run, "resume": True, **given})
    assert isinstance(run, PretrainSettings)
    if not run.data.is_dir():
        raise Dae3dError(f"store: {run.data} does not exist; if it was moved, give its path with --store")
    return run


def _probe(settings: CheckSettings, run: PretrainSettings) -> Probe:
    data = training_data(run, world_size=1)
    return make_probe(
        run,
        data,
        settings.data,
        store=settings.cases or settings.run / CASES,
        seed=settings.seed,
        train_cases=settings.train_cases,
        test_cases=settings.test_cases,
        modality=settings.modality,
        fold=settings.fold,
        workers=settings.prepare_workers,
    )


def _placed(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    # 3^3 convolutions are up to twice as fast with the channels innermost.
    move: Callable[..., torch.nn.Module] = network.to
    return move(device, memory_format=torch.channels_last_3d)


def _with_random_weights(
    probe: Probe, network: RepairNetwork, seed: int, device: torch.device
) -> dict[str, float]:
    """The voxel probe of the same network with random weights: the mean of `RANDOM` draws.

    The first draw equals the initial weights of a run with this seed.
    """
    found: dict[str, list[float]] = {}
    for draw in range(RANDOM if probe.voxels else 0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + draw)
            drawn = RepairNetwork(network.architecture)
        for name, dice in probe.voxel_dice(_placed(drawn, device), device).items():
            found.setdefault(name, []).append(dice)
    return {name: sum(values) / len(values) for name, values in found.items()}
