"""The page about a fine-tuning run, from run folders written by hand."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

import dae3d
from dae3d.drawing.pictures import save_picture

RECORD = {
    "kind": "finetune",
    "init": "runs/pretrained",
    "parameters": 3_894_789,
    "step": 200,
    "max_steps": 200,
    "finished": True,
    "seconds": 190.0,
    "data": {"rows": [{"modality": "t1", "dataset": "task", "train": 3, "val": 2, "voxels": 10**6}]},
    "cases": {"training": ["a", "b", "c"], "validation": ["d", "e"]},
}
METRICS = [
    (10, "train/loss", 1.5),
    (10, "train/lr", 1e-3),
    (100, "val/dice", 0.75),
    (100, "val/dice/anterior", 0.8),
    (100, "val/dice/posterior", 0.7),
    (200, "val/dice", 0.7),
    (200, "val/dice/anterior", 0.9),
    (200, "val/dice/posterior", 0.5),
]


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / "run.json").write_text(json.dumps(RECORD))
    (tmp_path / "settings.yaml").write_text("lr: 0.001\n")
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "metric", "value"), *METRICS])
    for step in (100, 200):
        save_picture(np.full((20, 30, 3), step, np.uint8), tmp_path / f"pictures/case d/{step:08d}.png")
    return tmp_path


def words(page: Path) -> str:
    text = re.sub(r"<(style|script|svg).*?</\1>", " ", page.read_text(), flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def test_the_page_says_what_was_learned_from_what_and_how_well(run):
    text = words(dae3d.report(run=run))
    assert (
        "A network of 3.89 million parameters, initialised with the weights of runs/pretrained, was "
        "trained to segment anterior and posterior on 3 cases of t1, for 200 of 200 steps in 3 min 10 s."
        in text
    )
    assert "Best validation, at step 100: mean Dice 0.750 over 2 validation cases (anterior 0.800" in text
    assert "100 ★ 0.750 0.800 0.700 200 0.700 0.900 0.500" in text
    assert "Missing" not in text
    assert "training (3): a, b, c" in text
    assert "validation (2): d, e" in text


def test_of_many_classes_the_lowest_are_named_and_drawn(run):
    dice = {f"organ {n}": 0.3 + (n * 37 % 100) / 200 for n in range(100)}
    with (run / "metrics.csv").open("a", newline="") as file:
        csv.writer(file).writerows((100, f"val/dice/{name}", value) for name, value in dice.items())
    page = dae3d.report(run=run)
    text = words(page)
    assert "segment 102 classes: anterior, posterior, organ 0, organ 1, organ 2 and 97 others on" in text
    low = sorted(dice, key=dice.get)
    five = ", ".join(f"{name} {dice[name]:.3f}" for name in low[:4]) + f" and {low[4]} {dice[low[4]]:.3f}"
    assert f"mean Dice 0.750 over 2 validation cases (lowest of 102 classes: {five})." in text
    assert "Dice of the validation cases: the mean, and the 12 lowest of 102 classes" in text
    charts = re.findall(r"<figcaption>(organ \d+|anterior|posterior|Mean)\b", page.read_text())
    assert charts == ["Mean", *low[:12]]
    # The table has them all.
    assert text.count("organ 99") == 1


def test_every_picture_is_in_the_page(run):
    page = dae3d.report(run=run).read_text()
    assert page.count('src="data:image/png;base64,') == 2
    assert "mean Dice over all cases 0.750" in page
    assert "http" not in page


def test_an_unfinished_run_gets_a_page_that_says_so(run):
    record = RECORD | {"finished": False, "step": 10, "init": None}
    (run / "run.json").write_text(json.dumps(record))
    (run / "metrics.csv").write_text("step,metric,value\n10,train/loss,1.5\n")
    text = words(dae3d.report(run=run))
    assert "initialised at random" in text
    assert "No validation results yet." in text
    assert "The run is not finished: 10 of 200 steps." in text
