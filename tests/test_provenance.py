"""What weights say they were trained on, in their header and in runs."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

import dae3d
from dae3d.models.provenance import Seen, continued, entry, entry_of, kept, seen, trained_on
from dae3d.models.weights import read_weights

SCANS = {name: [hashlib.sha256(name.encode()).hexdigest()] for name in ("a", "b", "c", "d")}


def one(name: str) -> int:
    return kept(SCANS[name][0])


def through_json(stages: list[dict]) -> dict:
    return json.loads(json.dumps({"trained_on": stages}))


def test_cases_are_found_on_the_side_they_were_on() -> None:
    pretrained = entry("pretrain", [one("a"), one("b")], [one("c")])
    info = through_json(entry("segmentation", [one("b")], [one("a")], ["background", "liver"], pretrained))
    assert seen(info, SCANS) == [
        Seen("a", "pretrain", "training"),
        Seen("b", "pretrain", "training"),
        Seen("c", "pretrain", "validation"),
        Seen("a", "segmentation", "validation"),
        Seen("b", "segmentation", "training"),
    ]
    assert [stage.classes for stage in trained_on(info)] == [(), ("background", "liver")]
    assert all(stage.known for stage in trained_on(info))


def test_one_image_of_a_case_is_enough() -> None:
    info = through_json(entry("segmentation", [one("a")], []))
    assert seen(info, {"two channels": [*SCANS["d"], *SCANS["a"]]}) == [
        Seen("two channels", "segmentation", "training")
    ]


def test_a_file_that_says_nothing_is_not_known_to_have_seen_anything() -> None:
    info = {"task": "segmentation", "recipe": {"labels": {"10": "ten", "0": "background", "2": "two"}}}
    (stage,) = trained_on(info)
    assert (stage.known, stage.task) == (False, "segmentation")
    assert stage.classes == ("background", "two", "ten")
    assert seen(info, SCANS) == []
    begun = through_json(entry("segmentation", [one("a")], [], earlier=entry_of(info)))
    assert [stage.known for stage in trained_on(begun)] == [False, True]


def test_a_header_of_many_scans_stays_small() -> None:
    many = [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(20_000)]
    info = through_json(entry("pretrain", map(kept, many), []))
    assert len(json.dumps(info)) < 11 * len(many)
    assert seen(info, {"last": [many[-1]]}) == [Seen("last", "pretrain", "training")]


def test_a_header_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest are kept, so that a scan is among them or not whatever the others are called."""
    monkeypatch.setattr("dae3d.models.provenance._MOST", 2)
    info = through_json(entry("pretrain", map(kept, ["03" * 32, "01" * 32, "02" * 32]), []))
    cases = {"one": ["01" * 32], "two": ["02" * 32], "three": ["03" * 32]}
    assert [found.case for found in seen(info, cases)] == ["one", "two"]


def digests(paths: Iterable[Path]) -> dict[str, list[str]]:
    """The content of files, each as the one image of a case."""
    return {path.name: [hashlib.sha256(path.read_bytes()).hexdigest()] for path in paths}


def sides(info: dict, paths: Iterable[Path]) -> dict[tuple[str, str], int]:
    return Counter((found.task, found.side) for found in seen(info, digests(paths)))


def test_a_run_of_pre_training_names_its_scans(tiny_run: Path, tiny_store: Path) -> None:
    info = dae3d.load(tiny_run, show=False).info
    split: dict[str, list[dict]] = {"train": [], "val": []}
    for line in (tiny_store / "index.jsonl").read_text().splitlines()[1:]:
        scan = json.loads(line)
        split[scan["source"]["split"]].append(scan)
    for name, side in (("train", "training"), ("val", "validation")):
        paths = [Path(scan["source"]["path"]) for scan in split[name]]
        assert sides(info, paths) == {("pretrain", side): len(paths)}
        voxels = {scan["file"]: [scan["voxel_digest"]] for scan in split[name]}
        assert [found.side for found in seen(info, voxels)] == [side] * len(paths)
    assert "sub-0" not in json.dumps(info["trained_on"])


def test_fine_tuning_keeps_what_the_weights_before_it_saw(
    finetuned: Path, tiny_task: Path, tiny_store: Path, tmp_path: Path
) -> None:
    task = json.loads(tiny_task.read_text())
    images = {
        side: [tiny_task.parent / np.ravel(case["image"])[0] for case in task[side]]
        for side in ("training", "validation")
    }
    scans = sorted(tiny_store.parent.glob("*.nii.gz"))
    exported = [finetuned]
    for kind, name in (("safetensors", "w.safetensors"), ("reference", "w.pth")):
        exported.append(dae3d.export(weights=finetuned, format=kind, out=tmp_path / name))
    for weights in exported:
        info = read_weights(weights).info
        for side, files in images.items():
            assert sides(info, files) == {("segmentation", side): len(files)}
        assert {task for task, _ in sides(info, scans)} == {"pretrain"}
        assert trained_on(info)[-1].classes == ("background", "organ", "lesion")


def test_a_resumed_run_still_knows_what_its_weights_were_begun_with(
    tiny_run: Path, tiny_finetune: dict, tmp_path: Path
) -> None:
    settings = tiny_finetune | {"init": tmp_path / "begun.safetensors", "save_every": 1, "val_every": 100}
    shutil.copy(tiny_run / "weights" / "best.safetensors", settings["init"])
    run = dae3d.finetune(out=tmp_path / "run", **(settings | {"max_steps": 1}))
    before = read_weights(run / "weights" / "last.safetensors").info["trained_on"]
    settings["init"].unlink()
    dae3d.finetune(out=tmp_path / "run", resume=True, **(settings | {"max_steps": 2}))
    info = read_weights(run / "weights" / "last.safetensors").info
    assert (info["step"], info["trained_on"]) == (2, before)
    assert [stage.task for stage in trained_on(info)] == ["pretrain", "segmentation"]


def test_a_run_that_goes_on_with_other_scans_has_seen_both() -> None:
    first, second = entry("pretrain", [1], []), entry("pretrain", [2], [])
    assert continued(None, first) == continued(first, first) == first
    assert continued(first, second) == [*first, *second]


def test_validating_on_what_the_weights_were_trained_on_is_said(
    finetuned: Path, tiny_task: Path, tiny_finetune: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads(tiny_task.read_text())
    for case in content["training"] + content["validation"]:
        for key in ("image", "label"):
            case[key] = str(tiny_task.parent / np.ravel(case[key])[0])
    content["validation"].append(content["training"].pop())
    (tmp_path / "task.json").write_text(json.dumps(content))
    settings = tiny_finetune | {"data": tmp_path / "task.json", "init": finetuned, "max_steps": 1}
    dae3d.finetune(out=tmp_path / "run", **settings)
    said = f"was fine-tuned on 1 of the {len(content['validation'])} validation cases"
    assert said in caplog.text
    assert "was pre-trained on" not in caplog.text
