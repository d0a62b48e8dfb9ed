"""Calls as users write them, and some that a type checker refuses: for mypy, never run."""

from pathlib import Path

import dae3d


def right() -> None:
    """What mypy passes."""
    dae3d.index(folders=["scans", Path("more")], modality="ct", out="manifest.jsonl")
    dae3d.prepare(manifest="manifest.jsonl", out=Path("store"), spacing=(1.5, 1.5, 2.0))
    run: Path = dae3d.pretrain(
        config="small-cpu", data="store", out="run", max_steps="20 epochs", heads=(1, 2, 4, 8)
    )
    dae3d.pretrain(out=run, resume=True)
    dae3d.predict(weights=[run], scans=["a.nii.gz", Path("b.nii.gz"), ["t1.nii.gz", "t2.nii.gz"]], out="x")
    dae3d.load(run, task="encoder").encoder.eval()
    dae3d.load(run).eval()


def wrong() -> None:
    """What mypy refuses: each line's comment is unused, and an error, where it does not."""
    dae3d.pretrain(dataa="store", out="run")  # type: ignore[call-arg]
    dae3d.pretrain(data="store", out="run", disruption=3)  # type: ignore[arg-type]
    dae3d.pretrain(data="store", out="run", precision="bf16")  # type: ignore[arg-type]
    dae3d.prepare(out="store")  # type: ignore[call-arg]
    dae3d.load("run", task="segment")  # type: ignore[call-overload]
    dae3d.train(data="store")  # type: ignore[attr-defined]
