"""Recognise the folder of a training run, before writing to it."""

from pathlib import Path

from dae3d.errors import Dae3dError


def signs_of_a_run(folder: Path) -> list[Path]:
    """Files that only a run writes, the clearest signs first; some may have been deleted."""
    found = [
        *sorted((folder / "checkpoints").glob("step-*.ckpt"), reverse=True),
        *sorted((folder / "weights").glob("*.safetensors")),
    ]
    return found + [path for name in ("run.json", "settings.yaml") if (path := folder / name).is_file()]


def refuse_a_runs_folder(folder: Path, instead: str) -> None:
    """Refuse to write results into a run folder, whose `metrics.csv` they would replace.

    Args:
        folder: the output folder.
        instead: the name of a subfolder to suggest.

    Raises:
        Dae3dError: if it is the folder of a run.
    """
    if signs_of_a_run(folder):
        raise Dae3dError(
            f"out: {folder} is the folder of a run, whose metrics.csv would be replaced; "
            f"choose another, such as {folder / instead}"
        )
