"""The command `plan`: settings of a run from its data and the memory of the device, before it begins."""

import logging
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dae3d.files import refuse_other_file, write_text
from dae3d.models.architecture import Size
from dae3d.models.backbones import CHOICE, FIRST, known_backbone
from dae3d.planning.choice import Wish
from dae3d.planning.comments import MARK
from dae3d.planning.finetune_plan import plan_finetuning
from dae3d.planning.fingerprint import of_store
from dae3d.planning.network import PlannedNetwork
from dae3d.planning.pretrain_plan import plan_pretraining
from dae3d.planning.size import accelerator, device_memory, parse_bytes
from dae3d.settings import Positional, Settings, command
from dae3d.store.intensity import ScalingRules
from dae3d.store.store import Store

log = logging.getLogger(__name__)


def _size(text: str) -> str:
    parse_bytes(text)
    return text


class PlanSettings(Settings):
    """Settings of `plan`."""

    store: Annotated[Path, Positional()] = Field(description="store made by `dae3d prepare`")
    out: Path = Field(description="YAML file to write, for `dae3d pretrain --config`")
    for_: Path | None = Field(
        None,
        description="list of labelled cases that the network will be fine-tuned on; writes OUT-finetune.yaml "
        "too, for `dae3d finetune --config`",
    )
    memory: Annotated[str, AfterValidator(_size)] | None = Field(
        None,
        description="of the device, such as 24GB or 80GiB (default: what is free on the GPU, else on this "
        "machine)",
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="where the run will be: auto is the GPU if this machine has one"
    )
    backbone: Annotated[str, AfterValidator(known_backbone)] | None = Field(
        None, description=f"network: {CHOICE} (default: {FIRST})"
    )
    size: Size | None = Field(None, description="of the network (default: small on a CPU, else standard)")
    hours: float | None = Field(
        None, gt=0, description="that pre-training may take (default: the default number of steps)"
    )
    batch_size: int | None = Field(
        None, ge=2, description="crops per device and step (default: as many as fit, 4 if possible)"
    )
    intensity: ScalingRules = Field(
        {}, description="scaling of a modality, if not the default: ct=window:-175:250"
    )
    steps: int = Field(5, ge=0, description="training steps to measure; 0: none")


@command
def plan(settings: PlanSettings) -> Path:
    """Plan a pre-training run from the index of a store, before it begins.

    Writes a YAML file with the shape and number of crops, the network and the number of steps, and in
    comments why, what the scans are like, and what the run will take.

    Returns:
        The file for `pretrain`.

    Raises:
        Dae3dError: if the store cannot be read, nothing fits into the memory, or the file exists and is not a
            plan.
    """
    second = settings.out.with_name(f"{settings.out.stem}-finetune{settings.out.suffix}")
    for path in (settings.out, *([second] if settings.for_ else [])):
        refuse_other_file(path, "plan", MARK)
    device = accelerator(settings.accelerator)
    memory = device_memory(device) if settings.memory is None else parse_bytes(settings.memory)
    wish = Wish(device, memory, settings.batch_size, settings.steps)
    store = Store(settings.store)
    images = of_store(store)
    network = PlannedNetwork(settings.backbone, settings.size, device, images.spacing)
    made = plan_pretraining(store, images, network, wish, settings.hours, settings.intensity, settings.out)
    for sentence in (*made.found, *made.forecast):
        log.info("%s", sentence)
    more = None if settings.for_ is None else plan_finetuning(settings.for_, made, images, wish, second)
    write_text(settings.out, made.text)
    if more is not None:
        write_text(second, more)
        log.info("plan of fine-tuning: %s; train with `dae3d finetune --config %s`", second, second)
    log.info("plan: %s; train with `dae3d pretrain --config %s`", settings.out, settings.out)
    return settings.out
