"""Two processes compared with one: time of a step of `pretrain`, and the bytes they send each other.

Each row is a run of `pretrain` in fresh processes of one thread: one alone, two of one run (DDP over gloo),
and two independent runs at the same time, which show how much of twice the speed the machine allows.
Processes that wait for each other cannot be faster than the slower of those two in each step. Run it on two
idle cores, with a store made by `dae3d prepare`:

    python benchmarks/scaling.py STORE [--embed-dim 12] [--batch-size 4] [--steps 12] [--rounds 3]

All three take turns. The result is the best of the medians, because other load on the machine, or beside a
virtual one, only makes steps longer; the median of the rounds is shown too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import dae3d
from dae3d.benchmarking.communication import Collectives, step_traffic
from dae3d.settings import resolve
from dae3d.store.store import Store
from dae3d.training.callbacks import Rows
from dae3d.training.pretrain_settings import PretrainSettings

WARM_UP = 3  # steps that are not counted
ROW = 5  # steps
WAYS = {
    "alone": "one",
    "together": "two of one run (DDP)",
    "apart": "two runs at once",
    "slower": "two runs at once, the slower of each step",
}
SIZES = ("embed-dim", "batch-size", "roi", "steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--embed-dim", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--roi", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("scaling.json"))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments, *arguments.worker)
        return
    figures = measure(arguments)
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    show(figures)


def settings_of(arguments: argparse.Namespace, out: str) -> dict[str, Any]:
    heads = arguments.embed_dim // 12
    return {
        "config": "small-cpu",
        "data": arguments.store,
        "out": out,
        "embed_dim": arguments.embed_dim,
        "heads": (heads, 2 * heads, 4 * heads, 8 * heads),
        "batch_size": arguments.batch_size,
        "roi": arguments.roi,
        "max_steps": WARM_UP + arguments.steps,
        "warmup_steps": 2,
        "val_crops": 1,
        "val_every": 10**6,
        "save_every": 10**6,
        "log_every": ROW,
        "accelerator": "cpu",
    }


def work(arguments: argparse.Namespace, out: str, what: str) -> None:
    """Train, and record the time and the loopback interface's bytes at the end of every step."""
    ends: list[float] = []
    loopback: list[int] = []
    counted: list[dict[str, list[int]]] = []
    collectives = Collectives()
    end_step = Rows.on_train_batch_end

    def ended(self: Rows, *rest: Any) -> None:
        end_step(self, *rest)
        ends.append(time.perf_counter())
        loopback.append(loopback_bytes())
        counted.append({name: [n, collectives.bytes[name]] for name, n in collectives.calls.items()})

    Rows.on_train_batch_end = ended
    if what == "count":
        with collectives:
            dae3d.pretrain(**settings_of(arguments, out))
    else:
        dae3d.pretrain(**settings_of(arguments, out))
    if os.environ.get("RANK", "0") == "0":
        found = {"ends": ends, "loopback": loopback, "collectives": counted}
        Path(out, "steps.json").write_text(json.dumps(found))


def loopback_bytes() -> int:
    """Bytes sent over the loopback interface since the machine started, by any process (Linux)."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.split()[0] == "lo:")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            alone = run(arguments, [f"{folder}/alone-{turn}"])
            together = run(arguments, [f"{folder}/together-{turn}"], ranks=2)
            apart = run(arguments, [f"{folder}/apart-{turn}-{i}" for i in range(2)])
            rounds.append(medians(alone, together, apart))
            print(f"round {turn}: {rounds[-1]}", flush=True)
        # The bytes sent do not depend on the size of the crops.
        small = argparse.Namespace(**{**vars(arguments), "roi": 32, "steps": 2 * ROW})
        counted = run(small, [f"{folder}/count"], ranks=2, what="count")[0]
    settings = resolve(PretrainSettings, settings_of(arguments, "none"))
    modalities = len({scan.modality for scan in Store(arguments.store).scans})
    traffic = step_traffic(settings, modalities)
    return {
        "torch": torch.__version__,
        "embed_dim": arguments.embed_dim,
        "batch_size": arguments.batch_size,
        "roi": arguments.roi,
        "steps": arguments.steps,
        "rounds": rounds,
        "seconds": {way: min(found[way] for found in rounds) for way in rounds[0]},
        "predicted": {
            "allreduce": traffic.gradients + (traffic.row + traffic.stop) / ROW,
            "allgather": traffic.features,
            "sent": traffic.sent(2, ROW),
        },
        "counted": a_step(counted),
        "loopback": per_step(together[0]["loopback"]) / 2,
    }


def medians(alone: list[Any], together: list[Any], apart: list[Any]) -> dict[str, float]:
    return {
        "alone": statistics.median(durations(alone[0])),
        "together": statistics.median(durations(together[0])),
        "apart": statistics.mean(statistics.median(durations(found)) for found in apart),
        "slower": statistics.median(map(max, *map(durations, apart))),
    }


def run(
    arguments: argparse.Namespace, folders: list[str], ranks: int = 1, what: str = "time"
) -> list[dict[str, Any]]:
    """Train into every folder at once, each run with as many ranks of one thread."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    sizes = [f"--{name}={getattr(arguments, name.replace('-', '_'))}" for name in SIZES]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    python = [sys.executable, *(launcher if ranks > 1 else []), __file__, str(arguments.store), *sizes]
    processes = [
        subprocess.Popen(
            [*python, "--worker", folder, what],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    for process in processes:
        output = process.communicate()[1]
        if process.returncode:
            sys.exit(output)
    return [json.loads(Path(folder, "steps.json").read_text()) for folder in folders]


def durations(found: dict[str, Any]) -> list[float]:
    return [after - before for before, after in pairwise(found["ends"][WARM_UP - 1 :])]


def per_step(totals: list[int]) -> float:
    """Growth per step over complete rows of metrics."""
    rows = (len(totals) - WARM_UP) // ROW
    return (totals[WARM_UP - 1 + rows * ROW] - totals[WARM_UP - 1]) / (rows * ROW)


def a_step(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Calls and bytes per step of every collective, with rows of metrics spread over the steps."""
    names = found["collectives"][-1]
    totals = {
        name: [[step.get(name, [0, 0])[i] for step in found["collectives"]] for i in range(2)]
        for name in names
    }
    each = {
        name: {"calls": per_step(calls), "bytes": per_step(size)} for name, (calls, size) in totals.items()
    }
    return {name: figures for name, figures in each.items() if figures["calls"]}


def show(figures: dict[str, Any]) -> None:
    print(f"torch {figures['torch']}, embed {figures['embed_dim']}, batch {figures['batch_size']} a process")
    print("| processes | seconds a step, best round | of ideal | of ideal, median of rounds |")
    print("|---|---:|---:|---:|")
    seconds = figures["seconds"]
    for way, name in WAYS.items():
        of_rounds = statistics.median(found["alone"] / found[way] for found in figures["rounds"])
        best = seconds["alone"] / seconds[way]
        print(f"| {name} | {seconds[way]:.3f} | {best:.3f} | {of_rounds:.3f} |")
    predicted = figures["predicted"]
    print("\n| bytes per rank and step | predicted | measured |\n|---|---:|---:|")
    for name, found in figures["counted"].items():
        expected = predicted.get(name, 0)
        print(f"| {name}, {found['calls']:g} calls | {expected:,.0f} | {found['bytes']:,.0f} |")
    print(f"| sent over the loopback interface | {predicted['sent']:,.0f} | {figures['loopback']:,.0f} |")


if __name__ == "__main__":
    main()
