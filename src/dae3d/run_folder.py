"""What tells that a folder holds a training run, for whatever is about to write there."""

from pathlib import Path

from dae3d.errors import Dae3dError


def signs_of_a_run(folder: Path) -> list[Path]:
    """Files that a run alone leaves, even one that was tidied up in part; the most telling ones first."""
    found = [
        *sorted((folder / "checkpoints").glob("step-*.ckpt"), reverse=True),
        *sorted((folder / "weights").glob("*.safetensors")),
    ]
    return found + [path for name in ("run.json", "settings.yaml") if (path := folder / name).is_file()]


def refuse_a_runs_folder(folder: Path, instead: str) -> None:
    """Refuse to write results there, whose `metrics.csv` would replace the run's.

    Args:
        folder: to be written to.
        instead: the name of a folder in it that will do.

    Raises:
        Dae3dError: where it is the folder of a run.
    """
    if signs_of_a_run(folder):
        raise Dae3dError(
            f"out: {folder} is the folder of a run, whose metrics.csv would be replaced; "
            f"take another, such as {folder / instead}"
        )
