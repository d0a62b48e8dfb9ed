"""What runs of training have recorded, and whether two runs are the same."""

import torch
from safetensors.torch import load_file

from dae3d.metrics import read_metrics

MEASURED_TIME = "train/samples_per_second"


def flags(settings):
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def rows(run):
    return {
        (step, name): value
        for step, name, value in read_metrics(run / "metrics.csv")[0]
        if name != MEASURED_TIME
    }


def assert_same_run(run, whole):
    assert rows(run) == rows(whole)
    for name in ("last", "best"):
        ours, theirs = (load_file(r / "weights" / f"{name}.safetensors") for r in (run, whole))
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), key
