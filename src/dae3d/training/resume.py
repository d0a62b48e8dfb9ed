"""Chooses the checkpoint to resume from, and checks that this is possible; writes nothing."""

import json
import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch.serialization import get_unsafe_globals_in_checkpoint

from dae3d.errors import Dae3dError, SettingsError
from dae3d.run_folder import signs_of_a_run
from dae3d.settings import resolve
from dae3d.training.callbacks import find_checkpoints
from dae3d.training.module import TrainingModule
from dae3d.training.run_settings import RunSettings

log = logging.getLogger(__name__)

_PARTS = {"global_step", "loops", "state_dict", "optimizer_states"}


def checkpoint_of(settings: RunSettings) -> Path | None:
    """The checkpoint that the run is resumed from, None to start at step 0.

    Raises:
        Dae3dError: if the folder has a run that is not to be resumed, or one that cannot be: its checkpoints
            are gone, damaged or hold more than data, or a setting that must not change differs.
    """
    if not settings.resume:
        _refuse_another_run(settings.out)
        return None
    found = find_checkpoints(settings.out / "checkpoints")
    checkpoint = next((path for path in found if _readable(path)), None)
    if checkpoint is not None:
        _refuse_other_settings(settings)
    elif found:
        raise Dae3dError(f"resume: none of the checkpoints in {found[0].parent} can be read")
    elif _was_saved(settings.out):
        raise Dae3dError(
            f"resume: {settings.out} holds a run whose checkpoints are gone, and a new run would overwrite "
            "the rest; name another folder"
        )
    else:
        _say_beginning(settings.out)
    return checkpoint


def _refuse_another_run(out: Path) -> None:
    there = signs_of_a_run(out) + [path for path in [out / "metrics.csv"] if path.is_file()]
    # Only in the first process: it may have written the new run's settings before others look here.
    if there and (there != [out / "settings.yaml"] or _is_first_process()):
        lost = _was_saved(out) and not find_checkpoints(out / "checkpoints")
        how = "" if lost else "continue it with --resume, or "
        raise Dae3dError(f"out: {out} holds a run ({there[0].relative_to(out)}); {how}name another folder")


@rank_zero_only
def _is_first_process() -> bool:
    return True


def _was_saved(out: Path) -> bool:
    """Whether a run has reached its first checkpoint."""
    record = out / "run.json"
    try:
        step = json.loads(record.read_text())["step"] if record.is_file() else 0
    except (ValueError, KeyError, TypeError):
        step = 0
    return bool(step) or (out / "weights/last.safetensors").is_file()


@rank_zero_only
def _say_beginning(out: Path) -> None:
    log.info("no checkpoint in %s to resume from: starting at step 0", out)


def saved_settings(settings: RunSettings) -> RunSettings | None:
    """The settings of the run in the folder, None if there are none."""
    if not (settings.out / "settings.yaml").is_file():
        return None
    saved = resolve(type(settings), {"out": settings.out, "resume": True})
    assert isinstance(saved, RunSettings)
    return saved


def _refuse_other_settings(settings: RunSettings) -> None:
    saved = saved_settings(settings)
    if saved is None:
        log.warning("%s has no settings.yaml: using the settings given now", settings.out)
        return
    before = saved.kept()
    for name, value in settings.kept().items():
        if before[name] != value:
            old, new = (getattr(s, name) for s in (saved, settings))
            raise SettingsError(
                f"{name}: the run in {settings.out} was started with {old} and cannot continue with "
                f"{new}; keep the old value, or start a new run in another folder"
            )


# Reading checkpoints


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint: tensors, on disk until they are used, and plain data.

    Raises:
        Dae3dError: if it holds anything else; that is never unpickled, because objects can run any code.
        Exception: whatever PyTorch raises for a damaged file.
    """
    try:
        contents: dict[str, Any] = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError:
        with path.open("rb") as file:
            start = file.read(2)
        if start not in (b"PK", b"\x80\x02"):
            raise  # not what `torch.save` writes: damaged
        objects = ", ".join(get_unsafe_globals_in_checkpoint(path)) if start == b"PK" else ""
        raise Dae3dError(
            f"{path}: not loaded, because it holds more than tensors and plain data "
            f"({objects or 'a pickle'}), which could run any code; dae3d writes no such checkpoint: remove "
            "it to resume from the one before"
        ) from None
    if not (isinstance(contents, dict) and contents.keys() >= _PARTS):
        raise ValueError("not a checkpoint of a run")
    return contents


def _readable(checkpoint: Path) -> bool:
    try:
        read_checkpoint(checkpoint)
    except Dae3dError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        log.warning("%s cannot be read (%s); using the one before", checkpoint, reason)
        return False
    return True


def refuse_other_network(module: TrainingModule, checkpoint: Path) -> None:
    """Raise Dae3dError if the checkpoint's parameters are not the module's, or others of them are trained.

    Settings are compared before; this catches other causes, such as the number of classes.
    """
    contents = read_checkpoint(checkpoint)
    data = module.run_settings.data
    reason = _unlike(module, contents)
    if reason:
        raise Dae3dError(
            f"{data}: the run cannot be resumed from {checkpoint}: {reason}; give the data and settings that "
            "it was started with, or start a new run in another folder"
        )


def _unlike(module: TrainingModule, contents: dict[str, Any]) -> str | None:
    there, here = (
        {name: tuple(tensor.shape) for name, tensor in state.items()}
        for state in (contents["state_dict"], module.state_dict())
    )
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            sizes = (shapes.get(name, "missing") for shapes in (there, here))
            return "tensor {} is {} in the checkpoint and {} in this network".format(name, *sizes)
    [optimizer] = contents["optimizer_states"]
    counts, ours = (
        [len(group["params"]) for group in groups]
        for groups in (optimizer["param_groups"], module.parameter_groups())
    )
    if counts != ours:
        return f"the checkpoint has parameter groups of {counts}, this network of {ours}"
    by_name = any(
        isinstance(parameter, str) for group in optimizer["param_groups"] for parameter in group["params"]
    )
    if by_name and module.run_settings.strategy != "fsdp":
        return "it was trained with strategy fsdp"
    return None
