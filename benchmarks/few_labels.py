"""Does pre-training help? Fine-tuning from few labels, several initial weights, the same cases and crops.

    python benchmarks/few_labels.py --data TASK.json --out DIR --jobs 2 \
        --arm scratch --arm mae=RUN:encoder --arm new=RUN:encoder --seeds 10-17 --cases 4 --steps 300

An arm is a name, followed by the run or file of its initial weights, the half to transfer, and a learning
rate: NAME[=WEIGHTS[:HALF[:RATE]]], with "scratch:RATE" for random weights. A seed draws the labelled cases,
the crops and the random weights, so that arms are compared in pairs. The list's validation cases are the test
set: they are segmented once, with the last weights, and select nothing. Run again, it continues. Each cell is
one `dae3d finetune`, whose command is in its folder.
"""

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

RECIPE = (
    "--config hippocampus --roi 32 --batch-size 4 --crops-per-case 4 --val-overlap 0.25 "
    "--precision bf16-mixed --workers 0 --threads 1"
)
SIZES = "--embed-dim 12 --heads 1 2 4 8 --window 4"


@dataclass(frozen=True)
class Arm:
    """Initial weights."""

    name: str
    weights: str
    half: str
    rate: float

    @classmethod
    def of(cls, text: str, rate: float) -> "Arm":
        name, _, rest = text.partition("=")
        if not rest:
            name, _, own = name.partition(":")
            return cls(name, "", "", float(own or rate))
        weights, half, own = [*rest.split(":"), "", ""][:3]
        return cls(name, weights, half or "encoder", float(own or rate))

    def flags(self) -> str:
        return f"--init {self.weights} --transfer {self.half}" if self.weights else SIZES


def main() -> None:
    given = _arguments()
    arms = [Arm.of(text, given.lr) for text in given.arm]
    cells = [
        (cases, steps, seed, arm)
        for cases in given.cases
        for steps in given.steps
        for seed in given.seeds
        for arm in arms
    ]
    with ThreadPoolExecutor(given.jobs) as pool:
        scores = list(pool.map(lambda cell: _score(given, *cell), cells))
    found = {
        (cases, steps, arm.name, seed): score
        for (cases, steps, seed, arm), score in zip(cells, scores, strict=True)
    }
    for cases in given.cases:
        for steps in given.steps:
            _table(arms, given.seeds, cases, steps, found)


def _score(given: argparse.Namespace, cases: int, steps: int, seed: int, arm: Arm) -> float:
    """Mean Dice over the test cases of one fine-tuning, which is run unless it is there already."""
    out = given.out / f"cases{cases}-steps{steps}" / f"{arm.name}-seed{seed}"
    result = out / "dice.json"
    if not result.is_file():
        command = (
            f"{sys.executable} -m dae3d.cli finetune {RECIPE} --data {given.data} "
            f"--store {given.out / 'cases'} "
            f"--out {out} {arm.flags()} --train-cases {cases} --seed {seed} "
            f"--max-steps {steps} "
            f"--warmup-steps {max(10, steps // 10)} --lr {arm.rate:g} --val-every {steps} "
            f"--save-every {steps} --resume"
        )
        out.mkdir(parents=True, exist_ok=True)
        (out / "command.txt").write_text(command + "\n")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with (out / "screen.txt").open("w") as screen:
            subprocess.run(
                shlex.split(command), check=True, env=environment, stdout=screen, stderr=subprocess.STDOUT
            )
        result.write_text(json.dumps({"dice": _last(out / "metrics.csv", "val/dice")}))
    score: float = json.loads(result.read_text())["dice"]
    print(f"{cases} cases, {steps} steps, seed {seed}, {arm.name}: {score:.4f}", flush=True)
    return score


def _last(metrics: Path, name: str) -> float:
    with metrics.open() as file:
        return float([row[2] for row in csv.reader(file) if row[1] == name][-1])


def _table(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    cases: int,
    steps: int,
    found: dict[tuple[int, int, str, int], float],
) -> None:
    """Means, and differences from the first arm with intervals over seeds."""
    print(f"\n{cases} labelled cases, {steps} steps, {len(seeds)} subsets")
    print(
        "| begun with | learning rate | Dice | minus first | 95 % (t) | 95 % (bootstrap) | SD of a pair "
        "| p (Wilcoxon) |"
    )
    print("|---|---:|---:|---:|---|---|---:|---:|")
    baseline = np.array([found[cases, steps, arms[0].name, seed] for seed in seeds])
    for arm in arms:
        dice = np.array([found[cases, steps, arm.name, seed] for seed in seeds])
        line = f"| {arm.name} {arm.half} | {arm.rate:g} | {dice.mean():.4f} |"
        if arm is arms[0] or len(seeds) < 2:
            print(line + " | | | | |")
            continue
        apart = dice - baseline
        error = apart.std(ddof=1) / len(apart) ** 0.5
        low, high = stats.t.interval(0.95, len(apart) - 1, apart.mean(), max(error, 1e-12))
        drawn = np.random.default_rng(0).choice(apart, (10_000, len(apart))).mean(axis=1)
        a, b = np.percentile(drawn, [2.5, 97.5])
        p = stats.wilcoxon(apart).pvalue if apart.any() else 1.0
        print(
            f"{line} {apart.mean():+.4f} | {low:+.4f} to {high:+.4f} | {a:+.4f} to {b:+.4f} | "
            f"{apart.std(ddof=1):.4f} | {p:.3f} |"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="list of cases; its validation cases are the test"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for all runs")
    parser.add_argument(
        "--arm", action="append", required=True, help="NAME[=WEIGHTS[:HALF[:RATE]]] or NAME:RATE"
    )
    parser.add_argument("--seeds", type=_numbers, default=list(range(8)), help="10-17, or 0,1,5")
    parser.add_argument("--cases", type=int, nargs="+", default=[4], help="labelled cases")
    parser.add_argument("--steps", type=int, nargs="+", default=[300], help="fine-tuning steps")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of arms that name none")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    first, dash, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if dash else [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
