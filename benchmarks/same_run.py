"""Are runs of two versions of the code bit-identical? Metrics and weights are compared.

    python benchmarks/same_run.py --before OTHER_CHECKOUT --data STORE --task TASK.json --steps 300

Pre-training with the published settings, with the defaults and as a masked autoencoder, a run that the other
version began and this one resumes, and fine-tuning from each. The exit status is 1 if anything differs.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from dae3d.metrics import read_metrics

HERE = Path(__file__).parents[1]
SIZES = "--embed-dim 12 --heads 1 2 4 8 --window 4 --roi 32 --workers 0 --threads 1 --log-every 1"
PRETRAIN = {
    "published": "--config reference-all --batch-size 4",
    "defaults": "--config small-cpu --batch-size 4",
    "mae": "--config small-cpu --batch-size 4 --disruption mae --reconstruction-loss masked",
}
MEASURED_TIME = "train/samples_per_second"
TUNE = "--max-steps 10 --warmup-steps 2 --val-every 10 --workers 0 --threads 1 --train-cases 4 --log-every 1"


def main() -> None:
    given = _arguments()
    if given.out.exists():
        sys.exit(f"{given.out}: is there already; name a new folder with --out")
    half = given.steps // 2
    saves = f"--max-steps {given.steps} --val-every {half} --save-every {half} --keep 9"
    same = True
    for name, flags in PRETRAIN.items():
        command = f"pretrain {flags} {SIZES} {saves} --warmup-steps {half} --val-crops 1 --data {given.data}"
        runs = [given.out / f"{name}-{version}" for version in ("before", "now", "resumed")]
        _run(given.before, f"{command} --out {runs[0]}")
        _run(HERE, f"{command} --out {runs[1]}")
        shutil.copytree(runs[0], runs[2])
        (runs[2] / f"checkpoints/step-{given.steps:08d}.ckpt").unlink()
        _run(HERE, f"pretrain --resume --out {runs[2]}")
        for run in runs[1:]:
            same &= _same(runs[0], run)
        if given.task:
            tuned = [given.out / f"{name}-tuned-{version}" for version in ("before", "now")]
            for tree, out in zip((given.before, HERE), tuned, strict=True):
                _run(tree, f"finetune --data {given.task} --init {runs[0]} --roi 32 {TUNE} --out {out}")
            same &= _same(*tuned)
    sys.exit(0 if same else 1)


def _run(tree: Path, command: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dae3d.cli", *command.split()], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{tree}: dae3d {command}\n{done.stdout}{done.stderr}")


def _same(before: Path, now: Path) -> bool:
    """Whether everything recorded by both is equal; prints what only one has."""
    rows, others = (
        {(step, name): value for step, name, value in read_metrics(run / "metrics.csv")[0]}
        for run in (before, now)
    )
    compared = [key for key in rows.keys() & others.keys() if key[1] != MEASURED_TIME]
    unlike = sorted(key for key in compared if rows[key] != others[key])
    tensors, theirs = (load_file(run / "weights/last.safetensors") for run in (before, now))
    unlike += sorted(
        ("weights", name)
        for name in tensors.keys() | theirs.keys()
        if name not in tensors or name not in theirs or not torch.equal(tensors[name], theirs[name])
    )
    alone = sorted({name for _, name in rows.keys() ^ others.keys()})
    print(
        f"{now.name}: {len(compared)} figures and {len(tensors)} tensors, {len(unlike)} differ"
        + (f", first {unlike[0]}" if unlike else "")
        + (f"; recorded by one alone: {', '.join(alone)}" if alone else ""),
        flush=True,
    )
    return not unlike


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="checkout of the version to compare with")
    parser.add_argument("--data", type=Path, required=True, help="store to pre-train on")
    parser.add_argument("--task", type=Path, help="list of cases to fine-tune on")
    parser.add_argument("--steps", type=int, default=300, help="of pre-training (default: 300)")
    parser.add_argument("--out", type=Path, default=Path("same-run"), help="folder for the runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
