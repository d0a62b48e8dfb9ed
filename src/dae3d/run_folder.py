"""What tells that a folder holds a training run, for whatever is about to write there."""

from pathlib import Path

from dae3d.errors import Dae3dError


def signs_of_a_run(folder: Path) -> list[Path]:
    """Files that a run alone leaves, of a run that may have been tidied up in part; the most telling first."""
    found = [
        *sorted((folder / "checkpoints").glob("step-*.ckpt"), reverse=True),
        *sorted((folder / "weights").glob("*.safetensors")),
    ]
    return found + [path for name in ("run.json", "settings.yaml") if (path := folder / name).is_file()]


def refuse_a_runs_folder(folder: Path, instead: str) -> None:
    """Raise Dae3dError where results with a `metrics.csv` would replace a run's; `instead` is a folder in it."""
    signs = signs_of_a_run(folder)
    if signs:
        raise Dae3dError(
            f"out: {folder} is the folder of a run ({signs[0].relative_to(folder)}), whose metrics.csv would "
            f"be replaced; take another, such as {folder / instead}"
        )
