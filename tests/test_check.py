"""The command `check` on runs as a user has them, what it refuses, and its section in the report."""

import json
import os
import re
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import yaml

import dae3d
from dae3d import cli
from dae3d.errors import Dae3dError
from dae3d.metrics import read_metrics
from dae3d.probing.crops import probe_crops
from dae3d.probing.verdict import WELL
from dae3d.reporting.bars import bar_chart
from dae3d.reporting.curves import BOTTOM, LEFT, RIGHT, TOP
from dae3d.reporting.run_folder import load_run
from dae3d.training.data import training_data
from dae3d.training.pretrain_settings import PretrainSettings

pytestmark = pytest.mark.slow

LEVELS = [f"level{number}" for number in range(5)]


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture(scope="module")
def checked(tiny_run, tiny_task, tmp_path_factory):
    """A run with its check, and what `check` returned."""
    run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("checked") / "run")
    return run, dae3d.check(run=run, data=tiny_task, train_cases=2, test_cases=2, device="cpu")


def changed_settings(run, **changes):
    path = run / "settings.yaml"
    settings = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({name: value for name, value in settings.items() if value != "left out"}))


# What it finds


def test_every_figure_is_there_and_lies_where_it_can(checked):
    _, found = checked
    figures = found.figures
    # A decoder that ends at half resolution has no image skip to swap.
    assert figures.share.keys() == {*LEVELS, "all"}
    assert figures.channels == {name: 4 * 2**i for i, name in enumerate(LEVELS)}
    assert sum(figures.crops.values()) == 16
    # 32^3 crops have 16^3 tokens, and at the end one.
    assert figures.tokens == {name: 16 * (16 // 2**i) ** 3 for i, name in enumerate(LEVELS)}
    for name, rank in figures.rank.items():
        assert 1 <= rank <= min(figures.channels[name], figures.tokens[name] - 1)
    assert all(-1 <= value <= 1 for value in figures.cosine.values())
    # 7 or 8 of 14 or fewer crops of other scans are of one's own modality.
    assert 0.3 < figures.chance < 0.6
    assert figures.queries == figures.swapped == 16
    assert figures.dice.keys() == found.random.keys() == {*LEVELS, "all"}
    assert all(0 <= value <= 1 for value in (*figures.dice.values(), *found.random.values()))
    assert (found.weights, found.step, found.labelled.tested) == ("best", 14, 2)
    assert len(found.labelled.fitted) == 2
    assert found.sound == (found.verdict[0] == WELL)


def test_check_json_holds_it_all_and_the_rest_of_the_run_stays(checked, tiny_run):
    run, found = checked
    written = json.loads((run / "check.json").read_text())
    assert written == json.loads(found.model_dump_json())
    assert written["settings"]["train_cases"] == 2
    for path in tiny_run.rglob("*"):
        if path.is_file():
            assert (run / path.relative_to(tiny_run)).read_bytes() == path.read_bytes(), path


def test_ignored_voxels_have_no_part_in_the_probe(checked, run, tiny_task, tmp_path):
    """They are background far from the labels, which the probe finds as background in any case."""
    _, plain = checked
    task = json.loads(tiny_task.read_text())
    task["labels"]["9"] = "ignore"
    for number, entry in enumerate(task["training"] + task["validation"]):
        image = nibabel.load(tiny_task.parent / entry["label"])
        values = np.asarray(image.dataobj).copy()
        values[0] = 9
        entry["label"] = str(tmp_path / f"{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(values, image.affine), entry["label"])
        entry["image"] = str(tiny_task.parent / entry["image"])
    path = tmp_path / "ignoring.json"
    path.write_text(json.dumps(task))
    found = dae3d.check(run=run, data=path, train_cases=2, test_cases=2, device="cpu")
    assert found.figures.dice.keys() == plain.figures.dice.keys()
    assert found.figures.dice == pytest.approx(plain.figures.dice, abs=0.1)


def test_a_second_check_finds_the_same(checked, tiny_task):
    run, found = checked
    again = dae3d.check(run=run, data=tiny_task, train_cases=2, test_cases=2, device="cpu")
    assert again.model_copy(update={"seconds": None}) == found.model_copy(update={"seconds": None})


def test_without_labelled_cases_it_says_the_rest(run, checked, capsys):
    assert cli.main(["check", str(run), "--weights", "last", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    written = json.loads((run / "check.json").read_text())
    assert written["figures"]["dice"] == written["random"] == {}
    assert written["labelled"] is None
    assert "probe Dice" not in printed
    assert "effective" in printed
    assert re.search(r"\n +4 +64 ", printed)
    words = " ".join(printed.split())
    assert all(line in words for line in written["verdict"])


def test_crops_are_those_of_validation_and_pairs_of_other_scans(tiny_store, tiny_settings):
    settings = PretrainSettings(data=tiny_store, out="run", **tiny_settings)
    data = training_data(settings, 1)
    crops = probe_crops(data, settings)
    assert crops.crops[: len(data.validation)] == data.validation
    assert crops.counts == {"ct": 8, "t1": 8}
    scans = [crop.scan for crop in crops.crops]
    by_modality = [[c.scan for c in crops.crops if c.modality == number] for number in (0, 1)]
    # Of 3 CT scans, one held out; of the 5 T1 the held-out one and 3 to train on.
    assert sorted(map(by_modality[0].count, set(by_modality[0]))) == [2, 3, 3]
    assert sorted(map(by_modality[1].count, set(by_modality[1]))) == [2, 2, 2, 2]
    groups = crops.groups()
    assert sorted(place for group in groups for place in group) == list(range(16))
    for group in groups:
        assert {crops.crops[place].modality for place in group} == {0, 1}
        assert len({scans[place] for place in group}) > 1
    # Disruptions go by the sample number, which validation crops have in validation.
    assert crops.dataset[0].sample == 2**32 - 1
    assert crops.dataset[9].sample == 2**32 - 10


def test_a_run_from_before_it_could_be_probed_is_checked_too(run):
    changed_settings(run, probe_every="left out", probe_task="left out")
    assert dae3d.check(run=run, device="cpu").figures.share


# What it refuses


def test_a_store_that_was_moved_is_named_again(run, tiny_store, tmp_path):
    moved = shutil.copytree(tiny_store, tmp_path / "elsewhere" / "scans")
    changed_settings(run, data=str(tmp_path / "gone"))
    with pytest.raises(Dae3dError, match=r"store: .*gone does not exist.*--store"):
        dae3d.check(run=run, device="cpu")
    assert dae3d.check(run=run, store=moved, device="cpu").figures.share


def test_a_run_without_weights_or_settings_or_of_another_verb_is_refused(run, finetuned, tmp_path):
    with pytest.raises(Dae3dError, match=r"run: .* is a run of `finetune`"):
        dae3d.check(run=finetuned)
    with pytest.raises(Dae3dError, match="no such run"):
        dae3d.check(run=tmp_path / "nothing")
    (run / "weights/best.safetensors").unlink()
    with pytest.raises(Dae3dError, match=r"weights: .*no weights/best.safetensors.*--weights last"):
        dae3d.check(run=run)
    (run / "settings.yaml").unlink()
    with pytest.raises(Dae3dError, match=r"run: .*no settings.yaml"):
        dae3d.check(run=run)


def test_cases_of_other_channels_are_refused_before_any_is_prepared(run, tmp_path):
    for value, name in enumerate(("a", "b", "c", "d", "label")):
        voxels = np.full((8, 8, 8), value, np.uint8)
        nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / f"{name}.nii.gz")
    cases = [{"image": [f"{x}.nii.gz" for x in pair], "label": "label.nii.gz"} for pair in ("ab", "cd")]
    task = tmp_path / "task.json"
    labels, modality = {"0": "background", "1": "organ"}, {"0": "T1w", "1": "T2w"}
    lists = {"training": cases[:1], "validation": cases[1:]}
    task.write_text(json.dumps({"labels": labels, "modality": modality, **lists}))
    with pytest.raises(Dae3dError, match=r"have 2 channels \(t1, t2\), but the network of the run takes 1"):
        dae3d.check(run=run, data=task, train_cases=1, device="cpu")
    assert not (run / "cases").exists()


# On the page


def test_the_page_has_the_verdict_and_the_bars(checked):
    run, found = checked
    page = dae3d.report(run=run).read_text()
    assert "Use of the encoder levels" in page
    for line in found.verdict:
        assert line.replace("'", "&#39;") in page
    assert page.count('class="bar"') == 6 + 5 + 2 * 6
    for title in ("L1 increase with a level swapped", "Effective rank by level", "Voxel probe, Dice"):
        assert title in page
    assert f"{found.figures.dice['all']:.2f}" in page


def test_a_page_without_a_check_or_with_one_that_cannot_be_read_lacks_the_section(run):
    assert "Use of the encoder levels" not in dae3d.report(run=run).read_text()
    (run / "check.json").write_text('{"figures": ')
    assert "Use of the encoder levels" not in dae3d.report(run=run).read_text()


def test_curves_of_probes_are_drawn(run):
    with (run / "metrics.csv").open("a") as file:
        file.writelines(f"{step},probe/share/level3,{step}\n" for step in (0, 7, 14))
    assert load_run(run).metrics["probe/share/level3"].last == (14, 14)
    page = dae3d.report(run=run).read_text()
    assert "L1 increase with a level swapped, %" in page
    assert "level 3" in page


def test_bars_are_as_high_as_their_values():
    chart = bar_chart("Title", ["a", "b"], {"one": [4.0, None], "two": [-1.0, 2.0]}, ".1f")
    (_, one), (_, two) = chart.series
    [tall] = one
    unit = tall.height / 4
    assert [bar.height for bar in two] == pytest.approx([unit, 2 * unit], abs=0.11)
    assert tall.y + tall.height == pytest.approx(chart.zero) == pytest.approx(two[0].y)
    bars = [*one, *two]
    assert all(bar.x >= LEFT and bar.x + bar.width <= RIGHT for bar in bars)
    assert all(bar.text >= TOP and bar.y + bar.height <= BOTTOM for bar in bars)
    assert chart.words == "Title. one: a 4.0; two: a -1.0, b 2.0."
    assert bar_chart("Title", ["a"], {"one": [None]}) is None
    assert bar_chart("Title", ["a"], {"one": [0.0]}) is not None


# In several processes


def test_two_processes_find_what_one_finds(tiny_store, tiny_settings, tmp_path):
    settings = tiny_settings | {"data": tiny_store, "max_steps": 1, "probe_every": 5, "val_every": 9}
    settings |= {"save_every": 9, "repair_from": "full"}
    (tmp_path / "two.yaml").write_text(
        yaml.safe_dump(
            {n: list(v) if isinstance(v, tuple) else v for n, v in settings.items()}
            | {"data": str(tiny_store)}
        )
    )
    words = [
        "-m",
        "dae3d.cli",
        "pretrain",
        "--config",
        str(tmp_path / "two.yaml"),
        "--out",
        str(tmp_path / "two"),
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*launcher, *words], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    dae3d.pretrain(out=tmp_path / "one", **(settings | {"batch_size": 8}))
    two, one = (
        [(step, name, value) for step, name, value in read_metrics(tmp_path / run / "metrics.csv")[0]]
        for run in ("two", "one")
    )
    probes = {(step, name): value for step, name, value in two if name.startswith("probe/")}
    assert len(probes) == len([row for row in two if row[1].startswith("probe/")]) == 18
    expected = {(step, name): value for step, name, value in one if name.startswith("probe/")}
    assert probes.keys() == expected.keys()
    assert probes == pytest.approx(expected, rel=1e-3, abs=1e-3)
